"""Families with layouts of their own: quantized checkpoints, and quantizing while loading.

On one rank and on two, against transformers with the same weights.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import quantized_variants
from quantized_oracle import ONLINE
from quantized_rig import Case, Results, compare
from written_checkpoint import is_linear, write_quantized
from written_integers import Gptq

from local_mode import tiny_model, tiny_variants_mamba, tiny_variants_t5

TRANSPOSED = ("gpt2",)  # matrices [in, out]
DECODERS = (
    "llama", "gpt2", "gpt_neox", "falcon-new", "phi3", "mixtral", "deepseek_v2", "gemma2",
)  # fmt: skip
OTHERS = {"mamba": "state_space", "t5": "encoder_decoder", "flan-t5": "encoder_decoder"}
# Which of these multiply without calling a module, whose input could be rounded: stacked experts,
# and Mamba's steps. In the gated T5, one activation that is rounded otherwise moves all logits.
NOT_ROUNDED = ("mixtral", "deepseek_v2", "mamba", "flan-t5")
ALL_SCHEMES = ("llama", "gpt2", "mixtral", "t5")  # others get one of each kind
ONE_OF_EACH = ("int8", "fp8", "bitsandbytes-nf4")
BLOCKED = ("bitsandbytes-nf4", "bitsandbytes-fp4")
GPTQ = Gptq(group_size=8, act_order=True, symmetric=False)
# Parts of fused matrices that begin inside a block, experts, and rows that are brought into halves.
STORED = (
    ("phi3", "fp8, blocks"), ("phi3", "bitsandbytes nf4, double"), ("phi3", "awq"),
    ("gpt_neox", "fp8, blocks"), ("falcon-new", "bitsandbytes fp4, blocks of 128"),
    ("mixtral", "awq"), ("mixtral", "fp8, blocks"), ("mixtral", "packed 4 bits, act-order"),
    ("deepseek_v2", "fp8, blocks"), ("deepseek_v2", "bitsandbytes"), ("gpt2", "fp8, channels"),
)  # fmt: skip


def write(family: str, directory: Path) -> Path:
    makers: dict[str, Callable[..., Path]] = {
        "decoder": tiny_model.write_checkpoint,
        "state_space": tiny_variants_mamba.write_checkpoint,
        "encoder_decoder": tiny_variants_t5.write_checkpoint,
    }
    return makers[OTHERS.get(family, "decoder")](family, directory)


def is_quantized(module: str) -> bool:
    """Not what GPTQ cannot pack: 20 outputs."""
    return is_linear(module) and not module.endswith("x_proj")


def schemes(family: str) -> list[str]:
    names = ["gptq", *(ONLINE if family in ALL_SCHEMES else ONE_OF_EACH)]
    if family in NOT_ROUNDED:
        names.remove("int8")
    if family == "deepseek_v2":  # a block's rows are of another head once they are in halves
        names = [name for name in names if name not in BLOCKED]
    return names


ROWS = [(family, scheme) for family in (*DECODERS, *OTHERS) for scheme in schemes(family)]
ROWS += STORED
WRITERS = {"gptq": GPTQ} | quantized_variants.OTHERS


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    directory = tmp_path_factory.mktemp("families")
    plain = {family: write(family, directory / family) for family in (*DECODERS, *OTHERS)}
    cases = []
    for family, scheme in ROWS:
        path, transposed = plain[family], family in TRANSPOSED
        kind = OTHERS.get(family, "decoder")
        name = f"{family} {scheme}"
        if scheme == "gptq" or (family, scheme) in STORED:
            write_quantized(path, directory / name, WRITERS[scheme], is_quantized, transposed)
            cases.append(Case(name, directory / name, kind=kind))
        else:
            cases.append(Case(name, path, scheme, scheme == "int8", kind, transposed))
    return compare(cases, directory)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(("family", "scheme"), ROWS)
def test_ranks_give_the_tokens_of_transformers(
    results: Results, family: str, scheme: str, ranks: int
) -> None:
    results[f"{family} {scheme}"][ranks].check(scheme == "int8")
