"""The rows of the GGUF parity tests: every served architecture, and each branch of its config."""

from gguf_checkpoints import Row

NO_WINDOW = {"sliding_window": None}
GEMMA_SCALE = {"query_pre_attn_scalar": 16}  # files cannot state another one than the head's size
ROWS = [
    Row("llama", "llama"),
    Row("llama", "llama-tied-bias"),
    Row("llama", "llama-rope-llama3"),
    Row("llama", "llama-rope-linear"),
    Row("llama", "llama-rope-yarn"),
    Row("llama", "mistral-full"),
    Row("llama", "mixtral", NO_WINDOW),
    Row("qwen2", "qwen2"),
    Row("qwen3", "qwen3"),
    Row("qwen3", "qwen3-tied"),
    Row("qwen2moe", "qwen2_moe"),
    Row("qwen2moe", "qwen2_moe-mixed", {"use_sliding_window": False, "mlp_only_layers": []},
        {"{arch}.expert_weights_norm": True}),
    Row("qwen3moe", "qwen3_moe"),
    Row("gemma", "gemma"),
    Row("gemma2", "gemma2", GEMMA_SCALE),
    Row("gemma3", "gemma3_text", GEMMA_SCALE, {"{arch}.attention.sliding_window_pattern": 2}),
    Row("phi3", "phi3"),
    Row("phi3", "phi3-partial-longrope", NO_WINDOW),
    Row("starcoder2", "starcoder2-full"),
    Row("starcoder2", "starcoder2", NO_WINDOW),
    Row("stablelm", "stablelm"),
    Row("stablelm", "stablelm-2-12b"),
    Row("gpt2", "gpt2"),
    Row("falcon", "falcon"),
    Row("falcon", "falcon-new"),
    Row("falcon", "falcon-2", {"rope_theta": 10000.0}),
    Row("command-r", "cohere"),
    Row("command-r", "cohere-head-norm"),
    Row("cohere2", "cohere2"),
    Row("olmo2", "olmo2"),
    Row("olmo2", "olmo2-grouped"),
    Row("granite", "granite"),
]  # fmt: skip
