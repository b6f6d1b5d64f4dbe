"""Sizes from the Hub's and S3's listings, KV bytes from published configurations."""

import json
import urllib.error
from collections.abc import Callable, Iterator
from typing import Any

import boto3
import pytest
from moto import mock_aws

from sm_deploy.model_facts import UnknownSize, facts_of, hub_facts, s3_facts

CONFIG = {
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "hidden_size": 4096,
    "max_position_embeddings": 8192,
}
LISTING = {
    "siblings": [
        {"rfilename": "model-00001-of-00002.safetensors", "size": 4_000},
        {"rfilename": "model-00002-of-00002.safetensors", "size": 2_000},
        {"rfilename": "original/consolidated.00.pth", "size": 9_000},
        {"rfilename": "consolidated.safetensors", "size": 6_000},
        {"rfilename": "README.md", "size": 10},
    ]
}


def hub(listing: Any, asked: list[tuple[str, str | None]]) -> Callable[[str, str | None], bytes]:
    def fetch(url: str, token: str | None) -> bytes:
        asked.append((url, token))
        return json.dumps(listing if "/api/" in url else CONFIG).encode()

    return fetch


def test_the_hub_tells_sizes_without_any_weights_being_read() -> None:
    asked: list[tuple[str, str | None]] = []
    facts = hub_facts("org/model", "v1/x", "hf_1", hub(LISTING, asked))
    assert facts.weight_bytes == 6_000  # not the same weights in another layout
    assert facts.kv_bytes_per_token == 2 * 32 * 8 * 128 * 2
    assert (facts.attention_heads, facts.longest_context) == (32, 8192)
    assert asked == [
        ("https://huggingface.co/api/models/org/model/revision/v1%2Fx?blobs=true", "hf_1"),
        ("https://huggingface.co/org/model/resolve/v1%2Fx/config.json", "hf_1"),
    ]


def test_a_hub_that_refuses_leaves_the_size_unknown() -> None:
    def fetch(url: str, token: str | None) -> bytes:
        raise urllib.error.URLError("401 Unauthorized")

    with pytest.raises(UnknownSize, match=r"'org/gated'.*401"):
        hub_facts("org/gated", None, None, fetch)


def test_weights_of_another_kind_have_no_known_size() -> None:
    with pytest.raises(UnknownSize, match="no safetensors"):
        hub_facts("org/model", None, None, hub({"siblings": []}, []))


@pytest.mark.parametrize(
    ("config", "per_token"),
    [
        ({"n_head": 12, "n_layer": 12, "n_embd": 768}, 2 * 12 * 12 * 64 * 2),  # GPT-2
        ({**CONFIG, "head_dim": 256}, 2 * 32 * 8 * 256 * 2),
        ({"text_config": CONFIG}, 131_072),
        (  # DeepSeek V3: one latent vector
            {**CONFIG, "num_hidden_layers": 61, "kv_lora_rank": 512, "qk_rope_head_dim": 64},
            61 * 576 * 2,
        ),
        ({}, 0),
    ],
)
def test_kv_bytes_of_each_form_of_configuration(config: dict[str, Any], per_token: int) -> None:
    assert facts_of(1, config).kv_bytes_per_token == per_token


@pytest.fixture
def bucket() -> Iterator[Any]:
    with mock_aws():
        s3 = boto3.client("s3", "us-east-1", aws_access_key_id="x", aws_secret_access_key="x")
        s3.create_bucket(Bucket="models")
        yield s3


def test_s3_tells_sizes_of_a_prefix(bucket: Any) -> None:
    bucket.put_object(Bucket="models", Key="llm/model.safetensors", Body=b"x" * 500)
    bucket.put_object(Bucket="models", Key="llm-2/model.safetensors", Body=b"x" * 900)
    bucket.put_object(Bucket="models", Key="llm/config.json", Body=json.dumps(CONFIG))
    for address in ("s3://models/llm", "s3://models/llm/"):
        facts = s3_facts(address, bucket)
        assert (facts.weight_bytes, facts.kv_bytes_per_token) == (500, 131_072)


@pytest.mark.parametrize("address", ["s3://models/empty/", "s3://nowhere/llm/", "s3://m/x.tar.gz"])
def test_what_s3_cannot_tell_stays_unknown(bucket: Any, address: str) -> None:
    with pytest.raises(UnknownSize):
        s3_facts(address, bucket)
