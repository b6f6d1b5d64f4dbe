"""Schemes by the `quant_method` of a checkpoint, made from its `quantization_config`.

Runs in an engine rank, before weights are read; called by `detect.py`. In: the configuration as
the tools wrote it. Out: a `Scheme`, or a `StartupError` naming the key, its value, and what is
possible. Next: the scheme's own file.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from serving.errors import StartupError
from serving.quant import awq, gptq, marlin
from serving.quant.awq import AwqScheme
from serving.quant.bitsandbytes import BOOKS, FloatScheme, Int8Scheme
from serving.quant.compressed_groups import read_groups
from serving.quant.compressed_tensors import CompressedTensorsScheme
from serving.quant.fp8 import Fp8Scheme
from serving.quant.gguf import GgufScheme
from serving.quant.gptq import GptqScheme
from serving.quant.marlin import MarlinScheme
from serving.quant.scheme import Scheme

PHASE = "model configuration"
Config = dict[str, Any]
MAKE_ONE = "make one with `text-generation-server quantize`"
GPTQ_FORMATS = {"gptq": 1, "gptq_v2": 0}  # what is added to stored zero points


@dataclass(frozen=True)
class Method:
    """A `quant_method` of checkpoints: its scheme, and the flags that name it."""

    make: Callable[[Config], Scheme]
    flags: tuple[str, ...]


def _gptq(config: Config) -> Scheme:
    if config.get("dynamic"):
        refuse("GPTQ with other settings for some layers (`dynamic`)", "use a uniform checkpoint")
    layout = str(config.get("checkpoint_format") or "gptq")
    if layout == "marlin" or config.get("is_marlin_format"):
        return _marlin(config)
    if layout not in GPTQ_FORMATS:
        refuse_value("checkpoint_format", layout, (*GPTQ_FORMATS, "marlin"))
    bits = _one_of(config, gptq.BITS, "bits", "w_bit")
    return GptqScheme(bits, _group_size(config), GPTQ_FORMATS[layout])


def _awq(config: Config) -> Scheme:
    version = str(config.get("version") or config.get("checkpoint_format") or "gemm").lower()
    if version != "gemm":
        refuse_value("version", version, ("gemm",))
    _one_of(config, (awq.BITS,), "bits", "w_bit")
    return AwqScheme(_group_size(config))


def _marlin(config: Config) -> Scheme:
    if config.get("bits") is not None:  # the format has one
        _one_of(config, (marlin.BITS,), "bits")
    if config.get("sym") is False:
        refuse_value("sym", False, (True,))
    return MarlinScheme(_one_of(config, marlin.GROUPS, "group_size"))


def _bitsandbytes(config: Config) -> Scheme:
    if config.get("load_in_8bit"):
        return Int8Scheme()
    kind = str(config.get("bnb_4bit_quant_type") or "fp4")  # the library's default
    if kind not in BOOKS:
        refuse_value("bnb_4bit_quant_type", kind, tuple(BOOKS))
    if (storage := config.get("bnb_4bit_quant_storage") or "uint8") != "uint8":
        refuse_value("bnb_4bit_quant_storage", storage, ("uint8",))
    return FloatScheme(kind)


def _fp8(config: Config) -> Scheme:
    block = config.get("weight_block_size")
    return Fp8Scheme(None if block is None else (int(block[0]), int(block[1])))


METHODS = {
    "awq": Method(_awq, ("awq", "gptq", "marlin")),
    "bitsandbytes": Method(_bitsandbytes, ("bitsandbytes",)),
    "compressed-tensors": Method(
        lambda config: CompressedTensorsScheme(read_groups(config)), ("compressed-tensors",)
    ),
    "fbgemm_fp8": Method(_fp8, ("fp8",)),
    "fp8": Method(_fp8, ("fp8",)),
    "gguf": Method(lambda _: GgufScheme(), ("gguf",)),
    "gptq": Method(_gptq, ("gptq", "marlin")),
    "marlin": Method(_marlin, ("gptq", "marlin")),
}  # what TGI let each be called


def refuse(cause: str, remedy: str) -> NoReturn:
    """Raise a `StartupError` of the phase in which configurations are read."""
    raise StartupError(PHASE, cause, remedy)


def refuse_value(what: str, value: object, possible: tuple[object, ...]) -> NoReturn:
    """Refuse a value of a quantization_config."""
    refuse(
        f"the checkpoint's quantization has `{what}` {value}; possible: "
        f"{', '.join(map(str, possible))}",
        f"use another checkpoint, or {MAKE_ONE}",
    )


def _group_size(config: Config) -> int:
    size = _number(config, "group_size", "q_group_size")
    if size != -1 and size < 1:
        refuse_value("group_size", size, (-1, "1 and more"))
    return size


def _one_of(config: Config, possible: tuple[int, ...], *keys: str) -> int:
    """The number under the first of these keys that is there."""
    value = _number(config, *keys)
    if value not in possible:
        refuse_value(keys[0], value, possible)
    return value


def _number(config: Config, *keys: str) -> int:
    """The first of these keys that is there, as a whole number."""
    value = next((config[key] for key in keys if config.get(key) is not None), None)
    if not isinstance(value, int):
        refuse(
            f"the checkpoint's quantization_config has no whole number `{keys[0]}`. Given: {value}",
            "use the config.json that belongs to these weights",
        )
    return value
