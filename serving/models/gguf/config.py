"""`config.json` of a GGUF file, computed from its metadata and its tensors.

Runs in the child that prepares a file. Comes in: the headers of a model's files. Goes out: a
config of the family's own keys. What files leave out follows llama.cpp's defaults, which are named
where they are used. No torch. Next: `prepare.py` writes it.
"""

from collections.abc import Callable, Sequence

from serving.models.gguf.architectures import ARCHITECTURES, METHOD, architecture_of
from serving.models.gguf.file import Header
from serving.models.gguf.metadata import Metadata
from serving.models.gguf.rope import rope_parameters
from serving.models.gguf.tokens import end_token_ids
from serving.models.spec import Config

DTYPES = {"F32": "float32", "F16": "float16"}
QUANTIZED_DTYPE = "bfloat16"  # of what is computed with blocks: no activation exceeds its range


def read_metadata(headers: Sequence[Header]) -> Metadata:
    """The metadata of a model in one or several files; the first one has it."""
    return Metadata(headers, architecture_of(headers[0]))


def config_of(model: Metadata) -> Config:
    """The whole config.json."""
    common = _common(model)
    own = OWN.get(model.architecture, _nothing)(model, common)
    return {key: value for key, value in (common | own).items() if value is not None}


def _common(model: Metadata) -> Config:
    """What all decoders have."""
    heads = model.need("{arch}.attention.head_count", int)
    hidden = model.need("{arch}.embedding_length", int)
    if "token_embd.weight" not in model.tensors:
        model.unsupported("it has no tensor token_embd.weight")
    head_dim = model.get("{arch}.attention.key_length", int) or hidden // heads
    if (model.get("{arch}.attention.value_length", int) or head_dim) != head_dim:
        model.unsupported("values of another size than keys are not served")
    epsilon = model.get("{arch}.attention.layer_norm_epsilon", float)
    return {
        "model_type": ARCHITECTURES[model.architecture].model_type,
        "vocab_size": model.tensors["token_embd.weight"].shape[0],
        "hidden_size": hidden,
        "intermediate_size": model.get("{arch}.feed_forward_length", int),
        "num_hidden_layers": model.need("{arch}.block_count", int),
        "num_attention_heads": heads,
        "num_key_value_heads": model.get("{arch}.attention.head_count_kv", int) or heads,
        "head_dim": head_dim,
        "max_position_embeddings": model.need("{arch}.context_length", int),
        "rms_norm_eps": model.get("{arch}.attention.layer_norm_rms_epsilon", float),
        "layer_norm_eps": epsilon,
        "attention_bias": model.has("attn_output.bias"),
        "tie_word_embeddings": "output.weight" not in model.tensors,
        "bos_token_id": model.get("tokenizer.ggml.bos_token_id", int),
        "eos_token_id": end_token_ids(model),
        "pad_token_id": model.get("tokenizer.ggml.padding_token_id", int),
        "dtype": _dtype(model),
        "quantization_config": {"quant_method": METHOD, "architecture": model.architecture},
        **rope_parameters(model, head_dim),
    }


def _dtype(model: Metadata) -> str:
    """As most of the model is stored."""
    largest = max(model.tensors.values(), key=lambda info: info.size)
    return DTYPES.get(largest.type.name, QUANTIZED_DTYPE)


# --- what some architectures have of their own ---------------------------------------------------


def _nothing(model: Metadata, config: Config) -> Config:
    return {}


def _llama(model: Metadata, config: Config) -> Config:
    """Llama, Mistral, and Mixtral, which is the same with experts."""
    if model.has("attn_q.bias") != config["attention_bias"]:
        model.unsupported("biases of queries, keys and values only are not served for llama")
    if not model.get("{arch}.expert_count", int):
        return {"mlp_bias": model.has("ffn_down.bias")}
    return {
        "model_type": "mixtral",
        "num_local_experts": model.need("{arch}.expert_count", int),
        "num_experts_per_tok": model.need("{arch}.expert_used_count", int),
    }


def _granite(model: Metadata, config: Config) -> Config:
    """Multipliers; the file has those that are not 0."""
    return {
        "attention_multiplier": model.get("granite.attention.scale", float),
        "embedding_multiplier": model.get("granite.embedding_scale", float),
        "residual_multiplier": model.get("granite.residual_scale", float),
        "logits_scaling": model.get("granite.logit_scale", float),
        "mlp_bias": model.has("ffn_down.bias"),
    }


def _qwen_moe(model: Metadata, config: Config) -> Config:
    """Widths, which old files do not state, are those of the tensors; Qwen3's weights sum to 1."""
    if "blk.0.ffn_gate_exps.weight" not in model.tensors:
        model.unsupported("it has no tensor blk.0.ffn_gate_exps.weight")
    experts, width = model.tensors["blk.0.ffn_gate_exps.weight"].shape[:2]
    shared = model.tensors.get("blk.0.ffn_gate_shexp.weight")
    normalise = model.get("{arch}.expert_weights_norm", bool)
    return {
        "num_experts": experts,
        "num_experts_per_tok": model.need("{arch}.expert_used_count", int),
        "moe_intermediate_size": width,
        "shared_expert_intermediate_size": shared.shape[0] if shared else None,
        "norm_topk_prob": model.architecture == "qwen3moe" if normalise is None else normalise,
        "qkv_bias": model.has("attn_q.bias"),
    }


def _gemma2(model: Metadata, config: Config) -> Config:
    """Soft caps of 50 and 30, and a window of 4096 in every other layer, where nothing is said."""
    attention = model.get("gemma2.attn_logit_softcapping", float)
    final = model.get("gemma2.final_logit_softcapping", float)
    return {
        "attn_logit_softcapping": 50.0 if attention is None else attention,
        "final_logit_softcapping": 30.0 if final is None else final,
        "sliding_window": model.get("gemma2.attention.sliding_window", int) or 4096,
        "layer_types": _layer_types(model, config, 2),
        "query_pre_attn_scalar": _score_divisor(config, layers_of_27b=46),
    }


def _gemma3(model: Metadata, config: Config) -> Config:
    """Windowed layers rotate with a base of 10000; every sixth layer sees everything."""
    window = model.get("gemma3.attention.sliding_window", int)
    return {
        "final_logit_softcapping": model.get("gemma3.final_logit_softcapping", float),
        "sliding_window": window or 0,
        "layer_types": _layer_types(model, config, 6 if window else 1),
        "query_pre_attn_scalar": _score_divisor(config, layers_of_27b=62),
        "rope_local_base_freq": model.get("gemma3.rope.freq_base_swa", float) or 10000.0,
        "rope_theta": model.get("gemma3.rope.freq_base", float) or 1000000.0,
    }


def _score_divisor(config: Config, layers_of_27b: int) -> int:
    """No key states it: llama.cpp tells the 27B model by its layers, as its heads are wider."""
    if config["num_hidden_layers"] == layers_of_27b:
        return int(config["hidden_size"] // config["num_attention_heads"])
    return int(config["head_dim"])


def _layer_types(model: Metadata, config: Config, full_every: int) -> list[str]:
    """A window in all layers but each `full_every`th, unless the file says otherwise."""
    layers, key = config["num_hidden_layers"], "{arch}.attention.sliding_window_pattern"
    slides = model.array(key)
    if len(slides) != layers:
        every = full_every if slides else model.get(key, int) or full_every
        slides = [(i + 1) % every != 0 for i in range(layers)]
    return ["sliding_attention" if one else "full_attention" for one in slides]


def _cohere(model: Metadata, config: Config) -> Config:
    """One or no norm of queries and keys for each head; Cohere 2 has a window in 3 of 4 layers."""
    own: Config = {
        "logit_scale": model.get("{arch}.logit_scale", float),
        "use_qk_norm": model.has("attn_q_norm.weight"),
    }
    if model.architecture == "cohere2":
        own["sliding_window"] = model.need("cohere2.attention.sliding_window", int)
        own["layer_types"] = _layer_types(model, config, 4)
    return own


def _phi3(model: Metadata, config: Config) -> Config:
    """A window of 0 is none."""
    return {"sliding_window": model.get("phi3.attention.sliding_window", int) or None}


def _starcoder2(model: Metadata, config: Config) -> Config:
    return {"use_bias": config["attention_bias"], "hidden_act": "gelu_pytorch_tanh"}


def _stablelm(model: Metadata, config: Config) -> Config:
    """Attention and MLP stand side by side where the MLP has no norm of its own."""
    return {
        "use_qkv_bias": model.has("attn_q.bias"),
        "qk_layernorm": model.has("attn_q_norm.weight"),
        "use_parallel_residual": not model.has("ffn_norm.weight"),
    }


def _falcon(model: Metadata, config: Config) -> Config:
    """7B shares one key among all heads; 40B and 180B have two norms side by side, Falcon 2 one."""
    kv_heads = config["num_key_value_heads"]
    return {
        "new_decoder_architecture": kv_heads > 1,
        "num_kv_heads": kv_heads,
        "num_ln_in_parallel_attn": 2 if model.has("attn_norm_2.weight") else 1,
        "multi_query": kv_heads == 1,
        "parallel_attn": True,
        "alibi": False,
        "bias": config["attention_bias"],
    }


def _olmo2(model: Metadata, config: Config) -> Config:
    if model.get("olmo2.attention.sliding_window", int):
        model.unsupported("olmo2 with a sliding window (OLMo 3) is not served")
    return {}


OWN: dict[str, Callable[[Metadata, Config], Config]] = {
    "llama": _llama,
    "granite": _granite,
    "qwen2moe": _qwen_moe,
    "qwen3moe": _qwen_moe,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "command-r": _cohere,
    "cohere2": _cohere,
    "phi3": _phi3,
    "starcoder2": _starcoder2,
    "stablelm": _stablelm,
    "falcon": _falcon,
    "olmo2": _olmo2,
}
