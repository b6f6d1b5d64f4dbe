"""When a repository's own code may run."""

from pathlib import Path

import pytest

from serving.errors import StartupError
from serving.models.remote_code import check_remote_code
from serving.settings import Settings

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def settings(
    revision: str | None, model_id: str = "org/m", trust: bool = True, unpinned: bool = False
) -> Settings:
    return Settings(
        model_id=model_id,
        revision=revision,
        trust_remote_code=trust,
        trust_unpinned_code=unpinned,
    )


def test_a_commit_is_accepted() -> None:
    check_remote_code(settings(COMMIT))


@pytest.mark.parametrize("revision", [None, "main", "v1.0", COMMIT[:-1], COMMIT.upper()])
def test_what_can_move_is_refused(revision: str | None) -> None:
    with pytest.raises(StartupError, match=rf"`revision` {revision or 'main'} is not a commit"):
        check_remote_code(settings(revision))
    check_remote_code(settings(revision, unpinned=True))


def test_a_local_directory_is_pinned_by_its_owner(tmp_path: Path) -> None:
    check_remote_code(settings(None, str(tmp_path)))


def test_code_without_trust_is_refused() -> None:
    with pytest.raises(StartupError) as caught:
        check_remote_code(settings(COMMIT, trust=False, unpinned=True))
    assert "--trust-remote-code" in caught.value.remedy
