"""What the package is made of, and that the server understands what it sends."""

import ast
import sys
from collections.abc import Callable
from pathlib import Path

import sm_deploy
from serving.settings_sources import resolve
from sm_deploy import api
from sm_deploy.environment import container_environment
from sm_deploy.options import AsyncOptions, EndpointOptions, Network

FOLDER = Path(sm_deploy.__file__).parent
ALLOWED = {"boto3", "botocore", "click", "rich", "sm_deploy", *sys.stdlib_module_names}


def imported(path: Path) -> set[str]:
    """Top-level names that a file imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
    return found


def test_it_needs_boto3_click_and_rich_only() -> None:
    files = list(FOLDER.glob("*.py"))
    assert len(files) > 20
    assert set().union(*map(imported, files)) <= ALLOWED


def test_every_name_of_the_api_is_documented() -> None:
    members = {name: getattr(api, name) for name in api.__all__}
    undocumented = [name for name, each in members.items() if callable(each) and not each.__doc__]
    assert undocumented == []


def test_the_server_accepts_what_is_sent(make_options: Callable[..., EndpointOptions]) -> None:
    hub = make_options(
        model="org/m", revision="abc", environment={"HF_TOKEN": "hf_x", "MAX_TOTAL_TOKENS": "4096"}
    )
    settings = resolve(["serve"], container_environment(hub, 4))
    assert (settings.model_id, settings.revision, settings.num_shard) == ("org/m", "abc", 4)
    assert (settings.hf_token, settings.max_total_tokens) == ("hf_x", 4096)
    artefact = make_options(
        model="s3://b/m/",
        network=Network(isolated=True),
        asynchronous=AsyncOptions(output="s3://bucket/o", invocation_seconds=1800),
    )
    settings = resolve(["serve"], container_environment(artefact, None))
    assert settings.model_id == "/opt/ml/model"
    assert settings.seconds_for(stream=False) == settings.seconds_for(stream=True) == 1790
