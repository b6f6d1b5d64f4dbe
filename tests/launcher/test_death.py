"""Which death explains the others, and what is said of it."""

from serving.launcher.death import Death, root_cause

KILLED = Death("rank 1", "ended with signal SIGKILL", "serving", "look above")
COMPLAINT = Death("rank 0", "a neighbour does not answer", "serving", "look", own_words=True)
OUT_OF_MEMORY = Death("rank 2", "no memory", "warm-up", "less", own_words=True, out_of_memory=True)


def test_a_killed_rank_explains_a_complaint() -> None:
    assert root_cause([COMPLAINT, KILLED]) is KILLED


def test_want_of_memory_explains_everything() -> None:
    assert root_cause([COMPLAINT, KILLED, OUT_OF_MEMORY]) is OUT_OF_MEMORY


def test_the_first_of_equal_ones_counts() -> None:
    other = Death("rank 3", "a neighbour has gone", "serving", "look", own_words=True)
    assert root_cause([COMPLAINT, other]) is COMPLAINT


def test_no_death_has_no_cause() -> None:
    assert root_cause([]) is None


def test_sentences() -> None:
    assert str(KILLED) == "rank 1 ended with signal SIGKILL"
    assert str(COMPLAINT) == "rank 0 failed: a neighbour does not answer"


def test_the_only_engine_of_a_server_needs_no_name_in_its_own_words() -> None:
    alone = Death("the engine", "tensor x is missing", "weights", "load it", own_words=True)
    assert str(alone.startup_error()) == (
        "start-up failed in phase 'weights': tensor x is missing. Remedy: load it"
    )
    assert COMPLAINT.startup_error().cause == "rank 0 failed: a neighbour does not answer"
