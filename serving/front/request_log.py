"""The fields of the one log line of a request.

Runs in the front, pure. Comes in: what `observation.py` knows at the end. Goes out: flat fields in
the order of reading; no text of prompt or answer unless `--log-prompts` asks for it. Next:
`serving/telemetry.py`, which writes the line.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from serving.errors import BodyError, ErrorKind, RequestError
from serving.front.identity import Identity
from serving.front.sequence_text import Clock, SequenceText
from serving.front.validation import ValidRequest
from serving.protocol.params import SamplingParams

NANOSECONDS = 1e9
# Messages of these errors may quote what the client wrote or the model answered.
QUOTING = frozenset({ErrorKind.TEMPLATE, ErrorKind.TOOL})


@dataclass(frozen=True)
class Record:
    """One finished request; `started` is CLOCK_MONOTONIC in nanoseconds."""

    identity: Identity
    route: str
    outcome: str  # "ok", "refused", "dropped" or the metric label of an error
    status: int
    error: BodyError | RequestError | None
    started: int
    seconds: float
    requests: Sequence[ValidRequest]
    sequences: Sequence[SequenceText]


def summary(record: Record, *, with_text: bool) -> dict[str, object]:
    """The fields of the line; times in seconds."""
    identity = record.identity
    fields: dict[str, object] = {"request_id": identity.request_id}
    if identity.inference_id not in (None, identity.request_id):
        fields["inference_id"] = identity.inference_id
    if identity.trace_id is not None:
        fields["trace_id"] = identity.trace_id
    fields |= {"route": record.route, "status": record.status, "outcome": record.outcome}
    fields |= _error(record.error, with_text) | {"total_s": round(record.seconds, 4)}
    if record.sequences:
        fields |= _progress(record)
    if record.requests:
        fields |= _parameters(record.requests)
    if with_text:
        fields["prompts"] = [request.prompt for request in record.requests]
        fields["texts"] = [sequence.text for sequence in record.sequences]
    return fields


def _error(error: BodyError | RequestError | None, with_text: bool) -> dict[str, object]:
    if error is None:
        return {}
    if isinstance(error, BodyError):
        return {"error": str(error)}
    fields: dict[str, object] = {"error_type": error.kind.error_type}
    if with_text or error.kind not in QUOTING:
        fields["error"] = str(error)
    return fields


def _progress(record: Record) -> dict[str, object]:
    """How far the sequences came; the moments are those of the first one."""
    clock, sequences = record.sequences[0].clock, record.sequences
    fields: dict[str, object] = {"validation_s": _seconds(clock.submitted - record.started)}
    if clock.first_token:
        fields |= _moments(clock, record.started, len(sequences[0].tokens))
    fields["generated_tokens"] = sum(len(sequence.tokens) for sequence in sequences)
    fields["finish_reason"] = ",".join(
        sequence.finish.reason if sequence.finish else "none" for sequence in sequences
    )
    return fields


def _moments(clock: Clock, started: int, tokens: int) -> dict[str, object]:
    inference = clock.last_token - clock.admitted
    return {
        "queue_s": _seconds(clock.admitted - clock.submitted),
        "first_token_s": _seconds(clock.first_token - started),
        "inference_s": _seconds(inference),
        "per_token_s": _seconds(inference // max(1, tokens)),
    }


def _parameters(requests: Sequence[ValidRequest]) -> dict[str, object]:
    """What was asked for; of parameters that all prompts share, the first prompt's."""
    first = requests[0]
    fields: dict[str, object] = {
        "sequences": sum(request.choices for request in requests),
        "prompt_tokens": sum(len(request.token_ids) for request in requests),
        "max_new_tokens": first.max_new_tokens,
        "sampling": _sampling(first.sampling),
    }
    if first.parameters.stop:
        fields["stop_strings"] = len(first.parameters.stop)
    if first.grammar is not None:
        fields["grammar"] = first.grammar.kind
    return fields


def _sampling(params: SamplingParams) -> dict[str, object]:
    """Only what is on; of biases, how many. A greedy sequence does not use its seed."""
    off = SamplingParams(seed=0 if params.samples else params.seed)
    values = {name: getattr(params, name) for name in params.__struct_fields__}
    on: dict[str, object] = {k: v for k, v in values.items() if v != getattr(off, k)}
    return on | {"logit_bias": len(params.logit_bias)} if params.logit_bias else on


def _seconds(nanoseconds: int) -> float:
    return round(nanoseconds / NANOSECONDS, 4)
