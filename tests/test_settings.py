"""Command line and environment to settings: precedence, SageMaker's names, refusals."""

import subprocess
import sys
from pathlib import Path

import click
import msgspec
import pytest
from click.testing import CliRunner

from serving.settings import Settings, SettingsError, fields
from serving.settings_sources import command, device_count, resolve


def error_of(argv: list[str], environ: dict[str, str] | None = None) -> SettingsError:
    with pytest.raises(SettingsError) as caught:
        resolve(argv, environ or {})
    return caught.value


def test_defaults_are_those_of_tgi() -> None:
    settings = resolve([], {})
    # Facts of TGI 3's launcher, retyped from its documentation.
    expected = {
        "port": 3000,
        "hostname": "0.0.0.0",
        "validation_workers": 2,
        "max_concurrent_requests": 128,
        "max_best_of": 2,
        "max_stop_sequences": 4,
        "max_top_n_tokens": 5,
        "max_client_batch_size": 4,
        "payload_limit": 2_000_000,
        "graceful_termination_timeout": 90,
        "waiting_served_ratio": 0.3,
        "max_waiting_tokens": 20,
        "cuda_memory_fraction": 1.0,
        "usage_stats": "on",
    }
    assert {name: getattr(settings, name) for name in expected} == expected
    assert settings.origins == {}


def test_environment_wins_over_the_default() -> None:
    settings = resolve([], {"MAX_BEST_OF": "3"})
    assert (settings.max_best_of, settings.origins["max_best_of"]) == (3, "MAX_BEST_OF")


def test_command_line_wins_over_every_variable() -> None:
    environ = {"MODEL_ID": "native", "HF_MODEL_ID": "sagemaker"}
    settings = resolve(["--model-id", "flag"], environ)
    assert (settings.model_id, settings.origins["model_id"]) == ("flag", "--model-id")


@pytest.mark.parametrize(
    ("variable", "text", "name", "value"),
    [
        ("HF_MODEL_ID", "org/model", "model_id", "org/model"),
        ("HF_MODEL_REVISION", "abc", "revision", "abc"),
        ("SM_NUM_GPUS", "1", "num_shard", 1),
        ("HF_MODEL_TRUST_REMOTE_CODE", "false", "trust_remote_code", False),
        ("SAGEMAKER_BIND_TO_PORT", "9001", "port", 9001),
        ("SAGEMAKER_SAFE_PORT_RANGE", "23000-23999", "safe_port_range", "23000-23999"),
        ("HF_TOKEN", "t", "hf_token", "t"),
        ("HF_API_TOKEN", "t", "hf_token", "t"),
        ("HUGGING_FACE_HUB_TOKEN", "t", "hf_token", "t"),
    ],
)
def test_platform_variables(variable: str, text: str, name: str, value: object) -> None:
    settings = resolve([], {variable: text})
    assert (getattr(settings, name), settings.origins[name]) == (value, variable)


def test_sagemaker_names_win_over_native_ones() -> None:
    assert resolve([], {"MODEL_ID": "native", "HF_MODEL_ID": "sm"}).model_id == "sm"


def test_empty_sagemaker_variables_are_unset() -> None:
    settings = resolve([], {"MODEL_ID": "native", "HF_MODEL_ID": "", "SM_NUM_GPUS": ""})
    assert (settings.model_id, settings.num_shard) == ("native", 1)
    assert settings.origins == {"model_id": "MODEL_ID"}


def test_own_token_wins_over_older_spellings() -> None:
    assert resolve([], {"HF_API_TOKEN": "old", "HF_TOKEN": "new"}).hf_token == "new"


@pytest.mark.parametrize(
    ("argv", "environ", "port"),
    [
        (["serve"], {}, 8080),
        (["serve"], {"PORT": "80"}, 8080),
        (["serve"], {"SAGEMAKER_BIND_TO_PORT": "9001"}, 9001),
        (["serve", "--port", "7000"], {}, 7000),
        (["-p", "7001"], {}, 7001),
        ([], {"HF_MODEL_ID": "m"}, 8080),
        ([], {"HF_MODEL_ID": "m", "PORT": "80"}, 80),
        ([], {"PORT": "80"}, 80),
    ],
)
def test_port(argv: list[str], environ: dict[str, str], port: int) -> None:
    assert resolve(argv, environ).port == port


@pytest.mark.parametrize(("text", "value"), [("true", True), ("false", False)])
def test_boolean_variables(text: str, value: bool) -> None:
    assert resolve([], {"JSON_OUTPUT": text}).json_output is value


@pytest.mark.parametrize("text", ["1", "0", "True", "yes", " "])
def test_other_spellings_of_booleans_are_refused(text: str) -> None:
    error = error_of([], {"JSON_OUTPUT": text})
    assert error.exit_code == 2
    assert str(error) == f"invalid value '{text}' for JSON_OUTPUT: expected true or false"


@pytest.mark.parametrize(("text", "value"), [("1", True), ("0", False), ("false", False)])
def test_prefix_caching_also_takes_digits(text: str, value: bool) -> None:
    assert resolve([], {"PREFIX_CACHING": text}).prefix_caching is value


def test_switches_take_no_value() -> None:
    assert resolve(["--json-output", "--disable-grammar-support"], {}).json_output is True


def test_sharded_false_on_the_command_line_wins() -> None:
    settings = resolve(["--sharded", "false"], {"SHARDED": "true"})
    assert (settings.sharded, settings.origins["sharded"]) == (False, "--sharded")


def test_repeated_origins_are_joined() -> None:
    argv = ["--cors-allow-origin", "https://a", "--cors-allow-origin", "https://b"]
    assert resolve(argv, {}).cors_allow_origin == "https://a,https://b"


def test_old_name_of_the_input_limit() -> None:
    settings = resolve([], {"MAX_INPUT_LENGTH": "100"})
    assert (settings.max_input_tokens, settings.origins["max_input_tokens"]) == (
        100,
        "MAX_INPUT_LENGTH",
    )


def test_secrets_are_masked() -> None:
    environ = {"API_KEY": "key-0", "HF_TOKEN": "token-0", "NGROK_AUTHTOKEN": "ngrok-0"}
    text = "\n".join(resolve([], environ).lines())
    assert "api_key = *** (API_KEY)" in text
    assert not any(secret in text for secret in environ.values())


def test_lines_name_every_field_its_value_and_its_origin() -> None:
    lines = resolve(["--port", "81"], {}).lines()
    assert len(lines) == len(fields())
    assert "port = 81 (--port)" in lines
    assert "revision = unset (default)" in lines


def test_inert_flags_are_warned_about() -> None:
    settings = resolve(["--max-waiting-tokens", "5"], {"USAGE_STATS": "off"})
    assert settings.warnings() == [
        "--max-waiting-tokens has no effect: prompts are chunked and batched continuously",
        "USAGE_STATS none are ever sent",
    ]


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["--no-such-flag"], "--no-such-flag"),
        (["--port", "many"], "'many' is not a valid integer"),
        (["--dtype", "int4"], "int4"),
        (["train"], "unexpected argument 'train'; only the word 'serve' is known"),
        (["serve", "--sharded", "maybe"], "maybe"),
    ],
)
def test_syntax_errors_exit_with_2(argv: list[str], text: str) -> None:
    error = error_of(argv)
    assert error.exit_code == 2
    assert text in str(error)


def test_values_of_variables_are_checked_too() -> None:
    error = error_of([], {"MAX_TOTAL_TOKENS": " "})
    assert error.exit_code == 2
    assert "MAX_TOTAL_TOKENS" in str(error)


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["--validation-workers", "0"], "`validation_workers` must be > 0. Given: 0 (--val"),
        (["--max-concurrent-requests", "0"], "`max_concurrent_requests` must be > 0"),
        (["--max-batch-size", "0"], "`max_batch_size` must be > 0. Given: 0"),
        (
            ["--cuda-graphs", "1,x"],
            "`cuda_graphs` must be numbers separated by commas, or 0. Given: 1,x",
        ),
        (["--max-input-length", "0"], "`max_input_tokens` must be > 0. Given: 0 (--max-input-l"),
        (["--max-total-tokens", "-1"], "`max_total_tokens` must be > 0. Given: -1"),
        (["--port", "65536"], "`port` must be between 0 and 65535. Given: 65536"),
        (["--cuda-memory-fraction", "1.5"], "must be > 0 and <= 1. Given: 1.5"),
        (
            ["--max-input-tokens", "10", "--max-total-tokens", "10"],
            "`max_input_tokens` must be < `max_total_tokens`. Given: 10 and 10",
        ),
        (
            ["--max-input-tokens", "10", "--max-input-length", "10"],
            "both --max-input-tokens and --max-input-length are set; give one",
        ),
        (["--num-shard", "0"], "`num_shard` must be > 0. Given: 0 (--num-shard)"),
        (["--num-replicas", "0"], "`num_replicas` must be > 0. Given: 0 (--num-replicas)"),
        (["--replica-slack", "-1"], "`replica_slack` must be >= 0. Given: -1"),
        (["--rendezvous-seconds", "0"], "`rendezvous_seconds` must be > 0. Given: 0"),
        (["--max-restarts", "-1"], "`max_restarts` must be >= 0. Given: -1"),
        (["--stall-seconds", "0"], "`stall_seconds` must be > 0 and finite. Given: 0.0"),
        (["--stall-seconds", "nan"], "`stall_seconds` must be > 0 and finite. Given: nan"),
        (["--recovery-seconds", "inf"], "`recovery_seconds` must be > 0 and finite. Given: inf"),
        (["--master-port", "65536"], "`master_port` must be between 0 and 65535. Given: 65536"),
        (["--node-rank", "1"], "`node_rank` must be < `nnodes`, which is 1. Given: 1 (--node-rank"),
    ],
)
def test_contradictions_exit_with_1(argv: list[str], text: str) -> None:
    error = error_of(argv)
    assert error.exit_code == 1
    assert text in str(error)


def gpu_directories(place: Path, count: int) -> Path:
    for number in range(count):
        (place / f"0000:0{number}:00.0").mkdir()
    return place


@pytest.mark.parametrize(
    ("environ", "count"),
    [
        ({}, 3),
        ({"NVIDIA_VISIBLE_DEVICES": "all"}, 3),
        ({"NVIDIA_VISIBLE_DEVICES": "void"}, 3),
        ({"NVIDIA_VISIBLE_DEVICES": ""}, 3),
        ({"NVIDIA_VISIBLE_DEVICES": "none"}, 0),
        ({"NVIDIA_VISIBLE_DEVICES": "GPU-1a,GPU-2b"}, 2),
        ({"NVIDIA_VISIBLE_DEVICES": "0,1", "CUDA_VISIBLE_DEVICES": "1"}, 1),
        ({"CUDA_VISIBLE_DEVICES": "0, 1,2,3"}, 4),
        ({"CUDA_VISIBLE_DEVICES": ""}, 0),
        ({"CUDA_VISIBLE_DEVICES": "0,-1,2"}, 1),
    ],
)
def test_device_count(environ: dict[str, str], count: int, tmp_path: Path) -> None:
    assert device_count(environ, gpu_directories(tmp_path, 3)) == count


def test_a_machine_without_a_driver_has_no_devices(tmp_path: Path) -> None:
    assert device_count({"NVIDIA_VISIBLE_DEVICES": "all"}, tmp_path / "none") == 0


@pytest.mark.parametrize(
    ("argv", "devices", "num_shard"),
    [
        # TGI's table
        ([], "0,1,2,3", 4),
        ([], "", 1),
        (["--num-shard", "2"], "0,1,2,3", 2),
        (["--num-shard", "2"], "", 2),
        (["--sharded", "true"], "0,1", 2),
        (["--sharded", "true", "--num-shard", "3"], "0,1,2,3", 3),
        (["--sharded", "false"], "0,1", 1),
        (["--sharded", "false", "--num-shard", "2"], "0,1", 2),
        # with replicas, the devices are shared
        (["--num-replicas", "2"], "0,1,2,3,4", 2),
        (["--num-replicas", "2"], "0,1", 1),
        (["--num-replicas", "4", "--num-shard", "2"], "0,1,2,3,4,5,6,7", 2),
        (["--num-replicas", "3"], "", 1),
    ],
)
def test_number_of_shards(argv: list[str], devices: str, num_shard: int) -> None:
    assert resolve(argv, {"CUDA_VISIBLE_DEVICES": devices}).num_shard == num_shard


def test_origin_of_a_counted_number_of_shards() -> None:
    assert resolve([], {"CUDA_VISIBLE_DEVICES": "0,1"}).origins == {"num_shard": "device count"}


@pytest.mark.parametrize(
    ("argv", "devices", "text"),
    [
        (["--sharded", "true"], "0", "`sharded` is true (--sharded), which needs more than one"),
        (["--sharded", "true"], "", "0 devices were found"),
        (["--sharded", "true", "--num-shard", "1"], "0,1", "`num_shard` is 1"),
        (["--sharded", "true", "--num-replicas", "2"], "0,1,2", "3 devices were found"),
        (
            ["--num-shard", "2", "--num-replicas", "2"],
            "0,1,2",
            "`num_shard` 2 times `num_replicas` 2 needs 4 devices; there are 3",
        ),
        (["--num-replicas", "4"], "0,1", "needs 4 devices; there are 2"),
    ],
)
def test_impossible_numbers_of_shards_exit_with_1(argv: list[str], devices: str, text: str) -> None:
    error = error_of(argv, {"CUDA_VISIBLE_DEVICES": devices})
    assert error.exit_code == 1
    assert text in str(error)


@pytest.mark.parametrize("value", ["auto", "fp8_e4m3fn", "fp8_e5m2", "int8"])
def test_types_of_the_kv_cache(value: str) -> None:
    assert resolve([], {"KV_CACHE_DTYPE": value}).kv_cache_dtype == value
    assert resolve(["--kv-cache-dtype", value], {}).kv_cache_dtype == value


@pytest.mark.parametrize(
    ("argv", "environ"), [(["--kv-cache-dtype", "fp4"], {}), ([], {"KV_CACHE_DTYPE": "fp4"})]
)
def test_another_type_of_the_kv_cache_is_refused(argv: list[str], environ: dict[str, str]) -> None:
    error = error_of(argv, environ)
    assert "'fp4' is not one of 'auto', 'fp8_e4m3fn', 'fp8_e5m2', 'int8'" in str(error)
    assert (argv or ["KV_CACHE_DTYPE"])[0] in str(error)


@pytest.mark.parametrize("name", [name for name, (flag, _) in fields().items() if flag.refused])
def test_every_unavailable_flag_is_refused_by_name(name: str) -> None:
    flag, kind = fields()[name]
    variable = flag.env or name.upper()
    text = {bool: "true", int: "3", float: "0.7"}.get(kind, "some")
    error = error_of([], {variable: text})
    assert error.exit_code == 1
    assert str(error) == f"{variable} {flag.refused}"


def test_unavailable_flags_may_repeat_their_default() -> None:
    assert resolve([], {"TRUST_REMOTE_CODE": "false"}).trust_remote_code is False


@pytest.mark.parametrize(
    ("hostname", "address"),
    [
        ("0.0.0.0", "0.0.0.0"),
        ("127.0.0.1", "127.0.0.1"),
        ("::", "::"),
        ("localhost", "127.0.0.1"),
        ("4f2e9c0d1a2b", "0.0.0.0"),  # what a container engine puts into HOSTNAME
    ],
)
def test_listen_address(hostname: str, address: str) -> None:
    assert resolve([], {"HOSTNAME": hostname}).listen_address == address


def test_settings_survive_json() -> None:
    settings = resolve(["--api-key", "k"], {"MAX_TOTAL_TOKENS": "64"})
    assert msgspec.json.decode(msgspec.json.encode(settings), type=Settings) == settings


def test_help_mentions_every_flag_and_its_variable() -> None:
    result = CliRunner().invoke(command(), ["--help"])
    words = result.output.replace("[", " ").replace("]", " ").replace(";", " ").split()
    for name, (flag, _) in fields().items():
        if flag.cli and not flag.hidden:
            assert "--" + name.replace("_", "-") in words
            assert flag.env == "-" or (flag.env or name.upper()) in words


@pytest.mark.parametrize("flag", ["--help", "--version"])
def test_questions_exit_with_0(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(click.exceptions.Exit) as caught:
        resolve([flag], {})
    assert caught.value.exit_code == 0
    assert "text-generation-launcher" in capsys.readouterr().out


@pytest.mark.parametrize(("argv", "code"), [(["--frobnicate"], 2), (["--num-shard", "0"], 1)])
def test_the_program_prints_one_error_line_and_exits(argv: list[str], code: int) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "serving", *argv], capture_output=True, text=True, check=False
    )
    assert done.returncode == code
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
