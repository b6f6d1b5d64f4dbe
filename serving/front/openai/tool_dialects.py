"""How models write tool calls.

Runs in the front. Comes in: the source of a chat template, which tells what the model was trained
to write. Goes out: a `Dialect`, chosen once per model. Next: `tool_grammar.py` (what a request
allows), `tool_calls.py` (what an answer holds).
"""

import json
import re
from dataclasses import dataclass

# A JSON string that is not empty.
NAME = r'("(?:[^"\\\x00-\x1f]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})+")'


@dataclass(frozen=True)
class Dialect:
    """A way to write calls. The texts around name and arguments are fixed.

    Calls begin at `trigger`, which may be a token of its own; `head` matches from there to the
    arguments, and its group is the name. Without trigger the whole output is a call.
    """

    trigger: str
    before_name: str
    after_name: str
    after_arguments: str
    head: re.Pattern[str]
    first: str = ""  # between trigger and first call, a blank may come before it
    separator: str | None = None  # between calls; None: there is only one
    last: str = ""  # behind the last call
    repeats_trigger: bool = True  # in front of every call, not only of the first
    at_start_only: bool = False  # a trigger within the text is text
    ignored_prefix: str = ""  # a token that may come in front of such a trigger
    name_is_json: bool = True
    arguments_hold_name: bool = False  # their object begins with the name
    is_native: bool = True  # the model decides by itself whether to call, and needs no prompt
    short_ids: bool = False  # call ids of nine letters and digits, as the template demands

    def marks(self, text: str) -> bool:
        """Whether the text of a special token is part of a call."""
        return any(text in fixed for fixed in (self.trigger, self.after_name, self.after_arguments))

    def written_name(self, name: str) -> str:
        """A name as it stands in a call."""
        return json.dumps(name, ensure_ascii=False) if self.name_is_json else name

    def read_name(self, text: str) -> str:
        """A name as `head` has matched it."""
        return str(json.loads(text)) if self.name_is_json else text


def _json_head(before: str, between: str) -> re.Pattern[str]:
    """Matches a JSON object up to its last value, in any white space."""
    pattern = r"\{\s*" + before + r"\s*:\s*" + NAME + r"\s*" + between
    return re.compile(pattern)


HERMES = Dialect(
    trigger="<tool_call>",
    before_name='\n{"name": ',
    after_name=', "arguments": ',
    after_arguments="}\n</tool_call>",
    head=_json_head('"name"', r',\s*"arguments"\s*:\s*(?=\{)'),
    separator="\n",
)
MISTRAL = Dialect(
    trigger="[TOOL_CALLS]",
    first="[",
    before_name='{"name": ',
    after_name=', "arguments": ',
    after_arguments="}",
    separator=", ",
    last="]",
    head=_json_head('"name"', r',\s*"arguments"\s*:\s*(?=\{)'),
    repeats_trigger=False,
    short_ids=True,
)
MISTRAL_ARGS = Dialect(
    trigger="[TOOL_CALLS]",
    before_name="",
    after_name="[ARGS]",
    after_arguments="",
    separator="",
    head=re.compile(r"\[TOOL_CALLS\]\s*([^\[\]{}]+?)(?:\[CALL_ID\]\w+)?\[ARGS\]\s*(?=\{)"),
    name_is_json=False,
    short_ids=True,
)
LLAMA = Dialect(
    trigger='{"name": ',
    before_name="",
    after_name=', "parameters": ',
    after_arguments="}",
    head=_json_head('"name"', r',\s*"parameters"\s*:\s*(?=\{)'),
    at_start_only=True,
    ignored_prefix="<|python_tag|>",
)
GENERIC = Dialect(
    trigger="",
    before_name='{"function": ',
    after_name="",
    after_arguments="}",
    head=re.compile(r'\{\s*"function"\s*:\s*\{\s*"_name"\s*:\s*' + NAME + r"\s*(?:,\s*|(?=\}))"),
    arguments_hold_name=True,
    is_native=False,
)


def dialect_of(template: str) -> Dialect:
    """The dialect that a chat template teaches; `GENERIC` if it is none of the known ones."""
    calls_are_json = re.search(r'arguments\\?"', template) is not None
    calls_are_xml = re.search("<function=|<arg_key>", template) is not None
    if "<tool_call>" in template and calls_are_json and not calls_are_xml:
        return HERMES
    if "[TOOL_CALLS]" in template:
        return MISTRAL_ARGS if "[ARGS]" in template else MISTRAL
    if "ipython" in template and '"parameters": ' in template and '{"name": ' in template:
        return LLAMA
    return GENERIC
