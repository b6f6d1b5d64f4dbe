"""The private directory of one server."""

import stat
from pathlib import Path

import msgspec
import pytest

from serving.errors import StartupError
from serving.launcher.run_directory import run_directory
from serving.settings import Settings


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_nobody_else_can_read_it() -> None:
    with run_directory(Settings(api_key="secret")) as directory:
        assert mode_of(directory.path) == 0o700
        assert mode_of(directory.settings) == 0o600


def test_it_holds_the_settings_and_a_place_for_metrics() -> None:
    settings = Settings(model_id="m", port=81)
    with run_directory(settings) as directory:
        assert msgspec.json.decode(directory.settings.read_bytes(), type=Settings) == settings
        assert directory.metrics.is_dir()


def test_what_dead_engines_left_is_dropped_group_by_group() -> None:
    with run_directory(Settings()) as directory:
        for epoch in (1, 3):
            directory.rendezvous(0, epoch).touch()
        directory.rendezvous(1, 1).touch()
        gauges = [directory.metrics / f"gauge_livesum_engine-{group}.db" for group in (0, 1)]
        for gauge in gauges:
            gauge.touch()
        directory.forget_rendezvous(0)
        directory.forget_gauges(0)
        assert [path.name for path in directory.path.glob("rendezvous*")] == ["rendezvous-1-1"]
        assert [gauge.exists() for gauge in gauges] == [False, True]


def test_it_is_gone_afterwards_also_after_an_error() -> None:
    with (
        pytest.raises(StartupError, match="the cause"),
        run_directory(Settings()) as directory,
    ):
        raise StartupError("phase", "the cause", "the remedy")
    assert not directory.path.exists()


def test_no_writable_temporary_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    with pytest.raises(StartupError, match="set TMPDIR"), run_directory(Settings()):
        pass
