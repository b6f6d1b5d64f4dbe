"""Checkpoints that transformers quantized, or loads by itself: its logits are ours.

Its loaders of bitsandbytes and fp8 checkpoints need the accelerate library.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from engine_rig import Rig, load_decoder
from quantized_variants import OTHERS
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from written_checkpoint import write_quantized
from written_floats import Fp8
from written_matrix import Writer

from local_mode.tiny_model import write_checkpoint
from serving.kernels.torch_ops import TorchOps

TOLERANCE = 1e-3
ROUNDED_TOLERANCE = 0.15  # of bitsandbytes' 8 bits: it rounds activations, too, and we do not
PROMPT = [3, 17, 40, 5, 99, 260, 8, 31, 7]
COMPRESSED = (
    "packed 4 bits, groups", "packed 4 bits, channels", "packed 8 bits", "float, one scale",
    "float, blocks",
)  # fmt: skip
OF_ACCELERATE: dict[str, Writer] = {
    "fp8, one scale": Fp8(flat=True, scale_name="weight_scale_inv"),
    "fp8, blocks": Fp8((32, 32), scale_name="weight_scale_inv"),
}
SAVED: dict[str, dict[str, Any]] = {
    "8 bits": {"load_in_8bit": True},
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "fp4, double": {
        "load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": True,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint("llama", tmp_path_factory.mktemp("plain"))


@torch.no_grad()
def expected(path: Path) -> torch.Tensor:
    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    logits: torch.Tensor = model(torch.tensor([PROMPT]), use_cache=False).logits[0, -1]
    return logits


@torch.inference_mode()
def found(path: Path) -> torch.Tensor:
    rig = Rig(load_decoder(path, TorchOps()), TorchOps())
    rig.add(0, PROMPT, 1)
    rig.run()
    return rig.logits[0][0]


def error(path: Path) -> float:
    return float((found(path) - expected(path)).abs().max())


@pytest.mark.parametrize("name", COMPRESSED)
def test_what_transformers_decompresses(name: str, plain: Path, tmp_path: Path) -> None:
    assert error(write_quantized(plain, tmp_path / "out", OTHERS[name])) < TOLERANCE


@pytest.mark.parametrize("name", OF_ACCELERATE)
def test_what_transformers_dequantizes(name: str, plain: Path, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    assert error(write_quantized(plain, tmp_path / "out", OF_ACCELERATE[name])) < TOLERANCE


@pytest.mark.filterwarnings("ignore:MatMul8bitLt")
@pytest.mark.parametrize("name", SAVED)
def test_what_transformers_saved(name: str, plain: Path, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    config = BitsAndBytesConfig(**SAVED[name])
    model = AutoModelForCausalLM.from_pretrained(
        plain, dtype=torch.float32, quantization_config=config
    )
    model.save_pretrained(tmp_path)
    tolerance = ROUNDED_TOLERANCE if name == "8 bits" else TOLERANCE
    assert error(tmp_path) < tolerance
