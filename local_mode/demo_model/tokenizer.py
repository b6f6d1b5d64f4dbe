"""The tokenizer of the demo model: byte-level BPE, special tokens, chat template.

Runs in the training script. Text of the corpus comes in; a tokenizer that transformers and
tokenizers load like any other goes out. The end-of-turn token is also the end of the text, so
raw prompts and chats stop the same way.
Next: training_batches.py, which encodes the corpus with it.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

BOS: Final = "<|begin|>"
EOS: Final = "<|end|>"
PAD: Final = "<|pad|>"
SYSTEM: Final = "<|system|>"
USER: Final = "<|user|>"
ASSISTANT: Final = "<|assistant|>"
SPECIAL_TOKENS: Final = (BOS, EOS, PAD, SYSTEM, USER, ASSISTANT)

# Every digit is a piece of its own, so that counting carries over to numbers never seen. The
# comma between numbers keeps its space; words and other signs take the space before them.
PIECES: Final = r",\ (?=\p{N})|\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s"

# Messages are strings or lists of text parts. Tool definitions become one line of names, since
# the model has learned to choose by name; results of tools arrive as a user turn.
CHAT_TEMPLATE: Final = """\
{%- macro text(content) -%}
{%- if content is string -%}{{ content }}
{%- elif content -%}
{%- for part in content -%}{%- if part.type == 'text' -%}{{ part.text }}{%- endif -%}{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{{- bos_token -}}
{%- if tools -%}
{{- '<|system|>Tools:' -}}
{%- for tool in tools -%}{{- ' ' + tool.function.name -}}{%- endfor -%}
{{- '<|end|>' -}}
{%- endif -%}
{%- for message in messages -%}
{%- if message.role in ['system', 'developer'] -%}
{{- '<|system|>' + text(message.content) + '<|end|>' -}}
{%- elif message.role == 'user' -%}
{{- '<|user|>' + text(message.content) + '<|end|>' -}}
{%- elif message.role == 'tool' -%}
{{- '<|user|>Tool result: ' + text(message.content) + '<|end|>' -}}
{%- elif message.role == 'assistant' -%}
{{- '<|assistant|>' + text(message.content) -}}
{%- for call in message.tool_calls or [] -%}{{- call.function | tojson -}}{%- endfor -%}
{{- '<|end|>' -}}
{%- else -%}
{{- raise_exception('role must be system, user, assistant or tool, got ' + message.role) -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train byte-level BPE on `texts`; `vocab_size` counts the special tokens.

    All 256 bytes are in the vocabulary, so any text survives encoding and decoding. Encoding
    with special tokens puts BOS in front. Characters outside ASCII are left out of the training,
    so they always take several tokens: a server of this model must join partial characters.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    ascii_texts = (text.encode("ascii", "ignore").decode("ascii") for text in texts)
    tokenizer.train_from_iterator(ascii_texts, trainer=trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, max_length: int) -> None:
    """Write tokenizer.json and tokenizer_config.json; `max_length` is in tokens."""
    config = {
        "additional_special_tokens": [SYSTEM, USER, ASSISTANT],
        "bos_token": BOS,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": EOS,
        "model_max_length": max_length,
        "pad_token": PAD,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
