"""State-space models against transformers: logits and greedy tokens, in every way we compute."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mamba_rig import Loaded, MambaRig, load
from op_recorder import OpRecorder
from rank_group import Answer, Job, run_jobs
from reference import answers
from safetensors.torch import load_file, save_file
from sequence_rig import BLOCK_SIZE
from transformers import AutoConfig, AutoModelForCausalLM

from local_mode.tiny_variants_mamba import VARIANTS, write_checkpoint
from serving.engine.start.model_files import read_spec
from serving.engine.start.recorded_steps import use_if_right
from serving.engine.step.decode_graphs import SparePlace
from serving.errors import StartupError
from serving.kernels import cpu_ops
from serving.kernels.compiled_ops import CompiledOps
from serving.kernels.torch_ops import TorchOps
from serving.layers.parallel import ShardContext
from serving.models.mamba_spec import expected_shapes
from serving.models.registry import STATE_SPACES

NEW_TOKENS = 32
PROMPTS = [37, 1, 64, 90]  # lengths: inside a block, one token, block boundary, several blocks
TOLERANCE = 1e-3
ROOT = Path(__file__).parent.parent.parent
Record = Callable[[str, str, float, bool], None]


def prompts_of(variant: str) -> list[list[int]]:
    source = random.Random(variant)
    return [[source.randrange(3, 320) for _ in range(n)] for n in PROMPTS]


class Oracle:
    """A checkpoint, its greedy outputs and logits by transformers, and our model."""

    def __init__(self, variant: str, path: Path, record: Record) -> None:
        self.variant, self.record = variant, record
        self.path = write_checkpoint(variant, path)
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        self.prompts = prompts_of(variant)
        self.loaded: Loaded = load(path, TorchOps())
        found = answers(self.model, self.prompts, self.rig().answers(self.prompts, NEW_TOKENS))
        self.tokens = [one.tokens for one in found]
        self.logits = [one.logits for one in found]

    def rig(self, **options: int) -> MambaRig:
        return MambaRig(self.loaded, **options)

    def check(self, rig: MambaRig, column: str, prompts: dict[int, int]) -> None:
        """Compare tokens and logits; `prompts`: which prompt each sequence had."""
        agrees = all(rig.tokens[one] == self.tokens[prompt] for one, prompt in prompts.items())
        error = max(
            float((torch.stack(rig.logits[one]) - self.logits[prompt]).abs().max())
            for one, prompt in prompts.items()
        )
        self.record(self.variant, column, error, agrees)
        assert agrees
        assert error < TOLERANCE

    @torch.no_grad()
    def prompt_logprobs(self, index: int) -> torch.Tensor:
        """Of every token of the prompt but the first."""
        ids = torch.tensor([self.prompts[index]])
        logprobs = self.model(ids, use_cache=False).logits[0].log_softmax(-1)
        return logprobs[:-1].gather(-1, ids[0, 1:, None]).squeeze(-1)


@pytest.fixture(scope="module", params=sorted(VARIANTS))
def oracle(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, parity: Record
) -> Oracle:
    return Oracle(request.param, tmp_path_factory.mktemp("tiny") / request.param, parity)


@pytest.mark.parametrize("index", range(len(PROMPTS)))
def test_whole_prefill_then_decode(oracle: Oracle, index: int) -> None:
    rig = oracle.rig()
    rig.add(0, oracle.prompts[index], NEW_TOKENS)
    rig.run()
    oracle.check(rig, "whole prefill", {0: index})


@pytest.mark.parametrize("budget", [1, 2, 5, 33])
def test_chunks_hand_their_state_on(oracle: Oracle, budget: int) -> None:
    """Also in chunks that are shorter than the convolution looks back."""
    rig = oracle.rig(token_budget=budget)
    rig.add(0, oracle.prompts[3], NEW_TOKENS)
    rig.run()
    oracle.check(rig, "chunked prefill", {0: 3})


def test_states_matter(oracle: Oracle) -> None:
    """Or the other tests would show nothing: without its state a sequence goes on differently."""
    rig = oracle.rig()
    rig.add(0, oracle.prompts[3], 2)
    rig.step()
    for layer in rig.pool:
        layer.recurrent.zero_()
    rig.step()
    assert (rig.logits[0][1] - oracle.logits[3][1]).abs().max() > 100 * TOLERANCE


def test_a_row_is_clean_for_its_next_sequence(oracle: Oracle) -> None:
    rig = oracle.rig(max_rows=1)
    for sequence_id in range(len(PROMPTS)):
        rig.add(sequence_id, oracle.prompts[sequence_id], NEW_TOKENS)
    rig.run()
    oracle.check(rig, "whole prefill", {i: i for i in range(len(PROMPTS))})


def test_mixed_batch_with_preemption(oracle: Oracle) -> None:
    """Sequences arrive while others decode, with too few blocks for all of them."""
    rig = oracle.rig(num_blocks=22, token_budget=24)
    for sequence_id, prompt in enumerate(oracle.prompts):
        rig.add(sequence_id, prompt, NEW_TOKENS)
        for _ in range(3):
            rig.step()
    rig.run()
    assert rig.scheduler.counters.preemptions > 0
    assert rig.mixed_steps > 0
    oracle.check(rig, "mixed batch", {i: i for i in range(len(PROMPTS))})


def test_an_aborted_sequence_leaves_the_others_alone(oracle: Oracle) -> None:
    rig = oracle.rig(token_budget=40)
    for sequence_id in (0, 1, 2):
        rig.add(sequence_id, oracle.prompts[sequence_id], NEW_TOKENS)
    for _ in range(5):
        rig.step()
    rig.scheduler.abort((b"worker", 1))
    rig.add(3, oracle.prompts[3], NEW_TOKENS)  # in the row of the aborted one
    rig.run()
    oracle.check(rig, "mixed batch", {0: 0, 2: 2, 3: 3})


def test_equal_prompts_share_nothing(oracle: Oracle) -> None:
    rig = oracle.rig()
    for sequence_id in (0, 1):
        rig.add(sequence_id, oracle.prompts[3], NEW_TOKENS)
        rig.run()
    assert rig.scheduler.counters.prefix_hit_tokens == 0
    oracle.check(rig, "whole prefill", {0: 3, 1: 3})


def test_resumed_sequence_continues_where_it_stopped(oracle: Oracle) -> None:
    rig = oracle.rig(token_budget=32)
    rig.add(0, oracle.prompts[0], NEW_TOKENS, resume=oracle.tokens[0][:13])
    rig.add(1, oracle.prompts[1], NEW_TOKENS, resume=oracle.tokens[1][:25])
    assert rig.run() == {0: oracle.tokens[0][13:], 1: oracle.tokens[1][25:]}


@pytest.mark.parametrize("budget", [16, 512])
def test_prompt_logprobs(oracle: Oracle, budget: int) -> None:
    rig = oracle.rig(token_budget=budget)
    rig.add(0, oracle.prompts[3], 2, prompt_logprobs=True)
    rig.run()
    found = torch.tensor(rig.prompt_logprobs[0])
    assert (found - oracle.prompt_logprobs(3)).abs().max() < TOLERANCE


def test_compiled_operations_in_a_mixed_batch(oracle: Oracle) -> None:
    loaded = cpu_ops.load()
    if not loaded:
        pytest.skip(f"no compiled operations here: {loaded.reason}")
    rig = MambaRig(load(oracle.path, CompiledOps()), token_budget=40)
    for sequence_id, prompt in enumerate(oracle.prompts):
        rig.add(sequence_id, prompt, NEW_TOKENS)
        rig.step()
    rig.run()
    assert [rig.tokens[i] for i in range(len(PROMPTS))] == oracle.tokens


def test_half_precision_is_as_exact_as_transformers(oracle: Oracle) -> None:
    """Logits of the first token, before rounding can lead elsewhere."""
    rig = MambaRig(load(oracle.path, TorchOps(), torch.bfloat16), token_budget=40)
    model = AutoModelForCausalLM.from_pretrained(oracle.path, dtype=torch.bfloat16).eval()
    ours, theirs = [], []
    for index, prompt in enumerate(oracle.prompts):
        rig.add(index, prompt, 1)
        rig.run()
        ours.append(float((rig.logits[index][0] - oracle.logits[index][0]).abs().max()))
        with torch.no_grad():
            found = model(torch.tensor([prompt]), use_cache=False).logits[0, -1].float()
        theirs.append(float((found - oracle.logits[index][0]).abs().max()))
    assert max(ours) < 1.5 * max(theirs)


def test_recorded_steps_advance_states(oracle: Oracle, caplog: pytest.LogCaptureFixture) -> None:
    """Steps of decodes as a GPU records and replays them, padded with a sequence of nobody."""
    rig, recorder = oracle.rig(), OpRecorder()
    spare = SparePlace(rig.max_rows, rig.num_blocks, BLOCK_SIZE)
    use_if_right(rig.runner, lambda: rig.runner.record([1, 4], recorder, spare, rig.longest))
    assert caplog.messages == []
    of_proof = recorder.replays
    for sequence_id, prompt in enumerate(oracle.prompts[:3]):
        rig.add(sequence_id, prompt, 12)
    rig.run()
    assert recorder.replays == of_proof + 11
    assert [rig.tokens[i] for i in range(3)] == [tokens[:12] for tokens in oracle.tokens[:3]]


@pytest.fixture(scope="module")
def on_two_ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Answer]]:
    """Of each variant, what two ranks give; all in one pair of processes."""
    directory = tmp_path_factory.mktemp("ranks")
    jobs = [
        Job(write_checkpoint(variant, directory / variant), prompts_of(variant)[:3], 12)
        for variant in sorted(VARIANTS)
    ]
    found = run_jobs("state_space", jobs, directory)
    return dict(zip(sorted(VARIANTS), found, strict=True))


def test_two_ranks_give_the_tokens_of_transformers(
    oracle: Oracle, on_two_ranks: dict[str, list[Answer]]
) -> None:
    found = on_two_ranks[oracle.variant]
    pairs = zip(found, oracle.logits[:3], strict=True)
    error = max(float((one.logits - logits[:12]).abs().max()) for one, logits in pairs)
    agrees = [one.tokens for one in found] == [tokens[:12] for tokens in oracle.tokens[:3]]
    oracle.record(oracle.variant, "two ranks", error, agrees)
    assert agrees
    assert error < TOLERANCE


def test_the_embedding_may_have_its_first_name(tmp_path: Path) -> None:
    path = write_checkpoint("mamba", tmp_path)
    tensors = load_file(path / "model.safetensors")
    tensors["backbone.embedding.weight"] = tensors.pop("backbone.embeddings.weight")
    save_file(tensors, path / "model.safetensors")
    assert load(path, TorchOps()).decoder.spec.vocab_size == 320


def test_missing_tensors_are_named(tmp_path: Path) -> None:
    path = write_checkpoint("mamba", tmp_path)
    tensors = load_file(path / "model.safetensors")
    del tensors["backbone.layers.1.mixer.A_log"]
    save_file(tensors, path / "model.safetensors")
    with pytest.raises(StartupError, match=r"1 of \d+ .* backbone\.layers\.1\.mixer\.A_log"):
        load(path, TorchOps())


def test_channels_that_ranks_cannot_divide_are_refused(oracle: Oracle) -> None:
    with pytest.raises(ValueError, match=r"channels of the mixer .* cannot be divided over 7"):
        load(oracle.path, TorchOps(), shard=ShardContext(0, 7))


def test_every_registered_family_has_a_parity_row() -> None:
    registered = {name for family in STATE_SPACES for name in family.model_types}
    assert {model_type for model_type, _ in VARIANTS.values()} == registered


# Facts of the published config.json files: hidden size, layers, bottleneck of the time steps.
PUBLISHED = {
    "mamba-130m": (768, 24, 48), "mamba-370m": (1024, 48, 64), "mamba-790m": (1536, 48, 96),
    "mamba-1.4b": (2048, 48, 128), "mamba-2.8b": (2560, 64, 160),
}  # fmt: skip


def published(name: str) -> dict[str, object]:
    if name == "falcon-mamba-7b":
        return {
            "model_type": "falcon_mamba", "vocab_size": 65024, "hidden_size": 4096, "expand": 16,
            "intermediate_size": 8192, "num_hidden_layers": 64, "state_size": 16, "conv_kernel": 4,
            "time_step_rank": 256, "tie_word_embeddings": False, "hidden_act": "silu",
        }  # fmt: skip
    hidden, layers, rank = PUBLISHED[name]
    return {
        "model_type": "mamba", "vocab_size": 50280, "hidden_size": hidden, "expand": 2,
        "intermediate_size": 2 * hidden, "num_hidden_layers": layers, "state_size": 16,
        "conv_kernel": 4, "time_step_rank": rank, "use_bias": False, "use_conv_bias": True,
        "residual_in_fp32": True, "hidden_act": "silu",
    }  # fmt: skip


@pytest.mark.parametrize("name", [*PUBLISHED, "falcon-mamba-7b"])
def test_tensors_of_published_sizes_are_those_of_transformers(name: str) -> None:
    config = published(name)
    model_type = str(config["model_type"])
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    expected = {name: tuple(one.shape) for name, one in model.named_parameters()}
    family = next(one for one in STATE_SPACES if model_type in one.model_types)
    spec = read_spec(family, config)
    assert expected_shapes(spec, family.names, family.names.embeddings[0]) == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "tan"}, "`hidden_act` 'tan' is not supported"),
        ({"state_size": 0}, "`state_size` in config.json must be a positive integer. Given: 0"),
        ({"time_step_rank": -1}, "`time_step_rank` in config.json must be a positive integer"),
    ],
)
def test_a_config_that_cannot_be_is_named(change: dict[str, object], message: str) -> None:
    config = {
        "vocab_size": 320, "hidden_size": 64, "state_size": 8, "conv_kernel": 4,
        "num_hidden_layers": 2, **change,
    }  # fmt: skip
    with pytest.raises(StartupError, match=message):
        read_spec(STATE_SPACES[0], config)
