"""What platforms pass to the container: names, spellings, and the limits that follow from them."""

import pytest

from serving.settings import Settings, SettingsError
from serving.settings_sources import resolve


def test_serve_has_the_limits_of_a_real_time_endpoint() -> None:
    settings = resolve(["serve"], {})
    assert settings.port == 8080
    assert settings.payload_limit == 25 * 1024 * 1024
    assert settings.seconds_for(stream=False) == 55
    assert settings.seconds_for(stream=True) == 470
    assert settings.origins["payload_limit"] == "serve"


def test_without_serve_nothing_changes() -> None:
    settings = resolve([], {"HF_MODEL_ID": "org/model"})
    assert settings.payload_limit == 2_000_000
    assert settings.seconds_for(stream=False) is None
    assert settings.seconds_for(stream=True) is None


def test_given_limits_win_over_those_of_serve() -> None:
    settings = resolve(["serve"], {"PAYLOAD_LIMIT": "1000", "MAX_WHOLE_SECONDS": "30"})
    assert settings.payload_limit == 1000
    assert settings.seconds_for(stream=False) == 30
    assert settings.seconds_for(stream=True) == 470


def test_one_limit_replaces_both_of_serve() -> None:
    settings = resolve(["serve"], {"MAX_REQUEST_SECONDS": "3500"})
    assert [settings.seconds_for(stream=stream) for stream in (False, True)] == [3500, 3500]


@pytest.mark.parametrize("spelling", ["true", "True", "1"])
def test_a_batch_job_has_longer_limits(spelling: str) -> None:
    settings = resolve(["serve"], {"SAGEMAKER_BATCH": spelling})
    assert settings.batch_transform
    assert settings.payload_limit == 100 * 1024 * 1024
    assert settings.seconds_for(stream=False) == 3540
    assert settings.origins["max_whole_seconds"] == "SAGEMAKER_BATCH"


@pytest.mark.parametrize(
    ("argv", "environ", "port"),
    [
        ([], {"AIP_HTTP_PORT": "7080", "PORT": "80"}, 7080),
        (["serve"], {"AIP_HTTP_PORT": "7080"}, 7080),
        ([], {"AIP_HTTP_PORT": "7080", "SAGEMAKER_BIND_TO_PORT": "7081"}, 7081),
        (["-p", "7082"], {"AIP_HTTP_PORT": "7080"}, 7082),
    ],
)
def test_port_of_vertex(argv: list[str], environ: dict[str, str], port: int) -> None:
    assert resolve(argv, environ).port == port


def test_empty_variables_are_unset() -> None:
    environ = dict.fromkeys(
        ("HF_MODEL_ID", "MODEL_ID", "MAX_TOTAL_TOKENS", "JSON_OUTPUT", "API_KEY",
         "SAGEMAKER_BATCH", "AIP_HTTP_PORT", "AIP_STORAGE_URI", "SM_NUM_GPUS"), "",
    )  # fmt: skip
    assert resolve([], environ) == Settings(num_shard=1)


def test_variables_of_the_sdks_are_tolerated() -> None:
    environ = {
        "SAGEMAKER_PROGRAM": "", "SAGEMAKER_SUBMIT_DIRECTORY": "", "SAGEMAKER_REGION": "eu-west-1",
        "SAGEMAKER_CONTAINER_LOG_LEVEL": "20", "SAGEMAKER_MODEL_SERVER_WORKERS": "1",
        "MODEL_SERVER_TIMEOUT": "60", "HF_TASK": "text-generation", "AIP_MODE": "PREDICTION",
        "SAGEMAKER_ENABLE_LOAD_AWARE": "1", "SAGEMAKER_MULTI_MODEL": "false",
    }  # fmt: skip
    assert resolve([], environ).origins == {}


def test_the_messages_api_is_always_on() -> None:
    (warning,) = resolve([], {"MESSAGES_API_ENABLED": "True"}).warnings()
    assert warning == "MESSAGES_API_ENABLED is not needed: the body decides"


@pytest.mark.parametrize("route", ["predict", "/", "/a b", "/<path:x>", "/a?b", "/a//b"])
def test_a_route_must_be_a_path(route: str) -> None:
    with pytest.raises(SettingsError) as caught:
        resolve([], {"AIP_PREDICT_ROUTE": route})
    assert caught.value.exit_code == 1
    assert f"Given: {route} (AIP_PREDICT_ROUTE)" in str(caught.value)


def test_vertex_names_its_routes() -> None:
    route = "/v1/endpoints/12/deployedModels/34:predict"
    settings = resolve([], {"AIP_PREDICT_ROUTE": route, "AIP_HEALTH_ROUTE": "/isalive"})
    assert (settings.predict_route, settings.health_route) == (route, "/isalive")


def test_sessions_are_off_unless_asked_for() -> None:
    assert not resolve(["serve"], {}).stateful_sessions
    environ = {
        "SAGEMAKER_ENABLE_STATEFUL_SESSIONS": "true", "SAGEMAKER_SESSIONS_EXPIRATION": "60",
    }  # fmt: skip
    settings = resolve(["serve"], environ)
    assert (settings.stateful_sessions, settings.session_seconds) == (True, 60)


@pytest.mark.parametrize(
    ("variable", "text", "limit"),
    [
        ("SAGEMAKER_SESSIONS_EXPIRATION", "0", "`session_seconds` must be > 0"),
        ("SESSION_KV_SHARE", "1.5", "`session_kv_share` must be >= 0 and <= 1"),
        ("MAX_WHOLE_SECONDS", "0", "`max_whole_seconds` must be > 0 and finite"),
    ],
)
def test_ranges(variable: str, text: str, limit: str) -> None:
    with pytest.raises(SettingsError, match=limit):
        resolve([], {variable: text})
