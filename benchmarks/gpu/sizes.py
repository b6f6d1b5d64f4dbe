"""How much each section measures: as a GPU needs it, and so little that a CPU has it in seconds.

Read by every part. What a model gives (hidden size, heads, vocabulary) is a `Shape` of
`make_model.py`; here is what is asked of it. Next: `setting.py`.
"""

from dataclasses import dataclass

MIB = 2**20
TINY_SHAPE = "tiny"


@dataclass(frozen=True)
class Sizes:
    """Tokens, rows and repetitions of all measurements."""

    # Ceilings: bytes that are copied (so many read, so many written), side of the matrix product.
    copy_bytes: int
    matmul_side: int
    repeats: int  # of a timed kernel
    cold_bytes: int  # data that a kernel must have to find none of it in the cache
    # Kernels.
    decodes: tuple[tuple[int, int], ...]  # rows, context of each
    prompt: int  # tokens of the longest
    prompts: int  # pieces that many short ones divide it into
    cached: int  # of the prompt, where it continues one
    token_counts: tuple[int, ...]  # of elementwise operations
    sampled_rows: tuple[int, ...]
    weight_rows: tuple[int, ...]
    experts: int
    chosen_experts: int
    expert_hidden: int
    expert_inner: int
    expert_tokens: tuple[int, ...]
    # The engine.
    rows: int
    context: int  # of all rows
    short_context: int  # of a single one
    token_budget: int
    steps: int
    prefills: int
    # Correctness.
    new_tokens: int


FULL = Sizes(
    copy_bytes=4096 * MIB,
    matmul_side=8192,
    repeats=20,
    cold_bytes=192 * MIB,
    decodes=((1, 1024), (1, 8192), (64, 1024), (64, 8192)),
    prompt=8192,
    prompts=8,
    cached=4096,
    token_counts=(64, 8192),
    sampled_rows=(1, 64),
    weight_rows=(1, 16, 64, 256),
    experts=128,
    chosen_experts=8,
    expert_hidden=2048,
    expert_inner=768,
    expert_tokens=(64, 4096),
    rows=64,
    context=1000,
    short_context=128,
    token_budget=4096,
    steps=100,
    prefills=5,
    new_tokens=48,
)
TINY = Sizes(
    copy_bytes=4 * MIB,
    matmul_side=128,
    repeats=3,
    cold_bytes=0,
    decodes=((1, 24), (4, 40)),
    prompt=64,
    prompts=4,
    cached=32,
    token_counts=(4, 16),
    sampled_rows=(1, 3),
    weight_rows=(1, 16),
    experts=8,
    chosen_experts=2,
    expert_hidden=64,
    expert_inner=32,
    expert_tokens=(4, 16),
    rows=4,
    context=40,
    short_context=16,
    token_budget=32,
    steps=4,
    prefills=2,
    new_tokens=6,
)


def sizes_of(shape: str) -> Sizes:
    """Of a model shape's name."""
    return TINY if shape == TINY_SHAPE else FULL
