"""GGUF files of every served architecture: the logits and greedy tokens of transformers."""

import random
from pathlib import Path

import gguf_rig
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from gguf_checkpoints import Made, Row, make
from gguf_rows import ROWS
from rank_group import Answer, Job, run_jobs
from reference import answers, load_reference
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from serving.models.gguf.architectures import ARCHITECTURES

LENGTHS = (37, 1, 64)
NEW_TOKENS = 8
TOLERANCE = 1e-3
BLOCKS = [Type.F16, Type.BF16, Type.Q8_0, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1]
SUPER_BLOCKS = [Type.Q4_K, Type.Q5_K, Type.Q6_K]
# Rows are whole super-blocks.
WIDE = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 2}
QUANTIZED = [Row("llama", "llama"), Row("qwen2moe", "qwen2_moe", {"moe_intermediate_size": 256})]


ON_TWO_RANKS = [
    (QUANTIZED[0], Type.Q4_K),
    (QUANTIZED[1], Type.Q8_0),
    (Row("falcon", "falcon-new"), Type.F16),
    (Row("phi3", "phi3", {"intermediate_size": 128}), Type.Q5_1),
]
# transformers reads these, too; it has no mapping for the others, or does not undo what was done.
READ_BY_TRANSFORMERS = {
    row.name
    for row in ROWS
    if row.arch not in ("gemma", "command-r", "cohere2", "olmo2", "granite")
} - {
    "llama-mixtral", "llama-mistral-full", "qwen2moe-qwen2_moe-mixed", "falcon-falcon-new",
    "falcon-falcon-2",
}  # fmt: skip


def prompts_of(checkpoint: Path) -> list[list[int]]:
    source = random.Random(checkpoint.parent.name)
    return [[source.randrange(3, 320) for _ in range(n)] for n in LENGTHS]


def compare(made: Made, found: list[Answer]) -> None:
    """What was found for the prompts, with what transformers makes of the checkpoint."""
    model = load_reference(made.checkpoint)
    for one, other in zip(found, answers(model, prompts_of(made.checkpoint), found), strict=True):
        assert one.tokens == other.tokens
        assert (one.logits - other.logits).abs().max() < TOLERANCE


def check(made: Made, directory: Path) -> None:
    """All prompts in one mixed batch."""
    rig = gguf_rig.rig(gguf_rig.prepared(made.file, directory))
    compare(made, rig.answers(prompts_of(made.checkpoint), NEW_TOKENS))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_an_architecture(row: Row, tmp_path: Path) -> None:
    made = make(row, tmp_path)
    check(made, tmp_path)
    if row.name in READ_BY_TRANSFORMERS:
        check_file(made)


def check_file(made: Made) -> None:
    """The file is like those of llama.cpp: transformers reads the checkpoint's tensors from it."""
    model = load_reference(made.checkpoint)
    found = load_gguf_checkpoint(str(made.file), return_tensors=True, model_to_load=model)[
        "tensors"
    ]
    wanted = model.state_dict()
    common = wanted.keys() & found.keys()
    assert len(common) > len(wanted) / 2
    for name in common:
        torch.testing.assert_close(torch.as_tensor(found[name]), wanted[name])


@pytest.mark.parametrize(
    ("row", "kind"),
    [(QUANTIZED[0], kind) for kind in BLOCKS + SUPER_BLOCKS]
    + [(QUANTIZED[1], kind) for kind in (Type.Q8_0, Type.Q4_0, Type.Q6_K)],
    ids=lambda one: one.name,
)
def test_a_type_of_tensors(row: Row, kind: Type, tmp_path: Path) -> None:
    made = make(row, tmp_path, kind, **WIDE)
    check(made, tmp_path)


def test_two_ranks(tmp_path: Path) -> None:
    """Heads, groups of blocks and experts are cut where ranks meet."""
    jobs, models = [], []
    for row, kind in ON_TWO_RANKS:
        directory = tmp_path / row.name
        models.append(make(row, directory, kind, **(WIDE if row in QUANTIZED else {})))
        prompts = prompts_of(models[-1].checkpoint)
        jobs.append(Job(gguf_rig.prepared(models[-1].file, directory), prompts, NEW_TOKENS))
    for made, found in zip(models, run_jobs("decoder", jobs, tmp_path), strict=True):
        compare(made, found)


def test_every_architecture_has_a_row() -> None:
    assert {row.arch for row in ROWS} == set(ARCHITECTURES)
