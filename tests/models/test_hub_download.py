"""Downloads, against a small server that speaks the Hub's API: what arrives, what goes wrong."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType
from gguf_checkpoints import write_file
from hub_server import COMMIT, OLD_COMMIT, Hub, served
from safetensors.torch import save

from local_mode.tiny_model import DEMO_MODEL
from serving.errors import StartupError
from serving.models import hub_download
from serving.models.hub_download import HubModel

WEIGHTS = save({"a": torch.arange(50_000.0)})
FILES = {
    "config.json": b"{}",
    "tokenizer.json": b'{"model": 1}',
    "chat_template.jinja": b"{{ messages }}",
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": b"pickled",
    "consolidated.safetensors": b"once more",
    "modeling_own.py": b"code",
    "onnx/config.json": b"{}",
}
TOKEN = "hf_secretsecret"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with served(Hub(dict(FILES), old_files={**FILES, "config.json": b'{"old": true}'})) as hub:
        yield hub


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def download(
    hub: Hub, cache: Path, *arguments: str, model: str = "org/m", **environ: str
) -> subprocess.CompletedProcess[str]:
    """Run `text-generation-server download-weights`; the Hub library reads its variables."""
    inherited = {key: v for key, v in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    return subprocess.run(
        [sys.executable, "-m", "serving.tools.server_command", "download-weights", model,
         "--huggingface-hub-cache", str(cache), *arguments],
        capture_output=True, text=True, check=False,
        env={**inherited, "HF_HOME": str(cache), "HF_ENDPOINT": hub.url, **environ},
    )  # fmt: skip


def snapshot(cache: Path, commit: str = COMMIT) -> Path:
    return cache / "models--org--m" / "snapshots" / commit


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def parts(cache: Path) -> list[Path]:
    return list(cache.rglob("*.incomplete"))


def test_what_a_model_needs_is_downloaded(hub: Hub, cache: Path) -> None:
    done = download(hub, cache)
    assert done.returncode == 0, done.stderr
    wanted = {"config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors"}
    assert names(snapshot(cache)) == wanted
    assert (snapshot(cache) / "model.safetensors").read_bytes() == WEIGHTS
    assert f"the model is in {snapshot(cache)}" in done.stdout


def test_code_comes_only_if_it_is_trusted(hub: Hub, cache: Path) -> None:
    download(hub, cache, "--trust-remote-code")
    assert "modeling_own.py" in names(snapshot(cache))


@pytest.mark.parametrize("revision", [OLD_COMMIT, "v0"])
def test_a_revision(hub: Hub, cache: Path, revision: str) -> None:
    hub.revisions["v0"] = OLD_COMMIT
    assert download(hub, cache, "--revision", revision).returncode == 0
    assert (snapshot(cache, OLD_COMMIT) / "config.json").read_bytes() == b'{"old": true}'


def test_a_second_start_downloads_nothing(hub: Hub, cache: Path) -> None:
    download(hub, cache)
    hub.log.clear()
    assert download(hub, cache).returncode == 0
    assert hub.asked("GET", "model.safetensors") == []


def test_a_broken_download_is_resumed(hub: Hub, cache: Path) -> None:
    weights = save({"a": torch.arange(6_000_000.0)})
    hub.files["model.safetensors"] = weights
    hub.faults["model.safetensors"] = ["cut"]
    done = download(hub, cache)
    assert done.returncode == 0, done.stderr
    assert (snapshot(cache) / "model.safetensors").read_bytes() == weights
    received = 10 * 2**20  # the Hub library keeps whole pieces of 10 MiB
    assert hub.asked("GET", "model.safetensors") == ["", f"bytes={received}-"]


@pytest.mark.parametrize("where", ["api", "model.safetensors"])
def test_an_overloaded_hub_is_asked_again(hub: Hub, cache: Path, where: str) -> None:
    hub.faults[where] = [503, 503] if where == "api" else [503]
    done = download(hub, cache)
    assert done.returncode == 0, done.stderr
    assert "attempt 1 of 5 failed" in done.stdout
    assert "503" in done.stdout
    assert (snapshot(cache) / "model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_wrong_checksum_is_noticed_and_the_file_fetched_again(
    hub: Hub, cache: Path, name: str
) -> None:
    hub.faults[name] = ["corrupt"]
    done = download(hub, cache)
    assert done.returncode == 0, done.stderr
    assert f"{name} arrived with a wrong checksum" in done.stdout
    assert (snapshot(cache) / name).read_bytes() == FILES[name]


def test_a_private_model_needs_the_token(hub: Hub, cache: Path) -> None:
    hub.token = TOKEN
    done = download(hub, cache)
    assert done.returncode == 1
    assert "error: org/m is not on the Hub, or is private" in done.stderr
    assert "HF_TOKEN" in done.stderr
    done = download(hub, cache, HF_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    assert TOKEN not in done.stdout + done.stderr


def test_a_wrong_token_is_not_printed(hub: Hub, cache: Path) -> None:
    hub.token = TOKEN
    done = download(hub, cache, HF_TOKEN="hf_wrongwrong")
    assert done.returncode == 1
    assert "hf_wrongwrong" not in done.stdout + done.stderr


def test_a_gated_model(hub: Hub, cache: Path) -> None:
    hub.gated = True
    done = download(hub, cache)
    assert done.returncode == 1
    assert "error: org/m is gated" in done.stderr
    assert "accept its terms" in done.stderr


def test_an_unknown_revision(hub: Hub, cache: Path) -> None:
    done = download(hub, cache, "--revision", "nowhere")
    assert done.returncode == 1
    assert "error: org/m at revision nowhere is not on the Hub" in done.stderr


def test_a_hub_that_vanished_leaves_the_cache(hub: Hub, cache: Path) -> None:
    download(hub, cache)
    hub.token = TOKEN  # as good as gone for somebody without it
    done = download(hub, cache)
    assert done.returncode == 0, done.stderr
    assert "using the cached org/m" in done.stdout


def test_offline_the_cache_is_used_without_a_request(hub: Hub, cache: Path) -> None:
    download(hub, cache)
    hub.log.clear()
    assert download(hub, cache, HF_HUB_OFFLINE="1").returncode == 0
    assert hub.log == []


def test_offline_with_an_empty_cache(hub: Hub, cache: Path) -> None:
    done = download(hub, cache, HF_HUB_OFFLINE="1")
    assert done.returncode == 1
    assert "org/m is not in the local cache, and the Hub is offline" in done.stderr
    assert hub.log == []


def test_a_part_of_a_model_in_the_cache_is_no_model(hub: Hub, cache: Path) -> None:
    download(hub, cache)
    (snapshot(cache) / "model.safetensors").unlink()
    done = download(hub, cache, HF_HUB_OFFLINE="1")
    assert done.returncode == 1
    assert "org/m is not in the local cache" in done.stderr


def test_settings_of_older_hub_libraries_are_tolerated(hub: Hub, cache: Path) -> None:
    done = download(hub, cache, HF_HUB_ENABLE_HF_TRANSFER="1", HF_XET_HIGH_PERFORMANCE="0")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("listed", "cause"),
    [
        (("config.json", "m-Q4.gguf", "m-Q8.gguf"), "2 GGUF models (there are: m-Q4.gguf, m-Q8"),
        (("adapter_config.json", "adapter_model.safetensors"), "a LoRA adapter"),
        (("consolidated.00.pth", "params.json"), "publisher's own form"),
        (("config.json", "README.md"), "no *.safetensors (found: README.md, config.json)"),
    ],
)
def test_another_kind_of_repository_is_refused_before_anything_is_downloaded(
    hub: Hub, cache: Path, listed: tuple[str, ...], cause: str
) -> None:
    hub.files.clear()
    hub.files.update(dict.fromkeys(listed, b"{}"))
    done = download(hub, cache)
    assert done.returncode == 1
    assert cause in done.stderr
    assert not [path for method, path, _ in hub.log if "/resolve/" in path]


def test_pickled_weights_are_converted(hub: Hub, cache: Path, tmp_path: Path) -> None:
    torch.save({"a": torch.arange(6.0)}, tmp_path / "pytorch_model.bin")
    del hub.files["model.safetensors"]
    hub.files["pytorch_model.bin"] = (tmp_path / "pytorch_model.bin").read_bytes()
    done = download(hub, cache)
    assert done.returncode == 0, done.stderr
    assert {"model.safetensors", "pytorch_model.bin"} <= names(snapshot(cache))
    hub.log.clear()
    assert download(hub, cache, HF_HUB_OFFLINE="1").returncode == 0


def test_one_of_several_gguf_files(hub: Hub, cache: Path, tmp_path: Path) -> None:
    """Nothing else is downloaded, and a later start finds it without the Hub."""
    tokenizer = {"tokenizer.huggingface.json": (DEMO_MODEL / "tokenizer.json").read_text()}
    write_file(tmp_path / "m.gguf", "llama", DEMO_MODEL, GGMLQuantizationType.Q8_0, tokenizer)
    hub.files.clear()
    hub.files |= {"Q8_0/m-Q8_0.gguf": (tmp_path / "m.gguf").read_bytes(), "m-Q4_0.gguf": b"GGUF",
                  "README.md": b"", "config.json": b"{}"}  # fmt: skip
    done = download(hub, cache, model="org/m:Q8_0")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in snapshot(cache).rglob("*.*")] == ["m-Q8_0.gguf"]
    prepared = Path(done.stdout.strip().rpartition(" ")[2])
    assert prepared.parent == cache / "text-generation-serving"
    assert (prepared / "m-Q8_0.gguf").read_bytes() == hub.files["Q8_0/m-Q8_0.gguf"]
    hub.log.clear()
    done = download(hub, cache, model="org/m:Q8_0", HF_HUB_OFFLINE="1")
    assert done.stdout.strip().endswith(str(prepared))
    assert hub.log == []


def test_without_conversion_pickled_weights_are_no_weights(hub: Hub, cache: Path) -> None:
    del hub.files["model.safetensors"]
    done = download(hub, cache, "--no-auto-convert")
    assert done.returncode == 1
    assert "org/m has pickled weights only (pytorch_model.bin)" in done.stderr


# --- the disk ------------------------------------------------------------------------------------


@pytest.fixture
def in_process(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The Hub library of this process asks our server, and does not wait between attempts."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        hub.url + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr(hub_download, "FIRST_PAUSE", 0.0)
    return hub


@pytest.mark.usefixtures("in_process")
def test_too_little_space_is_noticed_before_the_download(
    hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(StartupError, match=r"has 0\.00 GB of free space, the files need") as caught:
        hub_download.download(HubModel("org/m", cache=str(cache)))
    assert "larger volume" in caught.value.remedy
    assert hub.asked("GET", "model.safetensors") == []


@pytest.mark.usefixtures("in_process")
def test_a_disk_that_fills_up_is_named_and_nothing_partial_is_left(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.file_download as library

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(library, "http_get", full)
    with pytest.raises(StartupError, match="No space left on device"):
        hub_download.download(HubModel("org/m", cache=str(cache)))
    assert parts(cache) == []


@pytest.mark.usefixtures("in_process")
def test_a_lasting_fault_ends_after_five_attempts(hub: Hub, cache: Path) -> None:
    hub.faults["model.safetensors"] = ["corrupt"] * 9
    with pytest.raises(StartupError, match=r"model\.safetensors arrived with a wrong checksum"):
        hub_download.download(HubModel("org/m", cache=str(cache)))
    assert len(hub.asked("GET", "model.safetensors")) == 5
    assert not (snapshot(cache) / "model.safetensors").exists()
    assert parts(cache) == []


@pytest.mark.usefixtures("in_process")
def test_what_a_killed_download_left_is_removed_when_it_is_old(cache: Path) -> None:
    blobs = cache / "models--org--m" / "blobs"
    blobs.mkdir(parents=True)
    old, young = blobs / f"{COMMIT}.0123abcd.incomplete", blobs / f"{COMMIT}.4567abcd.incomplete"
    for path in (old, young):
        path.write_bytes(b"part")
    os.utime(old, (time.time() - 7200,) * 2)
    hub_download.download(HubModel("org/m", cache=str(cache)))
    assert parts(cache) == [young]
