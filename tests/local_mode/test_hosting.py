"""How servers are started and stopped: commands, model files, objects, SIGKILL."""

import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import psutil
import pytest

from local_mode.errors import LocalModeError
from local_mode.hosting.container import Container, Launch, ServerSpec
from local_mode.hosting.model_files import model_directory
from local_mode.hosting.runners import DockerRunner, ProcessRunner, choose_runner
from local_mode.hosting.server import Server, State
from local_mode.objects import ObjectStore
from tests.local_mode.sandbox import FAKE, QUICK, wait_for

COMMAND = (sys.executable, str(FAKE), "serve")
MODEL = Path("/models/m")


# --- commands ------------------------------------------------------------------------------------


def test_docker_is_told_what_sagemaker_would_do() -> None:
    runner = DockerRunner({"PATH": "/bin"}, gpus="all", shm_size="2g")
    environment = {"HF_TOKEN": "secret", "HF_MODEL_ID": "/opt/ml/model"}
    launch = runner.launch(ServerSpec("e", "image:1", environment, MODEL), 8123)
    command = " ".join(launch.command)
    assert command.startswith("docker run --rm --name local-endpoint-e-")
    assert command.endswith("--env HF_TOKEN --env HF_MODEL_ID image:1 serve")
    for part in (
        "--publish 127.0.0.1:8123:8080", "--shm-size 2g", "--gpus all",
        "--volume /models/m:/opt/ml/model:ro",
    ):  # fmt: skip
        assert part in command
    assert "secret" not in command
    assert launch.environ == {"PATH": "/bin", **environment}
    assert launch.kill == ("docker", "kill", launch.command[4])


def test_variables_of_the_docker_command_stay_its_own() -> None:
    launch = DockerRunner({"PATH": "/bin"}).launch(ServerSpec("e", "i", {"PATH": "/opt/bin"}), 1)
    assert "PATH=/opt/bin" in launch.command
    assert launch.environ == {"PATH": "/bin"}


def test_an_image_that_was_named_wins() -> None:
    launch = DockerRunner({}, image="mine").launch(ServerSpec("e", "theirs"), 1)
    assert launch.command[-2:] == ("mine", "serve")


def test_a_process_finds_the_mount_where_it_lies() -> None:
    environment = {
        "HF_MODEL_ID": "/opt/ml/model",
        "OTHER": "/opt/ml/model/part",
        "X": "/opt/ml/models",
    }
    launch = ProcessRunner({}, COMMAND).launch(ServerSpec("e", "i", environment, MODEL), 1)
    assert launch.environ["HF_MODEL_ID"] == "/models/m"
    assert launch.environ["OTHER"] == "/models/m/part"
    assert launch.environ["X"] == "/opt/ml/models"


def test_a_process_serves_a_mount_that_no_variable_names() -> None:
    launch = ProcessRunner({}, COMMAND).launch(ServerSpec("e", "i", {}, MODEL), 8123)
    assert launch.environ["HF_MODEL_ID"] == "/models/m"
    assert launch.environ["SAGEMAKER_BIND_TO_PORT"] == "8123"


def test_a_process_gets_little_of_the_users_environment() -> None:
    users = {"PATH": "/bin", "HF_TOKEN": "secret", "MAX_BATCH_SIZE": "1", "https_proxy": "p"}
    launch = ProcessRunner(users, COMMAND).launch(ServerSpec("e", "i", {"PORT": "1"}), 8123)
    assert {"PATH": "/bin", "https_proxy": "p", "PORT": "1"}.items() <= launch.environ.items()
    assert not {"HF_TOKEN", "MAX_BATCH_SIZE"} & launch.environ.keys()


def fake_docker(folder: Path, exit_code: int) -> Path:
    program = folder / "docker"
    program.write_text(f"#!/bin/sh\nexit {exit_code}\n")
    program.chmod(0o755)
    return folder


@pytest.mark.parametrize(("exit_code", "kind"), [(0, "docker"), (1, "process")])
def test_docker_is_chosen_where_it_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exit_code: int, kind: str
) -> None:
    monkeypatch.setenv("PATH", str(fake_docker(tmp_path, exit_code)))
    assert choose_runner("auto", "", os.environ).name == kind
    assert choose_runner("process", "", os.environ).name == "process"


def running_docker(folder: Path) -> dict[str, str]:
    """An environment whose `docker run` starts the fake container, and `docker kill` is noted."""
    program = folder / "docker"
    program.write_text(
        "#!/bin/sh\n"
        f'echo "$@" >> {folder}/calls\n'
        '[ "$1" = kill ] && exit 0\n'
        "export SAGEMAKER_BIND_TO_PORT=$(expr \"$*\" : '.*--publish 127.0.0.1:\\([0-9]*\\):8080')\n"
        f"exec {sys.executable} {FAKE} serve\n"
    )
    program.chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


def test_a_container_of_docker_is_served_and_stopped(tmp_path: Path) -> None:
    runner = DockerRunner(running_docker(tmp_path))
    server = Server(ServerSpec("e", "image:1"), runner, QUICK, tmp_path / "log")
    server.start()
    assert server.wait(), server.failure
    server.stop()
    (call,) = (tmp_path / "calls").read_text().splitlines()
    assert call.endswith("image:1 serve")  # no `docker kill`: SIGTERM was enough


def test_a_container_of_docker_that_does_not_stop_is_killed(tmp_path: Path) -> None:
    runner = DockerRunner(running_docker(tmp_path))
    spec = ServerSpec("e", "image:1", {"FAKE": "stubborn"})
    server = Server(spec, runner, QUICK, tmp_path / "log")
    server.start()
    assert server.wait(), server.failure
    server.stop()
    run, kill = (tmp_path / "calls").read_text().splitlines()
    assert kill == f"kill {run.split()[3]}"


# --- model files ---------------------------------------------------------------------------------


def archive(folder: Path) -> Path:
    source = folder / "config.json"
    source.write_text("{}")
    target = folder / "s3" / "bucket" / "model.tar.gz"
    target.parent.mkdir(parents=True)
    with tarfile.open(target, "w:gz") as tar:
        tar.add(source, "config.json")
    return target


def test_an_archive_is_unpacked(tmp_path: Path) -> None:
    archive(tmp_path)
    definition = {"ModelDataUrl": "s3://bucket/model.tar.gz"}
    objects = ObjectStore(tmp_path / "s3")
    directory = model_directory(definition, objects, tmp_path / "scratch")
    assert directory == tmp_path / "scratch"
    assert (directory / "config.json").read_text() == "{}"


def source(uri: str, compression: str = "None") -> dict[str, object]:
    where = {"S3Uri": uri, "S3DataType": "S3Prefix", "CompressionType": compression}
    return {"ModelDataSource": {"S3DataSource": where}}


def test_an_uncompressed_prefix_is_used_where_it_lies(tmp_path: Path) -> None:
    (tmp_path / "s3/bucket/model").mkdir(parents=True)
    objects = ObjectStore(tmp_path / "s3")
    found = model_directory(source("s3://bucket/model/"), objects, tmp_path)
    assert found == tmp_path / "s3/bucket/model"
    assert model_directory(source(f"{found.as_uri()}/"), objects, tmp_path) == found


@pytest.mark.parametrize(
    ("definition", "message"),
    [
        (source("s3://bucket/none/"), "is not there"),
        (source("s3://bucket/model.tar.gz"), "is a file"),
        ({"ModelDataUrl": "s3://bucket/../../x"}, "leads out of"),
        ({"ModelDataUrl": "https://bucket/x"}, "is not an s3:// URI"),
        ({"ModelDataUrl": "s3://bucket/broken.tar.gz"}, "cannot be unpacked"),
    ],
)
def test_unusable_model_data_says_so(
    tmp_path: Path, definition: dict[str, object], message: str
) -> None:
    archive(tmp_path).with_name("broken.tar.gz").write_bytes(b"no archive")
    with pytest.raises(LocalModeError, match=message):
        model_directory(definition, ObjectStore(tmp_path / "s3"), tmp_path / "scratch")


def test_an_archive_cannot_write_elsewhere(tmp_path: Path) -> None:
    target = archive(tmp_path)
    with tarfile.open(target, "w:gz") as tar:
        tar.add(tmp_path / "config.json", "../outside.json")
    with pytest.raises(LocalModeError, match="cannot be unpacked"):
        model_directory(
            {"ModelDataUrl": "s3://bucket/model.tar.gz"},
            ObjectStore(tmp_path / "s3"),
            tmp_path / "scratch",
        )
    assert not (tmp_path / "outside.json").exists()


# --- life ----------------------------------------------------------------------------------------


def container(tmp_path: Path, mode: str) -> Container:
    environ = os.environ | {"FAKE": mode, "SAGEMAKER_BIND_TO_PORT": "0"}
    started = Container(Launch(COMMAND, environ), tmp_path / "log")
    wait_for(lambda: started.last_line() == "serving")
    return started


def test_a_container_is_asked_to_stop(tmp_path: Path) -> None:
    started = container(tmp_path, "")
    started.stop(20)
    assert started.exit_text() == "exit code 0"


def test_a_container_that_does_not_stop_is_killed(tmp_path: Path) -> None:
    started = container(tmp_path, "stubborn")
    begun = time.monotonic()
    started.stop(0.3)
    assert started.exit_text() == "signal SIGKILL"
    assert time.monotonic() - begun >= 0.3


def test_the_startup_wait_is_the_specs(tmp_path: Path) -> None:
    spec = ServerSpec("e", "i", {"FAKE": "never ready"}, startup_seconds=0.5)
    server = Server(spec, ProcessRunner(os.environ, COMMAND), QUICK, tmp_path / "log")
    server.start()
    assert not server.wait()
    assert server.failure == "GET /ping did not answer 200 within 0.5 s; its last line: serving"
    server.stop()
    assert server.state is State.FAILED


def test_a_program_that_is_not_there_is_a_failure(tmp_path: Path) -> None:
    runner = ProcessRunner(os.environ, ("/no/such/program",))
    server = Server(ServerSpec("e", "i"), runner, QUICK, tmp_path / "log")
    server.start()
    assert not server.wait()
    assert server.failure.endswith("/no/such/program: No such file or directory")
    server.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_a_server_ends_with_its_emulator_whatever_ends_that(tmp_path: Path) -> None:
    code = (
        "import os, sys, time, pathlib\n"
        "from local_mode.hosting.container import Container, Launch\n"
        f"launch = Launch({COMMAND!r}, os.environ | {{'SAGEMAKER_BIND_TO_PORT': '0'}})\n"
        f"print(Container(launch, pathlib.Path({str(tmp_path / 'log')!r})).pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen(
        (sys.executable, "-c", code), stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        wait_for(lambda: (tmp_path / "log").read_text() == "serving\n")
        parent.send_signal(signal.SIGKILL)
    wait_for(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == "zombie")
