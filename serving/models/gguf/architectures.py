"""Which GGUF architectures are served: the family of each, and how its files differ from that.

Used by the child that prepares a file and by the engine. A file's tensors are named by what they
are, so one set of `WeightNames` fits all; what a converter changed on the way is data here. Source:
the names of llama.cpp's `gguf-py/gguf/constants.py` and its `convert_hf_to_gguf.py`. No torch.
Next: `config.py` computes `config.json`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from serving.errors import StartupError
from serving.models.families.falcon import norms_side_by_side
from serving.models.gguf.fault import PHASE, refuse
from serving.models.gguf.file import Header
from serving.models.spec import Config, DecoderSpec, Family, WeightNames

METHOD = "gguf"  # `quant_method` in the config.json of a prepared file
LAYER = "blk.{i}"
NAMES = WeightNames(
    embedding="token_embd",
    positions="position_embd",
    final_norm="output_norm",
    head="output",
    attention_norm=f"{LAYER}.attn_norm",
    attention_output_norm=f"{LAYER}.post_attention_norm",
    query=f"{LAYER}.attn_q",
    key=f"{LAYER}.attn_k",
    value=f"{LAYER}.attn_v",
    query_norm=f"{LAYER}.attn_q_norm",
    key_norm=f"{LAYER}.attn_k_norm",
    attention_out=f"{LAYER}.attn_output",
    mlp_norm=f"{LAYER}.ffn_norm",
    mlp_output_norm=f"{LAYER}.post_ffw_norm",
    gate=f"{LAYER}.ffn_gate",
    up=f"{LAYER}.ffn_up",
    down=f"{LAYER}.ffn_down",
    router=f"{LAYER}.ffn_gate_inp",
    expert_gate=f"{LAYER}.ffn_gate_exps.{{e}}",
    expert_up=f"{LAYER}.ffn_up_exps.{{e}}",
    expert_down=f"{LAYER}.ffn_down_exps.{{e}}",
    shared_gate=f"{LAYER}.ffn_gate_shexp",
    shared_up=f"{LAYER}.ffn_up_shexp",
    shared_down=f"{LAYER}.ffn_down_shexp",
    shared_weight=f"{LAYER}.ffn_gate_inp_shexp",
    ignored=("rope_freqs.weight", "rope_factors_", "attn_rot_embd"),  # in config.json, or derived
)
QKV = f"{LAYER}.attn_qkv"  # queries, keys, values, one upon the other
GATE_UP = f"{LAYER}.ffn_up"  # where the family has the two in one tensor


@dataclass(frozen=True)
class Architecture:
    """How files of one `general.architecture` relate to a family."""

    model_type: str
    interleaved: bool = False  # rows of queries and keys lie as for a rotation of neighbours
    shifted_norms: bool = False  # norms are stored as weight + 1
    names: Callable[[Config, WeightNames], WeightNames] = lambda config, names: names


def _falcon_names(config: Config, names: WeightNames) -> WeightNames:
    """Of two norms side by side the second is that of attention."""
    if norms_side_by_side(config) < 2:
        return names
    return replace(names, attention_norm=f"{LAYER}.attn_norm_2", mlp_norm=f"{LAYER}.attn_norm")


ARCHITECTURES = {
    "llama": Architecture("llama", interleaved=True),
    "qwen2": Architecture("qwen2"),
    "qwen2moe": Architecture("qwen2_moe"),
    "qwen3": Architecture("qwen3"),
    "qwen3moe": Architecture("qwen3_moe"),
    "gemma": Architecture("gemma", shifted_norms=True),
    "gemma2": Architecture("gemma2", shifted_norms=True),
    "gemma3": Architecture("gemma3_text", shifted_norms=True),
    "phi3": Architecture("phi3"),
    "starcoder2": Architecture("starcoder2"),
    "stablelm": Architecture("stablelm"),
    "gpt2": Architecture("gpt2"),
    "falcon": Architecture("falcon", names=_falcon_names),
    "command-r": Architecture("cohere"),
    "cohere2": Architecture("cohere2"),
    "olmo2": Architecture("olmo2"),
    "granite": Architecture("granite", interleaved=True),
}


def architecture_of(header: Header) -> str:
    """`general.architecture` of a file; raises `StartupError` where it has none that is served."""
    kind = header.metadata.get("general.type", "model")
    if kind != "model":
        raise StartupError(
            PHASE,
            f"{header.path} holds no model but is of the type {kind}",
            "name the model's file",
        )
    name = header.metadata.get("general.architecture")
    if not isinstance(name, str):
        refuse(header.path, "it has no general.architecture")
    if name not in ARCHITECTURES:
        raise StartupError(
            PHASE,
            f"{header.path} is of the architecture {name}, which is not served from GGUF",
            "use its safetensors checkpoint, or a file of one of these architectures: "
            + ", ".join(sorted(ARCHITECTURES)),
        )
    return name


def family_in_file(family: Family, config: Config) -> Family:
    """The family with the names and the layout of a GGUF file, if `config` is that of one."""
    origin = config.get("quantization_config") or {}
    architecture = ARCHITECTURES.get(origin.get("architecture", ""))
    if origin.get("quant_method") != METHOD or architecture is None:
        return family

    def spec(config: Config) -> DecoderSpec:
        base = family.spec(config)
        if not architecture.interleaved:
            return base
        return replace(base, ropes=tuple(replace(rope, interleaved=True) for rope in base.ropes))

    def names(config: Config) -> WeightNames:
        base = family.names_of(config)
        own = replace(NAMES, qkv=QKV if base.qkv else "", gate_up=GATE_UP if base.gate_up else "")
        return architecture.names(config, own)

    return Family(family.model_types, spec, names)
