"""Models on KV caches of one byte per element: equal in every way, near the plain cache."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_rig import Rig, load_decoder
from rank_group import Job, run_jobs
from reference import load_reference
from seq2seq_rig import Seq2SeqRig
from seq2seq_rig import load as load_seq2seq
from transformers import AutoModelForCausalLM
from transformers.models.llama import modeling_llama
from undeclared_models import write_undeclared
from undeclared_rig import UndeclaredRig

from local_mode import tiny_variants_t5
from local_mode.tiny_model import write_checkpoint
from serving.kernels import cpu_ops
from serving.kernels.compiled_ops import CompiledOps
from serving.kernels.kv_format import CODED
from serving.kernels.torch_ops import TorchOps
from serving.models.transformers_decoder import TransformersDecoder

NEW_TOKENS = 32
PROMPTS = [37, 1, 64, 90]  # lengths: inside a block, one token, block boundary, beyond windows
# Grouped queries; window and soft cap; latent vectors; linear biases, which only torch computes.
VARIANTS = ["llama", "gemma2", "deepseek_v2", "bloom"]
# Largest distance to the logits of the plain cache, relative to their size. e5m2 has one bit of
# mantissa less than e4m3; int8 has steps of 1/127 of a vector's largest element.
NEAR = {"fp8_e4m3fn": 0.1, "fp8_e5m2": 0.2, "int8": 0.03}
# A rounding difference of 1e-7 may choose the other of two neighbouring codes now and then.
SAME = 0.02
TOLERANCE = 1e-3


class Case:
    """A checkpoint, a format, and what a whole prompt followed by decodes gives on it."""

    def __init__(self, variant: str, kv_cache_dtype: str, path: Path) -> None:
        self.kv_cache_dtype = kv_cache_dtype
        self.path = write_checkpoint(variant, path)
        self.decoder = load_decoder(self.path, TorchOps())
        source = random.Random(variant)
        self.prompts = [[source.randrange(3, 320) for _ in range(n)] for n in PROMPTS]
        self.tokens: list[list[int]] = []
        self.logits: list[torch.Tensor] = []
        for prompt in self.prompts:
            rig = self.rig()
            rig.add(0, prompt, NEW_TOKENS)
            self.tokens.append(rig.run()[0])
            self.logits.append(torch.stack(rig.logits[0]))

    def rig(self, **options: object) -> Rig:
        chosen: dict[str, Any] = {"kv_cache_dtype": self.kv_cache_dtype, **options}
        return Rig(self.decoder, TorchOps(), **chosen)

    def check(self, rig: Rig, tokens: dict[int, list[int]], prompts: dict[int, int]) -> None:
        """Compare tokens and logits; `prompts`: which prompt each sequence had."""
        for one, prompt in prompts.items():
            assert tokens[one] == self.tokens[prompt]
            found = torch.stack(rig.logits[one])
            assert (found - self.logits[prompt]).abs().max() < SAME * self.logits[prompt].std()


@pytest.fixture(scope="module", params=[(one, name) for one in VARIANTS for name in CODED], ids=str)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(*request.param, tmp_path_factory.mktemp("coded"))


def test_logits_are_near_those_of_the_plain_cache(case: Case) -> None:
    for index, prompt in enumerate(case.prompts):
        rig = case.rig(kv_cache_dtype=None)
        rig.add(0, prompt, 1)
        rig.run()
        plain, found = rig.logits[0][0], case.logits[index][0]
        distance = float((found - plain).norm() / plain.norm())
        assert 0 < distance < NEAR[case.kv_cache_dtype]


@pytest.mark.parametrize("budget", [5, 16, 33])
def test_chunked_prefill(case: Case, budget: int) -> None:
    rig = case.rig(token_budget=budget)
    rig.add(0, case.prompts[3], NEW_TOKENS)
    case.check(rig, rig.run(), {0: 3})


def test_prefix_cache_hit(case: Case) -> None:
    rig = case.rig()
    rig.add(0, case.prompts[3], 1)
    rig.run()
    rig.add(1, case.prompts[3], NEW_TOKENS)
    tokens = rig.run()
    assert rig.scheduler.counters.prefix_hit_tokens == 88
    case.check(rig, tokens, {1: 3})


def test_mixed_batch_with_preemption(case: Case) -> None:
    rig = case.rig(num_blocks=22, token_budget=24, prefix_caching=False)
    for sequence_id, prompt in enumerate(case.prompts):
        rig.add(sequence_id, prompt, NEW_TOKENS)
        for _ in range(3):
            rig.step()
    rig.run()
    assert rig.scheduler.counters.preemptions > 0
    case.check(rig, rig.tokens, {i: i for i in range(len(PROMPTS))})


def test_resumed_sequence_continues_where_it_stopped(case: Case) -> None:
    rig = case.rig()
    rig.add(0, case.prompts[0], NEW_TOKENS, resume=case.tokens[0][:13])
    assert rig.run() == {0: case.tokens[0][13:]}


def test_compiled_operations_in_a_mixed_batch(case: Case) -> None:
    loaded = cpu_ops.load()
    if not loaded:
        pytest.skip(f"no compiled operations here: {loaded.reason}")
    ops = CompiledOps()
    decoder = load_decoder(case.path, ops)
    rig = Rig(decoder, ops, token_budget=40, kv_cache_dtype=case.kv_cache_dtype)
    for sequence_id, prompt in enumerate(case.prompts):
        rig.add(sequence_id, prompt, NEW_TOKENS)
    case.check(rig, rig.run(), {i: i for i in range(len(PROMPTS))})


# ------------------------------------------------------------------ an oracle of its own


def rounded(numbers: torch.Tensor, name: str, scale: float) -> torch.Tensor:
    """[..., dim] through a format, by its definition."""
    if name == "int8":
        steps = numbers.abs().amax(-1, keepdim=True) / 127
        return (numbers / steps).round() * steps
    fp8 = CODED[name].dtype
    limit = torch.finfo(fp8).max
    return (numbers / scale).clamp(-limit, limit).to(fp8).float() * scale


@pytest.mark.parametrize("name", CODED)
def test_transformers_with_rounded_keys_and_values_gives_our_logits(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_checkpoint("llama", tmp_path / "llama")
    model: Any = load_reference(path)
    scales = (0.021, 0.6) if name != "int8" else (1.0, 1.0)
    rotate = modeling_llama.apply_rotary_pos_emb

    def rotate_and_round(*arguments: Any, **options: Any) -> Any:
        query, key = rotate(*arguments, **options)
        return query, rounded(key, name, scales[0])

    def round_values(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        heads = output.unflatten(-1, (2, -1))
        return rounded(heads, name, scales[1]).flatten(-2)

    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", rotate_and_round)
    for layer in model.model.layers:
        layer.self_attn.v_proj.register_forward_hook(round_values)
    prompt = [random.Random(name).randrange(3, 320) for _ in range(37)]
    rig = Rig(
        load_decoder(path, TorchOps()), TorchOps(), token_budget=16, kv_cache_dtype=name,
        kv_scales=(scales,) * 3,
    )  # fmt: skip
    rig.add(0, prompt, 8)
    tokens = rig.run()[0]
    with torch.no_grad():
        logits = model(torch.tensor([prompt + tokens[:-1]]), use_cache=False).logits[0]
    expected = logits[len(prompt) - 1 :]
    assert expected.argmax(-1).tolist() == tokens
    assert (torch.stack(rig.logits[0]) - expected).abs().max() < TOLERANCE


# ------------------------------------------------------------------ other kinds of models


@pytest.mark.parametrize("name", CODED)
def test_encoder_decoder_in_every_way(name: str, tmp_path: Path) -> None:
    loaded = load_seq2seq(tiny_variants_t5.write_checkpoint("t5", tmp_path / "t5"), TorchOps())
    source = random.Random(name)
    prompts = [[source.randrange(3, 320) for _ in range(n)] for n in PROMPTS]

    def run(resume: list[int] | None = None, **options: Any) -> list[list[int]]:
        rig = Seq2SeqRig(loaded, kv_cache_dtype=name, **options)
        for number, prompt in enumerate(prompts):
            rig.add(number, prompt, NEW_TOKENS, resume=resume if number == 0 else None)
            for _ in range(3):
                rig.step()
        rig.run()
        if "num_blocks" in options:
            assert rig.scheduler.counters.preemptions > 0
        return [rig.tokens[number] for number in range(len(prompts))]

    whole = run()
    assert run(num_blocks=24) == whole
    resumed = run(resume=whole[0][:13])
    assert [whole[0][:13] + resumed[0], *resumed[1:]] == whole


@pytest.mark.parametrize("model_type", ["arcee", "gemma4_unified_text"])
@pytest.mark.parametrize("name", CODED)
def test_undeclared_model_in_every_way(name: str, model_type: str, tmp_path: Path) -> None:
    path = write_undeclared(model_type, tmp_path / model_type)
    model = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, attn_implementation="eager"
    )
    decoder = TransformersDecoder(model.eval(), torch.float32, TorchOps())
    prompt = [random.Random(name).randrange(3, 320) for _ in range(37)]

    def run(resume: list[int] | None = None, **options: Any) -> list[int]:
        rig = UndeclaredRig(decoder, TorchOps(), kv_cache_dtype=name, **options)
        rig.add(0, prompt, NEW_TOKENS, resume=resume)
        return rig.run()[0]

    whole = run()
    assert run(token_budget=5) == whole
    assert whole[:13] + run(resume=whole[:13]) == whole


# ------------------------------------------------------------------ two ranks


def test_two_ranks_give_the_tokens_of_one(tmp_path: Path) -> None:
    jobs, expected = [], []
    for variant in ("llama", "deepseek_v2"):
        for name in CODED:
            case = Case(variant, name, tmp_path / f"{variant}-{name}")
            jobs.append(Job(case.path, case.prompts, NEW_TOKENS, name))
            expected.append(case)
    for answers, case in zip(run_jobs("decoder", jobs, tmp_path), expected, strict=True):
        assert [answer.tokens for answer in answers] == case.tokens
        for answer, logits in zip(answers, case.logits, strict=True):
            assert (answer.logits - logits).abs().max() < SAME * logits.std()
