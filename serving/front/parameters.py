"""What a request asks of a generation, in TGI's terms; OpenAI's bodies are turned into them.

Runs in the front. Comes in: JSON, parsed by `bodies.py`. Goes out: structs that `validation.py`
checks: ranges are its business, types are settled here. Next: `grammars.py`, `validation.py`.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

Unsigned = Annotated[int, Meta(ge=0)]
Unsigned32 = Annotated[int, Meta(ge=0, le=2**32 - 1)]
Signed32 = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]
LARGEST_SEED = 2**64 - 1


class GuidedFormat(msgspec.Struct, frozen=True):
    """TGI's grammar: a type and a mandatory value, whose form `grammars.py` checks."""

    type: Literal["json", "json_object", "json_schema", "regex", "lark"]
    value: Any


class GenerateParameters(msgspec.Struct, frozen=True, kw_only=True):
    """TGI's `parameters`; those below `adapter_id` are ours. `validation.py` checks ranges."""

    best_of: Unsigned | None = None
    temperature: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    top_k: Signed32 | None = None
    top_p: float | None = None
    typical_p: float | None = None
    do_sample: bool = False
    max_new_tokens: Unsigned32 | None = None
    return_full_text: bool | None = None
    stop: list[str] = []
    truncate: Unsigned | None = None
    watermark: bool = False
    details: bool = False
    decoder_input_details: bool = False
    seed: Unsigned | None = None
    top_n_tokens: Unsigned32 | None = None
    grammar: GuidedFormat | None = None
    adapter_id: str | None = None
    ignore_eos: bool = False
    min_new_tokens: Unsigned32 | None = None
    max_time: float | None = None  # seconds; then the next token is the last
    output_frequency_penalty: float | None = None  # OpenAI's form of the penalty
    output_presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None  # token id to what is added to its score

    def __post_init__(self) -> None:
        if self.seed is not None and self.seed > LARGEST_SEED:
            raise ValueError(f"`seed` must be <= {LARGEST_SEED}. Given: {self.seed}")
