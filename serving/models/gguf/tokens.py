"""Which tokens of a GGUF file end a text, and the special tokens by role.

Used by `config.py` and `tokenizer.py`. No torch.
"""

from serving.models.gguf.metadata import Metadata

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # token types
END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")
# Ends of a turn that chat models were trained on, beside the one that their files name: llama.cpp
# stops at these too.
END_TEXTS = (
    "<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<end_of_turn>", "<|end|>", "<|end_of_text|>",
    "<|endoftext|>", "<|EOT|>", "<|END_OF_TURN_TOKEN|>", "<EOT>",
)  # fmt: skip
ROLES = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}


def end_token_ids(model: Metadata) -> list[int]:
    """All tokens that end a text, the file's own end of text first."""
    named = [model.get(f"tokenizer.ggml.{key}", int) for key in END_KEYS]
    texts, types = texts_and_types(model)
    known = [
        number
        for number, (text, kind) in enumerate(zip(texts, types, strict=True))
        if kind in (CONTROL, USER_DEFINED) and text in END_TEXTS
    ]
    return list(dict.fromkeys([one for one in named if one is not None] + known))


def special_tokens(model: Metadata) -> dict[str, str]:
    """Text of the special tokens by their names in tokenizer_config.json.

    None of a file without tokens, whose tokenizer lies beside it.
    """
    texts, _ = texts_and_types(model)
    found = {}
    for role, key in ROLES.items():
        number = model.get(f"tokenizer.ggml.{key}", int)
        if number is not None and texts:
            if not 0 <= number < len(texts):
                model.unsupported(f"{key} is {number}, of {len(texts)} tokens")
            found[role] = texts[number]
    return found


def texts_and_types(model: Metadata) -> tuple[list[str], list[int]]:
    """Of every token, by its id; all are normal where the file has none."""
    texts = model.array("tokenizer.ggml.tokens")
    types = model.array("tokenizer.ggml.token_type") or [NORMAL] * len(texts)
    if len(types) != len(texts):
        model.unsupported(f"it has {len(texts)} tokens and {len(types)} types of tokens")
    return texts, types
