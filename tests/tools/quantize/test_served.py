"""What the command writes is served: the engine's logits are those of the dequantized model."""

from pathlib import Path

import pytest
import quantized_reader as reader
import torch
from engine_rig import Rig, load_decoder
from sequence_rig import CPU
from transformers import AutoModelForCausalLM

from local_mode.tiny_model import write_checkpoint
from serving.kernels.torch_ops import TorchOps
from serving.tools.quantize.awq_scheme import awq_for
from serving.tools.quantize.gptq_scheme import GptqScheme
from serving.tools.quantize.layers import LayeredModel
from serving.tools.quantize.run import Scheme, quantize_checkpoint

RUNS: dict[str, tuple[str, Scheme]] = {
    "gptq": ("llama", GptqScheme(group_size=32)),
    "gptq-act-order": ("qwen2", GptqScheme(group_size=32, act_order=True, symmetric=False)),
    "gptq-8-bits": ("gpt2", GptqScheme(bits=8, group_size=-1)),
    "gptq-3-bits": ("llama", GptqScheme(bits=3, group_size=32, symmetric=False)),
    "gptq-experts": ("mixtral", GptqScheme(group_size=32)),
    "awq": ("llama", awq_for("llama", 32, clip=True)),
}


@pytest.mark.parametrize("run", RUNS)
def test_the_engine_reads_it(run: str, tmp_path: Path) -> None:
    variant, scheme = RUNS[run]
    source, output = write_checkpoint(variant, tmp_path / "model"), tmp_path / "quantized"
    ids = torch.randint(3, 300, (4, 64), generator=torch.Generator().manual_seed(0))
    quantize_checkpoint(LayeredModel(source, CPU), source, output, scheme, ids)

    ops = TorchOps()
    rig = Rig(load_decoder(output, ops), ops)
    prompt = ids[0, :20].tolist()
    rig.add(1, prompt, max_new_tokens=4)
    tokens = rig.run()[1]
    plain = reader.dequantize(output, tmp_path / "float", transposed=variant == "gpt2")
    model = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = model(torch.tensor([prompt + tokens[:-1]])).logits[0, len(prompt) - 1 :]
    torch.testing.assert_close(torch.stack(rig.logits[1]), expected, rtol=1e-3, atol=1e-3)
