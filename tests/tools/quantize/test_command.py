"""The whole command: checkpoints that an independent reader understands, and refusals."""

import json
import logging
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import quantized_reader as reader
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from local_mode import tiny_model
from local_mode.tiny_model import DEMO_MODEL
from serving.errors import StartupError
from serving.models import staging
from serving.tools.quantize import writer
from serving.tools.quantize.command import quantize

SMALL = ("--samples", "12", "--sequence-length", "128")
FLOAT_LOSS = 0.0333  # of the demo model, nats per token
# Options, and the most by which the loss of the quantized model may be above that of the float one.
DEMO_RUNS: dict[str, tuple[tuple[str, ...], float]] = {
    "gptq": ((), 0.005),
    "gptq-3-bits": (
        ("--bits", "3", "--groupsize", "32", "--no-sym", "--act-order", "--mse"), 0.015,
    ),
    "awq": (("--scheme", "awq"), 0.007),
}  # fmt: skip


def write_checkpoint(variant: str, directory: Path, **config: Any) -> Path:
    """A tiny checkpoint with a vocabulary as large as its tokenizer's."""
    return tiny_model.write_checkpoint(variant, directory, vocab_size=1024, **config)


def invoke(model: Path, output: Path, *options: object) -> Result:
    """Run the command in this process; its logging stays here."""
    before = logging.getLogger().handlers[:], logging.getLogger().level
    try:
        return CliRunner().invoke(quantize, [str(model), str(output), *map(str, options)])
    finally:
        logging.getLogger().handlers[:], logging.getLogger().level = before


def refusal(model: Path, output: Path, *options: object) -> StartupError:
    result = invoke(model, output, *options)
    assert isinstance(result.exception, StartupError), result.output
    return result.exception


@pytest.mark.parametrize("run", DEMO_RUNS)
def test_the_demo_model_keeps_its_answers(
    run: str,
    tmp_path: Path,
    calibration_file: Path,
    held_out_loss: Callable[[Path], float],
) -> None:
    options, allowed = DEMO_RUNS[run]
    output = tmp_path / "quantized"
    result = invoke(DEMO_MODEL, output, "--calibration", calibration_file, *SMALL, *options)
    assert result.exception is None, result.exception
    loss = held_out_loss(reader.dequantize(output, tmp_path / "float"))
    assert loss < FLOAT_LOSS + allowed


def test_the_loss_of_the_float_model(held_out_loss: Callable[[Path], float]) -> None:
    assert held_out_loss(DEMO_MODEL) == pytest.approx(FLOAT_LOSS, abs=0.001)


def test_what_a_gptq_checkpoint_holds(tmp_path: Path, calibration_file: Path) -> None:
    model, output = tmp_path / "model", tmp_path / "quantized"
    write_checkpoint("qwen2", model)
    (model / "notes.txt").write_text("kept")
    options = ("--groupsize", 32, "--act-order", "--percdamp", 0.05)
    assert invoke(model, output, "--calibration", calibration_file, *SMALL, *options).exit_code == 0
    before, after = load_file(model / "model.safetensors"), reader.read_checkpoint(output)
    layer = "model.layers.2.self_attn.q_proj"
    assert {k: (v.dtype, tuple(v.shape)) for k, v in after.items() if k.startswith(layer)} == {
        f"{layer}.qweight": (torch.int32, (8, 64)),
        f"{layer}.qzeros": (torch.int32, (2, 8)),
        f"{layer}.scales": (torch.float16, (2, 64)),
        f"{layer}.g_idx": (torch.int32, (64,)),
        f"{layer}.bias": (torch.float32, (64,)),
    }
    kept = [name for name in before if name in after]
    assert all(torch.equal(before[name], after[name]) for name in kept)
    assert {name.removesuffix("weight") + "qweight" for name in before.keys() - after.keys()} == {
        name for name in after if name.endswith("qweight")
    }
    config = json.loads((output / "config.json").read_text())
    method = config.pop("quantization_config")
    assert config == json.loads((model / "config.json").read_text())
    assert method == {
        "quant_method": "gptq", "bits": 4, "group_size": 32, "damp_percent": 0.05,
        "desc_act": True, "static_groups": False, "sym": True, "true_sequential": True,
        "lm_head": False, "checkpoint_format": "gptq",
    }  # fmt: skip
    own = json.loads((output / "quantize_config.json").read_text())
    assert own.items() >= method.items()
    assert (output / "notes.txt").read_text() == "kept"
    assert (output / "tokenizer.json").read_bytes() == (model / "tokenizer.json").read_bytes()
    assert not any(path.is_symlink() for path in output.iterdir())
    modes = {path.stat().st_mode & 0o777 for path in output.glob("*.safetensors")}
    assert modes == {(model / "config.json").stat().st_mode & 0o777}


def test_what_an_awq_checkpoint_holds(tmp_path: Path, calibration_file: Path) -> None:
    model, output = tmp_path / "model", tmp_path / "quantized"
    write_checkpoint("llama-tied-bias", model)
    options = ("--scheme", "awq", "--groupsize", 32)
    assert invoke(model, output, "--calibration", calibration_file, *SMALL, *options).exit_code == 0
    after = reader.read_checkpoint(output)
    layer = "model.layers.0.mlp.down_proj"
    assert {k: (v.dtype, tuple(v.shape)) for k, v in after.items() if k.startswith(layer)} == {
        f"{layer}.qweight": (torch.int32, (96, 8)),
        f"{layer}.qzeros": (torch.int32, (3, 8)),
        f"{layer}.scales": (torch.float16, (3, 64)),
        f"{layer}.bias": (torch.float32, (64,)),
    }
    assert json.loads((output / "quant_config.json").read_text()) == {
        "zero_point": True, "q_group_size": 32, "w_bit": 4, "version": "GEMM",
        "modules_to_not_convert": None,
    }  # fmt: skip
    found = reader.dequantize(output, tmp_path / "float")
    assert relative_change(model, found) < 0.2


@pytest.mark.parametrize("variant", ["gpt2", "mixtral"])
def test_other_architectures(variant: str, tmp_path: Path, calibration_file: Path) -> None:
    """Matrices stored [in, out]; experts under the names of the checkpoint."""
    model, output = tmp_path / "model", tmp_path / "quantized"
    write_checkpoint(variant, model)
    options = ("--groupsize", 32, "--bits", 8)
    assert invoke(model, output, "--calibration", calibration_file, *SMALL, *options).exit_code == 0
    found = reader.dequantize(output, tmp_path / "float", transposed=variant == "gpt2")
    assert relative_change(model, found) < 0.05  # some tokens meet other experts


@torch.no_grad()
def relative_change(one: Path, other: Path) -> float:
    """|logits - logits|^2 / |logits|^2 of two float checkpoints, square root of it."""
    ids = torch.randint(3, 300, (2, 32), generator=torch.Generator().manual_seed(0))
    logits = [
        AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()(ids).logits
        for directory in (one, other)
    ]
    return float((logits[0] - logits[1]).norm() / logits[0].norm())


def test_two_runs_write_the_same_bytes(tmp_path: Path, calibration_file: Path) -> None:
    model = write_checkpoint("llama", tmp_path / "model")
    for name in ("one", "two"):
        options = ("--groupsize", "32", "--seed", "5")
        invoke(model, tmp_path / name, "--calibration", calibration_file, *SMALL, *options)
    one, two = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name in ("one", "two")
    )
    assert one == two


def test_one_log_line_for_each_layer(tmp_path: Path, calibration_file: Path) -> None:
    model = write_checkpoint("llama", tmp_path / "model")
    done = subprocess.run(
        [sys.executable, "-m", "serving.tools.server_command", "quantize", str(model),
         str(tmp_path / "out"), "--calibration", str(calibration_file), "--groupsize", "32",
         *SMALL, "--json-output"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = [json.loads(line) for line in (done.stdout + done.stderr).splitlines()]
    messages = [str(line.get("message") or line.get("fields", {}).get("message")) for line in lines]
    layers = [message for message in messages if message.startswith("layer ")]
    assert len(layers) == 3
    assert layers[1].startswith("layer 2 of 3: relative output error ")


# --- refusals ----------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_checkpoint("llama", tmp_path / "model")


def test_calibration_text_is_needed(model: Path, tmp_path: Path) -> None:
    error = refusal(model, tmp_path / "out")
    assert "no calibration text" in error.cause
    assert "--calibration" in error.remedy


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--upload-to-model-id", "a/b"), "--upload-to-model-id is not supported"),
        (("--samples", "0"), "--samples is 0"),
        (("--sequence-length", "0"), "--sequence-length is 0"),
        (("--percdamp", "0"), "--percdamp is 0.0"),
        (("--device", "abacus"), "--device is abacus"),
        (("--scheme", "awq", "--bits", "3"), "awq has no --bits 3"),
        (("--scheme", "awq", "--act-order"), "awq has no --act-order"),
        (("--scheme", "awq", "--sym"), "awq has no --sym"),
        (("--scheme", "awq", "--groupsize", "-1"), "awq has no --groupsize -1"),
        (
            ("--groupsize", "128"),
            r"model\.layers\.0\.self_attn\.q_proj has 64 inputs, .* group size 128",
        ),
    ],
)
def test_options_that_cannot_be(
    options: tuple[str, ...], message: str, model: Path, tmp_path: Path, calibration_file: Path
) -> None:
    error = refusal(model, tmp_path / "out", "--calibration", calibration_file, *SMALL, *options)
    with pytest.raises(StartupError, match=message):
        raise error
    assert not (tmp_path / "out").exists()


def test_outputs_that_do_not_fill_words(tmp_path: Path, calibration_file: Path) -> None:
    model = write_checkpoint("llama", tmp_path / "model", head_dim=6, num_key_value_heads=2)
    options = ("--calibration", calibration_file, *SMALL, "--groupsize", "-1", "--bits", "4")
    assert refusal(model, tmp_path / "out", *options).cause == (
        "model.layers.0.self_attn.k_proj has 12 outputs, which is no multiple of 8, the number of "
        "codes that fill whole 32-bit words"
    )


def test_a_tokenizer_of_another_model(tmp_path: Path, calibration_file: Path) -> None:
    model = tiny_model.write_checkpoint("llama", tmp_path / "model")
    options = ("--calibration", calibration_file, *SMALL, "--groupsize", "32")
    assert re.search(
        r"tokenizer gives token id \d+, and the model has 320 tokens",
        refusal(model, tmp_path / "out", *options).cause,
    )


def test_a_directory_without_weights(model: Path, tmp_path: Path, calibration_file: Path) -> None:
    (model / "model.safetensors").unlink()
    error = refusal(model, tmp_path / "out", "--calibration", calibration_file, *SMALL)
    assert "holds no safetensors weights" in error.cause


def test_an_output_that_holds_a_model(model: Path, calibration_file: Path) -> None:
    error = refusal(model, model, "--calibration", calibration_file)
    assert "holds a model already (config.json)" in error.cause


def test_a_disk_that_fills_up_leaves_nothing(
    model: Path, tmp_path: Path, calibration_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, calls = writer.save_file, []

    def fills_up(tensors: dict[str, torch.Tensor], path: Path, **options: Any) -> None:
        calls.append(path)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        save(tensors, path, **options)

    monkeypatch.setattr(writer, "save_file", fills_up)
    options = ("--calibration", calibration_file, *SMALL, "--groupsize", "32")
    assert "No space left on device" in refusal(model, tmp_path / "out", *options).cause
    assert list((tmp_path / "out").iterdir()) == []


def test_too_little_space_is_noticed_before(
    model: Path, tmp_path: Path, calibration_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = staging.shutil.disk_usage("/")._replace(free=10)
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda path: usage)
    options = ("--calibration", calibration_file, *SMALL, "--groupsize", "32")
    assert "of free space" in refusal(model, tmp_path / "out", *options).cause


def test_weights_that_are_not_finite(model: Path, tmp_path: Path, calibration_file: Path) -> None:
    from safetensors.torch import save_file

    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")
    save_file(tensors, model / "model.safetensors")
    options = ("--calibration", calibration_file, *SMALL, "--groupsize", "32")
    assert "mlp.up_proj" in refusal(model, tmp_path / "out", *options).cause
