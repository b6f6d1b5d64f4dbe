"""Every quantized form of a Llama, on one rank and on two, against its dequantized weights."""

from collections.abc import Callable
from pathlib import Path

import pytest
from quantized_rig import Case, Results, compare
from quantized_variants import MARLIN, OTHERS
from written_checkpoint import is_linear, write_quantized
from written_integers import Gptq
from written_matrix import Writer

from local_mode.tiny_model import write_checkpoint

ROUNDED = ("int8 activations", "int8 static activations, one scale")
GPTQ: dict[str, Writer] = {
    f"gptq {bits} bits, {name}": Gptq(bits, size, ordered, symmetric, version)
    for bits in (2, 3, 4, 8)
    for name, size, ordered, symmetric, version in (
        ("v1", 32, False, True, 1),
        ("v1, act-order, asymmetric", 32, True, False, 1),
        ("v2, asymmetric, one group", -1, False, False, 2),
        ("v2, act-order", 32, True, True, 2),
    )
} | {"gptq, ragged groups": Gptq(4, 64, False, False)}
WIDE = {"hidden_size": 256, "intermediate_size": 384, "num_hidden_layers": 2}  # for Marlin's tiles
WRITERS = GPTQ | OTHERS | MARLIN
SPECIAL: dict[str, tuple[Writer, Callable[[str], bool]]] = {
    "gptq, output head": (Gptq(lm_head=True), lambda name: "embed" not in name),
    "gptq, some layers plain": (Gptq(), lambda name: is_linear(name) and "k_proj" not in name),
}


def make(directory: Path) -> list[Case]:
    """All cases, from one small model and a wide one."""
    small = write_checkpoint("llama", directory / "small")
    wide = write_checkpoint("llama", directory / "wide", **WIDE)
    cases = [
        Case(name, write_quantized(wide if name in MARLIN else small, directory / name, writer),
             rounds=name in ROUNDED)
        for name, writer in WRITERS.items()
    ]  # fmt: skip
    return cases + [
        Case(name, write_quantized(small, directory / name, writer, chosen))
        for name, (writer, chosen) in SPECIAL.items()
    ]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    directory = tmp_path_factory.mktemp("quantized")
    return compare(make(directory), directory)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("name", [*WRITERS, *SPECIAL])
def test_ranks_give_the_tokens_of_transformers(results: Results, name: str, ranks: int) -> None:
    results[name][ranks].check(name in ROUNDED)
