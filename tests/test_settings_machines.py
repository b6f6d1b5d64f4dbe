"""Several machines, as flags or as the variables of those that start them."""

import pytest

from serving.settings import Settings, SettingsError
from serving.settings_sources import resolve

TWO = ["--nnodes", "2", "--master-addr", "10.0.0.1"]


def error_of(argv: list[str], environ: dict[str, str] | None = None) -> str:
    with pytest.raises(SettingsError) as caught:
        resolve(argv, environ or {})
    assert caught.value.exit_code == 1
    return str(caught.value)


def machines(settings: Settings) -> tuple[int, int, str, int]:
    return settings.nnodes, settings.node_rank, settings.master_addr, settings.master_port


@pytest.mark.parametrize(
    ("argv", "gpus", "num_shard"),
    [
        ([], "", 2),
        ([], "0,1,2,3", 8),
        (["--num-shard", "4"], "0,1,2,3", 4),
        (["--num-shard", "4"], "", 4),
        (["--sharded", "true"], "0", 2),
    ],
)
def test_num_shard_counts_all_machines(argv: list[str], gpus: str, num_shard: int) -> None:
    assert resolve([*TWO, *argv], {"CUDA_VISIBLE_DEVICES": gpus}).num_shard == num_shard


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["--nnodes", "2"], "`nnodes` is 2 (--nnodes), which needs --master-addr"),
        ([*TWO, "--node-rank", "2"], "`node_rank` must be < `nnodes`, which is 2. Given: 2"),
        ([*TWO, "--num-shard", "3"], "a multiple of `nnodes`, which is 2. Given: 3"),
        ([*TWO, "--num-shard", "1"], "a multiple of `nnodes`, which is 2. Given: 1"),
        ([*TWO, "--num-replicas", "2"], "`num_replicas` must be 1 with `nnodes` 2: "),
        ([*TWO, "--sharded", "false"], "`sharded` is false (--sharded), but `nnodes` is 2"),
        ([*TWO, "--master-port", "0"], "`master_port` must be > 0 with `nnodes` 2. Given: 0"),
    ],
)
def test_refusals(argv: list[str], text: str) -> None:
    assert text in error_of(argv)


def test_devices_are_counted_on_each_machine() -> None:
    environ = {"CUDA_VISIBLE_DEVICES": "0"}
    assert resolve([*TWO, "--num-shard", "2"], environ).num_shard == 2
    text = "needs 2 devices on each of 2 machines; there are 1"
    assert text in error_of([*TWO, "--num-shard", "4"], environ)


@pytest.mark.parametrize("ports", ["80", "a-b", "5-4", "0-9", "1-65536", "1-2-3"])
def test_a_port_range_that_is_none(ports: str) -> None:
    text = f"`SAGEMAKER_SAFE_PORT_RANGE` must be FIRST-LAST, two ports. Given: {ports}"
    assert text in error_of(TWO, {"SAGEMAKER_SAFE_PORT_RANGE": ports})


@pytest.mark.parametrize(
    "environ",
    [
        {"NNODES": "3", "NODE_RANK": "2"},
        {"PET_NNODES": "3", "PET_NODE_RANK": "2"},
        {"GROUP_WORLD_SIZE": "3", "GROUP_RANK": "2"},
        # What torchrun tells its processes is what holds, whatever it was asked for.
        {"GROUP_WORLD_SIZE": "3", "GROUP_RANK": "2", "PET_NNODES": "4", "PET_NODE_RANK": "1",
         "NNODES": "5", "NODE_RANK": "0"},
    ],
)  # fmt: skip
def test_torchrun(environ: dict[str, str]) -> None:
    given = environ | {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "1234"}
    assert machines(resolve([], given)) == (3, 2, "10.0.0.1", 1234)


def test_torchrun_that_listens_itself_leaves_the_next_port() -> None:
    environ = {"MASTER_PORT": "1234", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    settings = resolve([], environ)
    assert settings.master_port == 1235
    assert settings.origins["master_port"] == "MASTER_PORT + 1"
    assert resolve(["--master-port", "99"], environ).master_port == 99
    environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"
    assert resolve([], environ).master_port == 1234


def test_leader_worker_set() -> None:
    environ = {"LWS_LEADER_ADDRESS": "a-0.a", "LWS_GROUP_SIZE": "4", "LWS_WORKER_INDEX": "3"}
    assert machines(resolve([], environ)) == (4, 3, "a-0.a", 29500)


def test_flags_win_over_variables() -> None:
    environ = {"GROUP_WORLD_SIZE": "3", "GROUP_RANK": "2", "MASTER_ADDR": "10.0.0.1"}
    argv = ["--nnodes", "2", "--node-rank", "1", "--master-addr", "10.0.0.2"]
    assert machines(resolve(argv, environ))[:3] == (2, 1, "10.0.0.2")
