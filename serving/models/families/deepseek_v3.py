"""DeepSeek V3 and R1, Moonlight: V2 with sigmoid scores and a learned bias on the choice."""

from dataclasses import replace

from serving.models import config_reader as read
from serving.models.families import latent
from serving.models.spec import Config, DecoderSpec, Family, WeightNames


def spec(config: Config) -> DecoderSpec:
    """Spec of a DeepSeek V3 checkpoint."""
    read.refuse(config, "topk_method", "noaux_tc")
    read.refuse(config, "scoring_func", "sigmoid")
    moe = replace(
        latent.experts(config),
        scoring="sigmoid",
        normalise=bool(config.get("norm_topk_prob", True)),
        group_score="top2",
        score_bias=True,
    )
    return latent.spec(config, moe)


def names(config: Config) -> WeightNames:
    """V2's; layers behind the last one predict further tokens and are not served."""
    first = read.required(config, "num_hidden_layers")
    more = range(first, first + int(config.get("num_nextn_predict_layers") or 0))
    ignored = (f"model.layers.{i}." for i in more)
    return replace(latent.NAMES, ignored=(*latent.NAMES.ignored, *ignored))


FAMILY = Family(("deepseek_v3",), spec, names)
