"""What the files say of a checkpoint's quantization, and everything that is refused."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from quantized_variants import DYNAMIC, OTHERS
from written_compressed import Compressed

from serving.errors import StartupError
from serving.quant.awq import AwqScheme
from serving.quant.bitsandbytes import FloatScheme, Int8Scheme
from serving.quant.compressed_groups import group_of, read_groups
from serving.quant.compressed_tensors import CompressedTensorsScheme
from serving.quant.detect import UNQUANTIZED, quantization_of
from serving.quant.fp8 import Fp8Scheme
from serving.quant.gptq import GptqScheme
from serving.quant.marlin import MarlinScheme
from serving.quant.online import QUANTIZERS

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}
BNB = {"quant_method": "bitsandbytes"}
NF4 = BNB | {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
COMPRESSED = OTHERS["int8 activations"].config
EXPECTED = [
    (GPTQ, GptqScheme(4, 128, 1)),
    (GPTQ | {"checkpoint_format": "gptq_v2"}, GptqScheme(4, 128, 0)),
    (GPTQ | {"is_marlin_format": False, "checkpoint_format": None}, GptqScheme(4, 128, 1)),
    (GPTQ | {"is_marlin_format": True}, MarlinScheme(128)),
    (GPTQ | {"checkpoint_format": "marlin"}, MarlinScheme(128)),
    ({"quant_method": "marlin", "group_size": -1}, MarlinScheme(-1)),
    (AWQ, AwqScheme(128)),
    ({"quant_method": "awq", "w_bit": 4, "q_group_size": -1, "version": "GEMM"}, AwqScheme(-1)),
    (BNB | {"load_in_8bit": True, "load_in_4bit": False}, Int8Scheme()),
    (NF4, FloatScheme("nf4")),
    (BNB | {"load_in_4bit": True}, FloatScheme("fp4")),
    ({"load_in_8bit": True}, Int8Scheme()),
    ({"quant_method": "fp8", "activation_scheme": "static"}, Fp8Scheme()),
    ({"quant_method": "fp8", "weight_block_size": [128, 64]}, Fp8Scheme((128, 64))),
    ({"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}, Fp8Scheme()),
    (COMPRESSED, CompressedTensorsScheme(read_groups(COMPRESSED))),
]  # fmt: skip


def refusal(config: dict[str, Any], path: Path, flag: str | None = None) -> str:
    with pytest.raises(StartupError) as caught:
        quantization_of({"quantization_config": config} if config else {}, path, flag)
    return f"{caught.value.cause} -> {caught.value.remedy}"


@pytest.mark.parametrize(("stored", "scheme"), EXPECTED, ids=str)
def test_schemes(stored: dict[str, Any], scheme: object, tmp_path: Path) -> None:
    found = quantization_of({"quantization_config": stored}, tmp_path, None)
    assert found.scheme == scheme
    assert found.quantizer is None
    inner = {"text_config": {"quantization_config": stored}}
    assert quantization_of(inner, tmp_path, None) == found
    assert quantization_of({"compression_config": stored}, tmp_path, None) == found


def test_old_files(tmp_path: Path) -> None:
    (tmp_path / "quant_config.json").write_text(
        json.dumps({"zero_point": True, "q_group_size": 64, "w_bit": 4, "version": "GEMM"})
    )
    assert quantization_of({}, tmp_path, None).scheme == AwqScheme(64)
    (tmp_path / "quantize_config.json").write_text(json.dumps({"bits": 3, "group_size": 32}))
    assert quantization_of({}, tmp_path, "gptq").scheme == GptqScheme(3, 32, 1)


def test_plain_checkpoints(tmp_path: Path) -> None:
    assert quantization_of({}, tmp_path, None) == UNQUANTIZED
    for flag, quantizer in QUANTIZERS.items():
        found = quantization_of({}, tmp_path, flag)
        assert (found.label, found.scheme, found.quantizer) == (flag, None, quantizer)


@pytest.mark.parametrize("flag", ["gptq", "awq", "marlin", "compressed-tensors", "gguf"])
def test_flags_of_checkpoints_that_are_not_there(flag: str, tmp_path: Path) -> None:
    message = refusal({}, tmp_path, flag)
    assert f"--quantize {flag}" in message
    assert "text-generation-server quantize" in message
    assert all(name in message for name in QUANTIZERS)


@pytest.mark.parametrize(
    ("stored", "flags"),
    [
        (GPTQ, ("gptq", "marlin")),
        (AWQ, ("awq", "gptq", "marlin")),
        ({"quant_method": "marlin", "group_size": 128}, ("marlin", "gptq")),
        (NF4, ("bitsandbytes-nf4", "bitsandbytes")),
        (BNB | {"load_in_8bit": True}, ("bitsandbytes",)),
        ({"quant_method": "fp8"}, ("fp8",)),
        ({"quant_method": "fbgemm_fp8"}, ("fp8",)),
        (COMPRESSED, ("compressed-tensors",)),
    ],
    ids=str,
)
def test_flags_that_name_the_scheme_or_contradict_it(
    stored: dict[str, Any], flags: tuple[str, ...], tmp_path: Path
) -> None:
    label = quantization_of({"quantization_config": stored}, tmp_path, None).label
    for flag in ("awq", "gptq", "marlin", "compressed-tensors", *QUANTIZERS):
        if flag in flags:
            found = quantization_of({"quantization_config": stored}, tmp_path, flag)
            assert found.label == label
        else:
            message = refusal(stored, tmp_path, flag)
            assert f"--quantize {flag} contradicts" in message
            assert f"quantized by {label}" in message


def test_exl2_is_refused_once_and_for_all(tmp_path: Path) -> None:
    for message in (refusal({"quant_method": "exl2"}, tmp_path), refusal({}, tmp_path, "exl2")):
        assert "EXL2" in message
        assert "GPTQ or AWQ" in message


def group(**weights: Any) -> dict[str, Any]:
    """A compressed-tensors config with other weights."""
    config = json.loads(json.dumps(Compressed("pack-quantized", 4).config))
    config["config_groups"]["group_0"]["weights"] |= weights
    return config


@pytest.mark.parametrize(
    ("stored", "named"),
    [
        ({"quant_method": "hqq"}, ("`hqq`", "awq", "gptq", "fp8", "compressed-tensors")),
        ({"bits": 4}, ("``", "awq", "gptq")),
        (GPTQ | {"bits": 5}, ("`bits` 5", "2, 3, 4, 8")),
        (GPTQ | {"bits": "four"}, ("`bits`", "four")),
        (GPTQ | {"group_size": None}, ("`group_size`", "None")),
        (GPTQ | {"group_size": 0}, ("`group_size` 0", "-1")),
        (GPTQ | {"dynamic": {"-:lm_head": {}}}, ("`dynamic`",)),
        (GPTQ | {"checkpoint_format": "bitblas"}, ("`checkpoint_format` bitblas", "gptq_v2")),
        (GPTQ | {"is_marlin_format": True, "group_size": 64}, ("`group_size` 64", "-1, 128")),
        (GPTQ | {"is_marlin_format": True, "bits": 8}, ("`bits` 8", "4")),
        (GPTQ | {"is_marlin_format": True, "sym": False}, ("`sym` False", "True")),
        (AWQ | {"bits": 8}, ("`bits` 8", "4")),
        (AWQ | {"version": "gemv"}, ("`version` gemv", "gemm")),
        (AWQ | {"version": "gemv_fast"}, ("`version` gemv_fast", "gemm")),
        (AWQ | {"version": "marlin"}, ("`version` marlin", "gemm")),
        (AWQ | {"version": "exllama"}, ("`version` exllama", "gemm")),
        (NF4 | {"bnb_4bit_quant_type": "int4"}, ("`bnb_4bit_quant_type` int4", "nf4", "fp4")),
        (NF4 | {"bnb_4bit_quant_storage": "bfloat16"}, ("bnb_4bit_quant_storage", "uint8")),
        (COMPRESSED | {"format": "nvfp4-pack-quantized"}, ("nvfp4-pack", "int-quantized")),
        (COMPRESSED | {"format": "marlin-24"}, ("marlin-24", "pack-quantized")),
        (COMPRESSED | {"config_groups": {}}, ("config_groups", "float-quantized")),
        (COMPRESSED | {"sparsity_config": {"format": "sparse-24-bitmask"}}, ("sparse-24-bitmask",)),
        (COMPRESSED | {"transform_config": {"config_groups": {}}}, ("transform_config",)),
        (group(num_bits=3), ("`num_bits` 3", "group_0", "2, 4, 8")),
        (group(num_bits=4, type="float"), ("`num_bits` 4", "float", "8")),
        (group(strategy="tensor_group"), ("`strategy` tensor_group", "channel")),
    ],
    ids=lambda one: one[0] if isinstance(one, tuple) else "",
)  # fmt: skip
def test_refusals_name_the_value_and_what_is_possible(
    stored: dict[str, Any], named: tuple[str, ...], tmp_path: Path
) -> None:
    message = refusal(stored, tmp_path)
    assert [name for name in named if name not in message] == []


def test_a_target_that_is_a_class_of_modules_is_refused(tmp_path: Path) -> None:
    config = Compressed("int-quantized", targets=("Conv2d",)).config
    assert "target Conv2d of group_0" in refusal(config, tmp_path)


def test_groups_by_name_come_before_the_group_of_all() -> None:
    config = Compressed("int-quantized", activations=DYNAMIC).config
    config["config_groups"] = {
        "all": config["config_groups"]["group_0"],
        "down": {"targets": ["re:.*down_proj$"], "weights": {"num_bits": 8, "strategy": "tensor"}},
        "one": {"targets": ["model.layers.0.mlp.up_proj"], "weights": {"num_bits": 8}},
        "grouped": {"targets": ["re:.*head"], "weights": {"num_bits": 8, "group_size": 16}},
        "cache": {"targets": ["re:.*attn"], "weights": None},
    }
    groups = read_groups(config)
    assert [one.block for one in groups] == [(1, -1), (-1, -1), (-1, -1), (1, 16)]
    found = {
        name: groups.index(one)
        for name in ("gate_proj", "up_proj", "down_proj")
        if (one := group_of(groups, f"model.layers.0.mlp.{name}")) is not None
    }
    assert found == {"gate_proj": 0, "up_proj": 2, "down_proj": 1}
    assert group_of(groups[1:], "model.layers.1.mlp.up_proj") is None


def test_every_message_says_what_to_do(tmp_path: Path) -> None:
    for stored in (GPTQ | {"bits": 5}, {"quant_method": "hqq"}, AWQ | {"version": "gemv"}):
        assert re.search(r" -> .*(use|make|remove)", refusal(stored, tmp_path))
