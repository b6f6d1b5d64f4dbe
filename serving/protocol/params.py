"""Sampling, stopping and grammar of one sequence, as they cross the wire.

Built by `front/validation.py`, read by `engine/step/sampler.py`, `engine/step/logit_rules.py` and
`engine/schedule/sequence.py`. Imports msgspec only. Values are already validated: the engine trusts
them.
"""

from typing import Literal

import msgspec


class SamplingParams(msgspec.Struct, frozen=True, omit_defaults=True):
    """How the next token of a sequence is chosen; every default means "rule is off".

    The rules apply in TGI's order: watermark, penalties, bias, grammar, temperature, top-k, top-p,
    typical-p, choice.
    """

    do_sample: bool = False
    temperature: float = 1.0  # > 0
    top_k: int = 0  # 0 is off
    top_p: float = 1.0  # (0, 1], 1 is off
    typical_p: float = 1.0  # (0, 1], 1 is off
    repetition_penalty: float = 1.0  # > 0, over prompt and output
    frequency_penalty: float = 0.0  # [-2, 2], TGI's length-normalised form
    seed: int = 0  # unsigned 64 bit
    output_frequency_penalty: float = 0.0  # OpenAI's form: times the count in the output
    output_presence_penalty: float = 0.0  # OpenAI's form: once for every id in the output
    logit_bias: list[tuple[int, float]] = []  # (token id, added to its score)
    watermark: bool = False

    @property
    def samples(self) -> bool:
        """Whether a random draw is made; TGI samples as soon as any warper is active."""
        return (
            self.do_sample
            or self.temperature != 1.0
            or self.top_k != 0
            or self.top_p < 1.0
            or self.typical_p < 1.0
        )


class StopParams(msgspec.Struct, frozen=True, omit_defaults=True):
    """When the engine ends a sequence: by length or by token id. Text is the front's business."""

    max_new_tokens: int  # >= 1, counts resumed tokens too
    stop_token_ids: list[int] = []
    min_new_tokens: int = 0  # stop tokens are not chosen before so many others


class Grammar(msgspec.Struct, frozen=True):
    """What the whole output must match; compiled by the engine, which refuses what it cannot."""

    kind: Literal["json_schema", "regex", "lark"]
    source: str  # JSON text, regular expression, or llguidance's dialect of Lark
