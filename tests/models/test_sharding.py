"""Counts of ranks that divide a model, and the words for those that do not."""

import pytest

from serving.models.families import llama, mixtral
from serving.models.sharding import check_divides, shard_counts

CONFIG = {
    "vocab_size": 32000, "hidden_size": 896, "num_hidden_layers": 2, "num_attention_heads": 14,
    "num_key_value_heads": 2, "intermediate_size": 4864, "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5, "hidden_act": "silu", "model_type": "llama",
}  # fmt: skip


@pytest.mark.parametrize(
    ("heads", "kv_heads", "intermediate", "counts"),
    [
        (14, 2, 4864, [1, 2]),  # 7 and 14 divide the heads, but not the intermediate size
        (32, 8, 11008, [1, 2, 4, 8, 16, 32]),  # KV heads are replicated from 16 on
        (24, 6, 96, [1, 2, 3, 6, 12, 24]),  # 4 and 8 neither divide 6 heads nor replicate them
        (71, 1, 71 * 4, [1, 71]),
    ],
)
def test_counts_that_divide_heads_and_widths(
    heads: int, kv_heads: int, intermediate: int, counts: list[int]
) -> None:
    config = CONFIG | {
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": 64,
        "intermediate_size": intermediate,
    }  # fmt: skip
    assert shard_counts(llama.spec(config)) == counts


def test_experts_must_divide_too() -> None:
    config = CONFIG | {
        "model_type": "mixtral", "num_attention_heads": 8, "num_key_value_heads": 8,
        "intermediate_size": 12, "num_local_experts": 4, "num_experts_per_tok": 2,
    }  # fmt: skip
    assert shard_counts(mixtral.spec(config)) == [1, 2, 4]


def test_a_refusal_names_the_quantity_and_the_possible_counts() -> None:
    spec = llama.spec(CONFIG)
    check_divides(spec, 2)
    words = "14 attention heads cannot be divided over 4 shards; possible: 1, 2$"
    with pytest.raises(ValueError, match=words):
        check_divides(spec, 4)
