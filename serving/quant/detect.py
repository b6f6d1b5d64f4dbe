"""Which quantization a model comes with or is to get, from its files and `--quantize`.

Runs in an engine rank, before weights are read; called by `engine/model_loader.py`. In: `config.json`
and the setting. Out: a `Quantization`, or a `StartupError` for schemes that are not known and for a
flag that contradicts the files. Next: `scheme.py`, `online.py`.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from serving.errors import StartupError
from serving.quant import gptq
from serving.quant.gguf import GgufScheme
from serving.quant.gptq import GptqScheme
from serving.quant.online import QUANTIZERS, RowQuantizer
from serving.quant.scheme import Scheme

PHASE = "model configuration"
Config = dict[str, Any]
# Where older checkpoints keep what newer ones have in config.json, and whose it is then.
OLD_FILES = (("quantize_config.json", "gptq"), ("quant_config.json", "awq"))
MAKE_ONE = "make one with `text-generation-server quantize`"


@dataclass(frozen=True)
class Quantization:
    """How the checkpoint holds its matrices, or how plain ones are to be kept."""

    label: str | None = None  # as --quantize calls it; None: 16 or 32 bits
    scheme: Scheme | None = None
    quantizer: RowQuantizer | None = None


UNQUANTIZED = Quantization()


@dataclass(frozen=True)
class Method:
    """A `quant_method` of checkpoints: its scheme, and the flags that name it."""

    make: Callable[[Config], Scheme]
    flags: tuple[str, ...]


def quantization_of(config: Config, path: Path, flag: str | None) -> Quantization:
    """What the files say, checked against `--quantize`."""
    stored = stored_config(config, path)
    if stored is None:
        return _while_loading(flag)
    name = str(stored.get("quant_method", ""))
    method = METHODS.get(name)
    if method is None:
        _refuse(
            f"its weights are quantized by `{name}`, which is not supported; supported: "
            f"{', '.join(sorted(METHODS))}",
            "use a checkpoint in one of these, or one that is not quantized",
        )
    scheme = method.make(stored)
    if flag is not None and flag != scheme.label and flag not in method.flags:
        _refuse(
            f"--quantize {flag} contradicts the checkpoint, which is quantized by {scheme.label}",
            "remove --quantize: the checkpoint's own scheme is found by itself",
        )
    return Quantization(scheme.label, scheme)


def stored_config(config: Config, path: Path) -> Config | None:
    """What the checkpoint says of its quantization, with its `quant_method`; None: it has none."""
    for holder in (config, config.get("text_config") or {}):
        for key in ("quantization_config", "compression_config"):
            if found := holder.get(key):
                return dict(found)
    for name, method in OLD_FILES:
        if (path / name).is_file():
            content: Config = json.loads((path / name).read_text())
            return {"quant_method": method} | content
    return None


def _while_loading(flag: str | None) -> Quantization:
    """What becomes of plain weights."""
    if flag is None:
        return UNQUANTIZED
    if flag not in QUANTIZERS:
        _refuse(
            f"--quantize {flag} asks for a checkpoint that is quantized so, and this one is not",
            f"use such a checkpoint ({MAKE_ONE}), or one of {', '.join(QUANTIZERS)}",
        )
    return Quantization(flag, quantizer=QUANTIZERS[flag])


def _gptq(config: Config) -> Scheme:
    bits, group = _number(config, "bits", "w_bit"), _number(config, "group_size")
    if bits not in gptq.BITS:
        _refuse_value("bits", bits, gptq.BITS)
    if config.get("dynamic"):
        _refuse("GPTQ with other settings for some layers (`dynamic`)", "use a uniform checkpoint")
    version_2 = str(config.get("checkpoint_format", "gptq")) == "gptq_v2"
    return GptqScheme(bits, group, zero_bias=0 if version_2 else 1)


METHODS = {
    "gptq": Method(_gptq, ("gptq", "marlin")),
    "gguf": Method(lambda _: GgufScheme(), ("gguf",)),
}


def _number(config: Config, *keys: str) -> int:
    """The first of these keys that is there, as a whole number."""
    value = next((config[key] for key in keys if config.get(key) is not None), None)
    if not isinstance(value, int):
        _refuse(
            f"the checkpoint's quantization_config has no whole number `{keys[0]}`. Given: {value}",
            "use the config.json that belongs to these weights",
        )
    return value


def _refuse_value(what: str, value: object, possible: tuple[object, ...]) -> NoReturn:
    _refuse(
        f"the checkpoint's quantization has `{what}` {value}; possible: "
        f"{', '.join(map(str, possible))}",
        f"use another checkpoint, or {MAKE_ONE}",
    )


def _refuse(cause: str, remedy: str) -> NoReturn:
    raise StartupError(PHASE, cause, remedy)
