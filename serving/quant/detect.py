"""Which quantization a model comes with or is to get, from its files and `--quantize`.

Runs in an engine rank, before weights are read; called by `engine/start/model_loader.py`. In:
`config.json` and the setting. Out: a `Quantization`, or a `StartupError` for schemes that are not
known and for a flag that contradicts the files. Next: `methods.py`, `online.py`.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from serving.quant.methods import MAKE_ONE, METHODS, Config, refuse
from serving.quant.online import QUANTIZERS, RowQuantizer
from serving.quant.scheme import Scheme

# Where older checkpoints keep what newer ones have in config.json, and whose it is then.
OLD_FILES = (("quantize_config.json", "gptq"), ("quant_config.json", "awq"))
EXL2 = "exl2"


@dataclass(frozen=True)
class Quantization:
    """How the checkpoint holds its matrices, or how plain ones are to be kept."""

    label: str | None = None  # as --quantize calls it; None: 16 or 32 bits
    scheme: Scheme | None = None
    quantizer: RowQuantizer | None = None


UNQUANTIZED = Quantization()


def quantization_of(config: Config, path: Path, flag: str | None) -> Quantization:
    """What the files say, checked against `--quantize`."""
    stored = stored_config(config, path)
    name = None if stored is None else str(stored.get("quant_method", ""))
    if EXL2 in (name, flag):
        refuse(
            "EXL2 checkpoints are not supported: only ExLlamaV2's own kernels read their layout",
            f"use a GPTQ or AWQ checkpoint of the model, or {MAKE_ONE}",
        )
    if stored is None:
        return _while_loading(flag)
    method = METHODS.get(name or "")
    if method is None:
        refuse(
            f"its weights are quantized by `{name}`, which is not supported; supported: "
            f"{', '.join(METHODS)}",
            "use a checkpoint in one of these, or one that is not quantized",
        )
    scheme = method.make(stored)
    if flag is not None and flag != scheme.label and flag not in method.flags:
        refuse(
            f"--quantize {flag} contradicts the checkpoint, which is quantized by {scheme.label}",
            "remove --quantize: the checkpoint's own scheme is found by itself",
        )
    return Quantization(scheme.label, scheme)


def stored_config(config: Config, path: Path) -> Config | None:
    """What the checkpoint says of its quantization, with its `quant_method`; None: it has none."""
    for holder in (config, config.get("text_config") or {}):
        for key in ("quantization_config", "compression_config"):
            if found := holder.get(key):
                return _named(dict(found))
    for name, method in OLD_FILES:
        if (path / name).is_file():
            content: Config = json.loads((path / name).read_text())
            return {"quant_method": method} | content
    return None


def _named(stored: Config) -> Config:
    """Older files of bitsandbytes do not name their method."""
    if "quant_method" not in stored and {"load_in_8bit", "load_in_4bit"} & stored.keys():
        return {"quant_method": "bitsandbytes"} | stored
    return stored


def _while_loading(flag: str | None) -> Quantization:
    """What becomes of plain weights."""
    if flag is None:
        return UNQUANTIZED
    if flag not in QUANTIZERS:
        refuse(
            f"--quantize {flag} asks for a checkpoint that is quantized so, and this one is not",
            f"use such a checkpoint ({MAKE_ONE}), or one of {', '.join(QUANTIZERS)}",
        )
    return Quantization(flag, quantizer=QUANTIZERS[flag])
