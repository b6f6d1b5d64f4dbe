"""How big a model is, from metadata alone: no weights are read.

Runs on the deploying person's machine. Comes in: a Hub id or an S3 prefix. Goes out:
`ModelFacts`: bytes of the weight files, and of `config.json` what a KV cache needs. Next:
`sizing.py`.
"""

import json
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

HUB = "https://huggingface.co"
WEIGHTS = re.compile(r"(?!consolidated)[^/]*\.safetensors")  # not those of another layout
HUB_SECONDS = 20
Fetch = Callable[[str, str | None], bytes]


@dataclass(frozen=True)
class ModelFacts:
    """Sizes of a model; zero is unknown."""

    weight_bytes: int
    kv_bytes_per_token: int = 0  # in 16 bits
    attention_heads: int = 0
    longest_context: int = 0  # tokens


class UnknownSize(Exception):
    """The size cannot be found; the text says why."""


def hub_facts(model: str, revision: str | None, token: str | None, fetch: Fetch) -> ModelFacts:
    """Facts of a Hub repository; raises `UnknownSize`.

    Asks the Hub twice, by `fetch`: the sizes of its files, and `config.json`.
    """
    name, at = quote(model), quote(revision or "main", safe="")
    try:
        listing = json.loads(fetch(f"{HUB}/api/models/{name}/revision/{at}?blobs=true", token))
        files = {entry["rfilename"]: entry.get("size") or 0 for entry in listing["siblings"]}
        weights = _weight_bytes(files)
        config = json.loads(fetch(f"{HUB}/{name}/resolve/{at}/config.json", token))
    except (urllib.error.URLError, OSError, ValueError, KeyError) as error:
        raise UnknownSize(f"the Hub did not describe '{model}': {error}") from error
    return facts_of(weights, config)


def s3_facts(address: str, s3: Any) -> ModelFacts:
    """Facts of the objects under an S3 prefix; raises `UnknownSize`."""
    if address.endswith(".tar.gz"):
        raise UnknownSize("an archive does not tell the size of its contents")
    bucket, _, prefix = address.removeprefix("s3://").partition("/")
    prefix = prefix.rstrip("/") + "/" if prefix else ""
    try:
        pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        files = {
            entry["Key"].removeprefix(prefix): entry["Size"]
            for page in pages
            for entry in page.get("Contents", [])
        }
        weights = _weight_bytes(files)
        config = json.load(s3.get_object(Bucket=bucket, Key=f"{prefix}config.json")["Body"])
    except UnknownSize:
        raise
    except Exception as error:  # of botocore, of several kinds: all mean the same here
        raise UnknownSize(f"S3 did not describe {address}: {error}") from error
    return facts_of(weights, config)


def facts_of(weight_bytes: int, config: Mapping[str, Any]) -> ModelFacts:
    """Facts from a `config.json`; what it does not say stays unknown."""
    text = config.get("text_config") or config
    heads = text.get("num_attention_heads") or text.get("n_head") or 0
    layers = text.get("num_hidden_layers") or text.get("n_layer") or 0
    hidden = text.get("hidden_size") or text.get("n_embd") or 0
    kv_heads = text.get("num_key_value_heads") or heads
    head = text.get("head_dim") or (hidden // heads if heads else 0)
    latent = text.get("kv_lora_rank")  # DeepSeek: one small vector for each token and layer
    if latent:
        each = layers * (latent + (text.get("qk_rope_head_dim") or 0)) * 2
    else:
        each = 2 * layers * kv_heads * head * 2
    longest = text.get("max_position_embeddings") or text.get("n_positions") or 0
    return ModelFacts(weight_bytes, each, heads, longest)


def fetch(url: str, token: str | None) -> bytes:
    """GET of `url`, with the Hub's token if there is one; raises `OSError`."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.urlopen(request, timeout=HUB_SECONDS) as answer:
        body: bytes = answer.read()
    return body


def _weight_bytes(files: Mapping[str, int]) -> int:
    total = sum(size for name, size in files.items() if WEIGHTS.fullmatch(name))
    if not total:
        raise UnknownSize("there are no safetensors files whose size is known")
    return total
