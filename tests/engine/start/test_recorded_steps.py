"""Recorded decode steps are used where they come out right, on all ranks, and only there."""

from collections.abc import Callable

import pytest
import torch
from engine_rig import Rig, load_decoder
from op_recorder import OpRecorder
from sequence_rig import BLOCK_SIZE

from local_mode.tiny_model import write_checkpoint
from serving.engine.start.recorded_steps import use_if_right
from serving.engine.step.decode_graphs import AllCan, Recorder, Replay, SparePlace
from serving.kernels.torch_ops import TorchOps
from serving.models.decoder import Decoder

Recording = Callable[[Callable[[], torch.Tensor]], tuple[torch.Tensor, Replay]]


class RecordsBy:
    """A recorder that is a function. See `Recorder`."""

    def __init__(self, record: Recording) -> None:
        self.record = record


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    path = tmp_path_factory.mktemp("llama")
    write_checkpoint("llama", path)
    return load_decoder(path, TorchOps())


def use(decoder: Decoder, recorder: Recorder, all_can: AllCan = bool) -> Rig:
    """A runner that was asked to record steps of one and two rows."""
    rig = Rig(decoder, TorchOps())
    spare = SparePlace(rig.max_rows, rig.num_blocks, BLOCK_SIZE)
    use_if_right(
        rig.runner, lambda: rig.runner.record([1, 2], recorder, spare, rig.longest, all_can)
    )
    return rig


def tokens(rig: Rig) -> list[int]:
    rig.add(0, [5, 6, 7], 6)
    rig.run()
    return rig.tokens[0]


def test_right_ones_are_used(decoder: Decoder, caplog: pytest.LogCaptureFixture) -> None:
    recorder = OpRecorder()
    rig = use(decoder, recorder)
    of_proof = recorder.replays
    assert tokens(rig) == tokens(Rig(decoder, TorchOps()))
    assert (of_proof, recorder.replays) == (2, 2 + 5)
    assert caplog.messages == []


@pytest.mark.parametrize("spoilt", [float("nan"), 1.02, None])
def test_replays_that_are_wrong(
    decoder: Decoder, spoilt: float | None, caplog: pytest.LogCaptureFixture
) -> None:
    """`spoilt`: what logits are multiplied with; None: they stay those of the recording."""

    def record(run: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, Replay]:
        logits = run()
        if spoilt is None:
            return logits, lambda: None
        return logits, lambda: logits.copy_(run() * spoilt)

    rig = use(decoder, RecordsBy(record))
    assert tokens(rig) == tokens(Rig(decoder, TorchOps()))
    (message,) = caplog.messages
    assert message.startswith("decode steps are not recorded: a replay of 2 rows is off by ")


def test_what_cannot_be_recorded(decoder: Decoder, caplog: pytest.LogCaptureFixture) -> None:
    def record(run: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, Replay]:
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")

    rig = use(decoder, RecordsBy(record))
    assert tokens(rig) == tokens(Rig(decoder, TorchOps()))
    assert caplog.messages == [
        "decode steps are not recorded: RuntimeError: "
        "CUDA error: operation not permitted when stream is capturing"
    ]


def test_want_of_memory_is_for_those_who_can_take_less(decoder: Decoder) -> None:
    def record(run: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, Replay]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        use(decoder, RecordsBy(record))


@pytest.mark.parametrize("asked", [0, 1, 2], ids=["a size", "the next size", "the proof"])
def test_no_rank_uses_its_own_where_another_has_none(
    decoder: Decoder, asked: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Each rank asks the others as often, whatever it finds itself: nobody waits for ever."""
    answers = [True] * asked + [False]
    recorder = OpRecorder()
    rig = use(decoder, recorder, lambda own: answers.pop(0))
    assert answers == []
    of_proof = recorder.replays
    tokens(rig)
    assert recorder.replays == of_proof
    assert caplog.messages == ["decode steps are not recorded: another rank could not"]


def test_a_rank_tells_the_others_what_it_cannot(decoder: Decoder) -> None:
    def record(run: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, Replay]:
        raise RuntimeError("not permitted")

    told: list[bool] = []

    def all_can(own: bool) -> bool:
        told.append(own)
        return own

    use(decoder, RecordsBy(record), all_can)
    assert told == [False]
