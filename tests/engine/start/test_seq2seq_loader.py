"""Start-up with an encoder-decoder."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from local_mode.tiny_variants_t5 import write_checkpoint
from serving.engine.launcher_reports import LauncherReports
from serving.engine.start.model_loader import LoadedModel, load_model
from serving.engine.start.seq2seq_loader import longest_sequence, start_token_id
from serving.errors import StartupError
from serving.kernels.torch_ops import TorchOps
from serving.layers.parallel import SINGLE, ShardContext
from serving.models.causal_model import SequenceTraits
from serving.models.encoder_decoder import EncoderDecoder
from serving.settings import Settings

CPU = torch.device("cpu")


@pytest.fixture
def reports() -> Iterator[LauncherReports]:
    reader, writer = os.pipe()
    yield LauncherReports(writer)
    os.close(reader)
    os.close(writer)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint("flan-t5", tmp_path_factory.mktemp("flan"))


@pytest.fixture
def checkpoint(published: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    for path in published.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def load(
    path: Path, reports: LauncherReports, shard: ShardContext = SINGLE, **settings: Any
) -> LoadedModel:
    return load_model(
        Settings(disable_custom_kernels=True, **settings), path, shard, CPU, TorchOps(), reports
    )


def edit(path: Path, **values: object) -> None:
    """Change keys of a JSON file; None removes one."""
    content = {**(json.loads(path.read_text()) if path.exists() else {}), **values}
    kept = {key: value for key, value in content.items() if value is not None}
    path.write_text(json.dumps(kept))


def test_what_the_engine_is_told(published: Path, reports: LauncherReports) -> None:
    loaded = load(published, reports)
    assert isinstance(loaded.decoder, EncoderDecoder)
    assert loaded.traits == SequenceTraits(True, (0,), False)
    assert loaded.context_length == 512 + 1
    assert (loaded.shape.layers, loaded.shape.kv_heads, loaded.shape.head_dim) == (3, 4, 16)
    assert loaded.decoder.spec.vocab_size == 320


def test_every_stored_tensor_is_counted_once(published: Path, reports: LauncherReports) -> None:
    stored = load_file(published / "model.safetensors")
    assert load(published, reports).weight_bytes == sum(one.nbytes for one in stored.values())


def test_an_embedding_under_the_encoders_name(checkpoint: Path, reports: LauncherReports) -> None:
    file = checkpoint / "model.safetensors"
    tensors = load_file(file)
    tensors["encoder.embed_tokens.weight"] = tensors.pop("shared.weight")
    save_file(tensors, file, {"format": "pt"})
    load(checkpoint, reports)


def test_a_head_of_its_own_is_used_whatever_the_config_says(
    checkpoint: Path, reports: LauncherReports
) -> None:
    edit(checkpoint / "config.json", tie_word_embeddings=True, scale_decoder_outputs=False)
    loaded = load(checkpoint, reports)
    hidden = torch.randn(2, 64)
    tied = load_file(checkpoint / "model.safetensors")["shared.weight"]
    with torch.inference_mode():
        logits = loaded.decoder.logits(hidden)
    assert logits.shape == (2, 320)
    head = load_file(checkpoint / "model.safetensors")["lm_head.weight"]
    norm = load_file(checkpoint / "model.safetensors")["decoder.final_layer_norm.weight"]
    normed = torch.nn.functional.rms_norm(hidden, (64,), norm, 1e-6)
    torch.testing.assert_close(logits, normed @ head.T, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits, normed @ tied.T, atol=0.1)


def test_a_missing_head_is_named(checkpoint: Path, reports: LauncherReports) -> None:
    file = checkpoint / "model.safetensors"
    tensors = load_file(file)
    del tensors["lm_head.weight"]
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(StartupError, match=r"lm_head\.weight"):
        load(checkpoint, reports)


def test_a_start_token_outside_the_vocabulary_is_refused(
    checkpoint: Path, reports: LauncherReports
) -> None:
    edit(checkpoint / "generation_config.json", decoder_start_token_id=320)
    with pytest.raises(StartupError, match="`decoder_start_token_id` must be >= 0 and < 320"):
        load(checkpoint, reports)


def test_rope_scaling_is_refused(published: Path, reports: LauncherReports) -> None:
    with pytest.raises(StartupError, match="`rope_parameters` must be None"):
        load(published, reports, rope_factor=2.0)


def test_an_unknown_activation_is_named(checkpoint: Path, reports: LauncherReports) -> None:
    edit(checkpoint / "config.json", feed_forward_proj="gated-mish")
    with pytest.raises(StartupError, match="`feed_forward_proj` 'mish' is not supported"):
        load(checkpoint, reports)


def test_heads_that_ranks_do_not_divide(published: Path, reports: LauncherReports) -> None:
    with pytest.raises(StartupError, match="attention heads cannot be divided over 3 shards"):
        load(published, reports, ShardContext(rank=0, size=3))


def test_the_start_token_is_found_where_transformers_finds_it(tmp_path: Path) -> None:
    assert start_token_id(tmp_path, {"decoder_start_token_id": 4, "pad_token_id": 1}) == 4
    assert start_token_id(tmp_path, {"pad_token_id": 1}) == 1
    edit(tmp_path / "generation_config.json", decoder_start_token_id=0)
    assert start_token_id(tmp_path, {"decoder_start_token_id": 4}) == 0


def test_the_stated_length_is_a_default_only(tmp_path: Path) -> None:
    assert longest_sequence(tmp_path, {}, Settings()) == 512
    edit(tmp_path / "tokenizer_config.json", model_max_length=10**30)
    assert longest_sequence(tmp_path, {}, Settings()) == 512
    edit(tmp_path / "tokenizer_config.json", model_max_length=1024)
    assert longest_sequence(tmp_path, {}, Settings()) == 1024
    assert longest_sequence(tmp_path, {"n_positions": 600}, Settings()) == 600
    assert longest_sequence(tmp_path, {"n_positions": 600}, Settings(max_total_tokens=4000)) == 4000
