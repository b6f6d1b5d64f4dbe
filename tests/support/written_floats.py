"""Writes fp8 matrices, and those of bitsandbytes by its own library."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from written_matrix import Floats, Written, tensor

Kind = Literal["nf4", "fp4"]


@dataclass(frozen=True)
class Fp8:
    """`block`: outputs and inputs that share a scale; 0 is all of them."""

    block: tuple[int, int] = (0, 0)
    dtype: torch.dtype = torch.float8_e4m3fn
    method: str = "fp8"
    scale_name: str = "weight_scale"
    flat: bool = False  # scales without a second dimension

    @property
    def config(self) -> dict[str, Any]:
        blocks = {"weight_block_size": list(self.block)} if all(self.block) else {}
        return {"quant_method": self.method, "activation_scheme": "static", **blocks}

    def __call__(self, weight: Floats, rng: np.random.Generator) -> Written:
        outputs, inputs = weight.shape
        rows, columns = self.block[0] or outputs, self.block[1] or inputs
        most = torch.finfo(self.dtype).max
        scales = np.empty((-(-outputs // rows), -(-inputs // columns)), np.float32)
        codes = torch.empty(weight.shape, dtype=self.dtype)
        result = np.empty_like(weight)
        for i in range(scales.shape[0]):
            for j in range(scales.shape[1]):
                own = np.s_[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns]
                scales[i, j] = np.abs(weight[own]).max() / most
                codes[own] = torch.from_numpy(weight[own] / scales[i, j]).to(self.dtype)
                result[own] = codes[own].float().numpy() * scales[i, j]
        stored = tensor(scales)
        if self.flat:
            stored = stored.flatten() if stored.numel() > 1 else stored.reshape(())
        tensors = {"weight": codes, self.scale_name: stored}
        return Written(tensors | {"input_scale": torch.tensor(1.0)}, result)


@dataclass(frozen=True)
class BitsandbytesInt8:
    """LLM.int8()."""

    @property
    def config(self) -> dict[str, Any]:
        return {"quant_method": "bitsandbytes", "load_in_8bit": True, "load_in_4bit": False}

    def __call__(self, weight: Floats, rng: np.random.Generator) -> Written:
        from bitsandbytes import functional

        codes, most, _ = functional.int8_vectorwise_quant(torch.from_numpy(weight).half())
        tensors = {"weight": codes, "SCB": most.float()}
        result = codes.numpy() * (most.float().numpy()[:, None] / np.float32(127))
        return Written(tensors | {"weight_format": torch.tensor(0, dtype=torch.uint8)}, result)


@dataclass(frozen=True)
class Bitsandbytes4:
    """`double`: scales are quantized, too."""

    kind: Kind = "nf4"
    double: bool = False
    block: int = 64

    @property
    def config(self) -> dict[str, Any]:
        return {
            "quant_method": "bitsandbytes", "load_in_8bit": False, "load_in_4bit": True,
            "bnb_4bit_quant_type": self.kind, "bnb_4bit_use_double_quant": self.double,
            "bnb_4bit_quant_storage": "uint8",
        }  # fmt: skip

    def __call__(self, weight: Floats, rng: np.random.Generator) -> Written:
        from bitsandbytes import functional

        packed, state = functional.quantize_4bit(
            torch.from_numpy(weight), None, None, self.block, self.double, self.kind
        )
        parts = state.as_dict(packed=True)
        tensors = {"weight": packed} | {f"weight.{name}": part for name, part in parts.items()}
        # The library's own arithmetic is on 32 bits, and so is this.
        scales = parts["absmax"].numpy()
        if self.double:
            inner = np.repeat(parts["nested_absmax"].numpy(), 256)[: len(scales)]
            offset = np.float32(state.offset.item())
            scales = parts["nested_quant_map"].numpy()[scales] * inner + offset
        single = packed.numpy().flatten()
        codes = np.stack([single >> 4, single & 15], axis=1).flatten()[: weight.size]
        numbers = parts["quant_map"].numpy()[codes]
        result = numbers * np.repeat(scales, self.block)[: weight.size]
        return Written(tensors, result.reshape(weight.shape).astype(np.float32))
