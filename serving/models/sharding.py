"""Over how many ranks a model can be divided, told from its spec before anything is loaded.

Called by `engine/start/model_loader.py` on every rank. No torch. The layers divide by the same
rules: `layers/attention.head_ranges()` and `ShardContext.share()`. Next: `block_loader.py`.
"""

from collections.abc import Iterator

from serving.models.encoder_decoder_spec import EncoderDecoderSpec
from serving.models.mamba_spec import MambaSpec
from serving.models.spec import DecoderSpec, MlpSpec

AnySpec = DecoderSpec | EncoderDecoderSpec | MambaSpec


def check_divides(spec: AnySpec, size: int) -> None:
    """Raise `ValueError` naming what `size` ranks cannot divide, and the possible counts."""
    faults = [what for what, total in _quantities(spec) if total % size]
    if isinstance(spec, DecoderSpec) and not _divides_kv_heads(spec, size):
        faults.append(f"{spec.attention.kv_heads} key/value heads")
    if faults:
        possible = ", ".join(map(str, shard_counts(spec)))
        raise ValueError(f"{faults[0]} cannot be divided over {size} shards; possible: {possible}")


def shard_counts(spec: AnySpec) -> list[int]:
    """Every number of ranks that divides the model, in rising order; 1 is always among them."""
    quantities = list(_quantities(spec))
    most = min(total for _, total in quantities)
    return [
        size
        for size in range(1, most + 1)
        if all(total % size == 0 for _, total in quantities)
        and (not isinstance(spec, DecoderSpec) or _divides_kv_heads(spec, size))
    ]


def _quantities(spec: AnySpec) -> Iterator[tuple[str, int]]:
    """What each rank must have an equal share of: in words, and how many there are."""
    if isinstance(spec, MambaSpec):
        yield f"{spec.inner} channels of the mixer", spec.inner
        return
    heads = spec.heads if isinstance(spec, EncoderDecoderSpec) else spec.attention.heads
    yield f"{heads} attention heads", heads
    for width in _widths(spec):
        yield f"an intermediate size of {width}", width


def _widths(spec: DecoderSpec | EncoderDecoderSpec) -> set[int]:
    """Intermediate sizes of all feed-forward layers."""
    if isinstance(spec, EncoderDecoderSpec):
        return {spec.mlp.intermediate}
    widths = set()
    for layer in spec.layers:
        if isinstance(layer.mlp, MlpSpec):
            widths.add(layer.mlp.intermediate)
        else:
            widths.add(layer.mlp.expert.intermediate)
            if layer.mlp.shared is not None:
                widths.add(layer.mlp.shared.intermediate)
    return widths


def _divides_kv_heads(spec: DecoderSpec, size: int) -> bool:
    """KV heads are divided, or each is on several ranks; latent attention has none."""
    kv_heads = spec.attention.kv_heads
    return spec.attention.latent is not None or kv_heads % size == 0 or size % kv_heads == 0
