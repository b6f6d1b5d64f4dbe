"""Both implementations of the decoder's operations against the plain float32 oracle."""

import pytest
import torch
from attention_scene import BLOCK, Scene

from serving.kernels import cpu_ops, reference
from serving.kernels.compiled_ops import CompiledOps
from serving.kernels.torch_attention import ScoreRule
from serving.kernels.torch_ops import HeadLayout, TorchOps

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


@pytest.fixture(params=["torch", "compiled"])
def ops(request: pytest.FixtureRequest) -> TorchOps:
    if request.param == "torch":
        return TorchOps()
    loaded = cpu_ops.load()
    if not loaded:
        pytest.skip(f"no compiled operations here: {loaded.reason}")
    return CompiledOps()


LAYOUTS = [HeadLayout(4, 2, 32), HeadLayout(14, 2, 64), HeadLayout(3, 1, 128), HeadLayout(4, 4, 16)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("biased", [False, True], ids=["", "slopes"])
@pytest.mark.parametrize("soft_cap", [0.0, 2.0])
@pytest.mark.parametrize("window", [0, 7, 32])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_attention_of_a_mixed_step(
    ops: TorchOps,
    layout: HeadLayout,
    window: int,
    soft_cap: float,
    biased: bool,
    dtype: torch.dtype,
) -> None:
    scene = Scene(layout, dtype)
    angle = torch.rand(scene.qkv.shape[0], layout.head_dim // 2)
    ops.rope_and_write(scene.qkv, layout, angle.cos(), angle.sin(), scene.kv, scene.batch)
    slopes = 0.5 ** torch.arange(1, layout.heads + 1) if biased else None
    rule = ScoreRule(layout.head_dim**-0.5, window, soft_cap, slopes)
    found = ops.attention(scene.qkv, layout, scene.kv, scene.batch, rule)
    query, _, _ = layout.split(scene.qkv)
    expected = reference.paged_attention(query, *scene.numbers(), scene.batch, rule)
    torch.testing.assert_close(
        found.float(), expected.flatten(1).float(), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype]
    )


def test_rope_turns_pairs_of_the_two_halves(ops: TorchOps) -> None:
    layout = HeadLayout(4, 2, 32)
    scene = Scene(layout, torch.float32)
    before = scene.qkv.clone()
    angle = torch.rand(before.shape[0], 16)
    ops.rope_and_write(scene.qkv, layout, angle.cos(), angle.sin(), scene.kv, scene.batch)
    query, key, value = layout.split(before)
    for source, result in zip((query, key), layout.split(scene.qkv)[:2], strict=True):
        complex_source = torch.complex(source[..., :16], source[..., 16:])
        turned = complex_source * torch.polar(torch.ones_like(angle), angle)[:, None]
        torch.testing.assert_close(result, torch.cat([turned.real, turned.imag], -1))
    assert torch.equal(layout.split(scene.qkv)[2], value)


def test_keys_and_values_land_in_their_slots_and_nowhere_else(ops: TorchOps) -> None:
    layout = HeadLayout(4, 2, 32)
    scene = Scene(layout, torch.float32)
    keys = scene.kv.keys.codes.clone()
    zero = torch.zeros(scene.qkv.shape[0], 16)
    ops.rope_and_write(scene.qkv, layout, zero.cos(), zero.sin(), scene.kv, scene.batch)
    _, key, value = layout.split(scene.qkv)
    block, offset = scene.batch.slots // BLOCK, scene.batch.slots % BLOCK
    torch.testing.assert_close(scene.kv.keys.codes[block, :, offset], key)
    torch.testing.assert_close(scene.kv.values.codes[block, :, offset], value)
    untouched = torch.ones(keys.shape[0], BLOCK, dtype=torch.bool)
    untouched[block, offset] = False
    chosen = untouched[:, None, :, None].expand_as(keys)
    assert torch.equal(scene.kv.keys.codes[chosen], keys[chosen])


def test_rms_norm_is_that_of_torch(ops: TorchOps) -> None:
    x, weight = torch.randn(5, 64), torch.rand(64)
    expected = torch.nn.functional.rms_norm(x, (64,), weight, 1e-5)
    torch.testing.assert_close(ops.rms_norm(x, weight, 1e-5), expected)


def test_rms_norm_takes_heads_of_a_wider_row(ops: TorchOps) -> None:
    rows, weight = torch.randn(5, 6, 32), torch.rand(32)
    expected = torch.nn.functional.rms_norm(rows[:, 1:3], (32,), weight, 1e-6)
    torch.testing.assert_close(ops.rms_norm(rows[:, 1:3], weight, 1e-6), expected)


def test_add_rms_norm_adds_in_place(ops: TorchOps) -> None:
    x, residual, weight = torch.randn(5, 64), torch.randn(5, 64), torch.rand(64)
    total = x + residual
    expected = torch.nn.functional.rms_norm(total, (64,), weight, 1e-5)
    torch.testing.assert_close(ops.add_rms_norm(x.clone(), residual, weight, 1e-5), expected)
    torch.testing.assert_close(residual, total)


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh", "relu"])
def test_gated_multiplies_the_activated_half(ops: TorchOps, activation: str) -> None:
    gate_up = torch.randn(3, 40)
    functions = {
        "silu": torch.nn.SiLU(),
        "gelu": torch.nn.GELU(),
        "gelu_tanh": torch.nn.GELU("tanh"),
        "relu": torch.nn.ReLU(),
    }
    expected = functions[activation](gate_up[:, :20]) * gate_up[:, 20:]
    torch.testing.assert_close(ops.gated(gate_up, activation), expected)


def test_greedy_gives_best_id_and_logprob(ops: TorchOps) -> None:
    logits = torch.randn(7, 1001)
    ids, logprobs = ops.greedy(logits)
    assert torch.equal(ids, logits.argmax(-1))
    torch.testing.assert_close(logprobs, logits.log_softmax(-1).max(-1).values)
