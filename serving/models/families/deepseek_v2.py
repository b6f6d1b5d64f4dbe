"""DeepSeek V2, also without the low-rank queries of its Lite form: softmax scores of experts."""

from dataclasses import replace

from serving.models import config_reader as read
from serving.models.families import latent
from serving.models.spec import Config, DecoderSpec, Family

METHODS = {"greedy": False, "group_limited_greedy": True}  # whether groups are chosen first


def spec(config: Config) -> DecoderSpec:
    """Spec of a DeepSeek V2 checkpoint."""
    read.refuse(config, "topk_method", *METHODS)
    read.refuse(config, "scoring_func", "softmax")
    read.refuse(config, "norm_topk_prob", False, None)
    moe = replace(latent.experts(config), normalise=False)
    if not METHODS[config.get("topk_method", "greedy")]:
        moe = replace(moe, groups=1, chosen_groups=1)
    return latent.spec(config, moe)


FAMILY = Family(("deepseek_v2",), spec, latent.NAMES)
