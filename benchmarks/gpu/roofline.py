"""What a GPU could do at best: the bytes and operations of some work over two measured ceilings.

Pure arithmetic. Comes in: sizes, and the ceilings that `machine_part.py` has measured. Goes out:
seconds that no kernel can beat by much. Every input is counted once, every output once.
"""

import math
from dataclasses import dataclass

from benchmarks.make_model import Shape, weight_sizes

WIDTH = 2  # bytes of a bfloat16 number, which weights, activations and the cache are made of


@dataclass(frozen=True)
class Ceilings:
    """Rates that were measured on the machine."""

    copy: float  # bytes a second of a large copy, those read and those written
    matmul: float  # FLOP a second of a large product in bfloat16


@dataclass(frozen=True)
class Work:
    """What must be moved and computed."""

    num_bytes: float
    flops: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(self.num_bytes + other.num_bytes, self.flops + other.flops)

    def seconds(self, ceilings: Ceilings) -> float:
        """The bound: the slower of moving and computing."""
        return max(self.num_bytes / ceilings.copy, self.flops / ceilings.matmul)


def product(rows: int, inputs: int, outputs: int, weight_bytes: float) -> Work:
    """Of activations [rows, inputs] and a matrix [outputs, inputs] of so many bytes."""
    moved = weight_bytes + rows * (inputs + outputs) * WIDTH
    return Work(moved, 2.0 * rows * inputs * outputs)


def attention(heads: int, kv_heads: int, head_dim: int, sequences: list[tuple[int, int]]) -> Work:
    """Of some sequences: new tokens of each, and tokens in the cache before them."""
    new = sum(own for own, _ in sequences)
    context = sum(own + cached for own, cached in sequences)
    pairs = sum(visible_pairs(own, cached) for own, cached in sequences)
    moved = 2 * (new * heads + context * kv_heads) * head_dim * WIDTH
    return Work(moved, 4.0 * heads * head_dim * pairs)


def visible_pairs(new: int, cached: int) -> int:
    """Pairs of a new token and one that it sees, itself included."""
    return new * cached + new * (new + 1) // 2


def kv_bytes(shape: Shape) -> int:
    """Of a token, over all layers: its keys and values."""
    return shape.layers * 2 * shape.kv_heads * shape.head_dim * WIDTH


def step_weights(shape: Shape) -> int:
    """Parameters that a step reads whole: all but an embedding that is not the head too."""
    sizes = dict(weight_sizes(shape))
    total = sum(math.prod(size) for size in sizes.values())
    return total if shape.tied_head else total - shape.vocabulary * shape.hidden


def layer_matrices(shape: Shape) -> int:
    """Parameters that every token is multiplied with: those of the layers."""
    sizes = dict(weight_sizes(shape))
    return sum(math.prod(size) for name, size in sizes.items() if ".layers." in name)


def decode(shape: Shape, rows: int, context: int) -> Work:
    """A step of so many rows, each of which sees `context` tokens."""
    moved = step_weights(shape) * WIDTH + rows * context * kv_bytes(shape)
    attended = 4.0 * shape.layers * shape.heads * shape.head_dim * rows * context
    head = shape.vocabulary * shape.hidden
    return Work(moved, 2.0 * rows * (layer_matrices(shape) + head) + attended)


def prefill(shape: Shape, tokens: int) -> Work:
    """A prompt of so many tokens, of which the last one is followed by another."""
    moved = step_weights(shape) * WIDTH + tokens * kv_bytes(shape)
    attended = 4.0 * shape.layers * shape.heads * shape.head_dim * visible_pairs(tokens, 0)
    head = shape.vocabulary * shape.hidden
    return Work(moved, 2.0 * (tokens * layer_matrices(shape) + head) + attended)


def closed_loop_rate(
    shape: Shape, streams: int, prompt: int, new: int, ceilings: Ceilings
) -> float:
    """Output tokens a second of so many streams, if a step waits for nothing but the device.

    While streams are at different points of their texts, the mean context is half-way through.
    """
    prompts = streams * prefill(shape, prompt).seconds(ceilings)
    steps = new * decode(shape, streams, prompt + new // 2).seconds(ceilings)
    return streams * new / (prompts + steps)
