"""How native generating requests are answered, whole or streamed.

Runs in the front. Comes in: a parsed native body. Goes out: TGI's JSON or its events. On a stream
every failure after acceptance, even of validation, is an event under status 200, as in TGI. Next:
`validation.py`, `handling.py`.
"""

from collections.abc import Iterator, Sequence

import flask
from msgspec import UNSET

from serving.front.context import Front
from serving.front.float32 import shortest
from serving.front.generation import best_first
from serving.front.handling import Handling
from serving.front.headers import response_headers, stream_headers
from serving.front.model import LoadedModel
from serving.front.responses import error_body, json_response
from serving.front.sequence_text import SequenceText, TokenEvent
from serving.front.streaming import KEEP_ALIVE, KEEP_ALIVE_SECONDS, event_stream, frame
from serving.front.text.tokenization import Tokenizer
from serving.front.tgi.schema import (
    BestOfSequence,
    Details,
    GenerateRequest,
    GenerateResponse,
    PrefillToken,
    StreamDetails,
    StreamResponse,
)
from serving.front.validation import ValidRequest, validate


def json_or_stream(
    front: Front, body: GenerateRequest, *, stream: bool, full_text: bool, as_list: bool
) -> flask.Response:
    """Answer a native request; `full_text` is the default of `return_full_text`."""
    model = front.serving_model()
    wanted = body.parameters.return_full_text
    prefix = body.inputs if (full_text if wanted is None else wanted) else ""
    handling = Handling(front, stream=stream)
    if stream:
        frames = _frames(front, model, body, prefix, handling)
        headers = stream_headers(model.info, [body.inputs])
        return event_stream(frames, handling, headers, lambda error: [frame(error_body(error))])
    with handling:
        request = _validate(front, model, body, stream=False)
        generation = handling.start([request], keep_stop=True)
        generation.run()
        best, *others = best_first(generation.sequences)
        headers = response_headers(model.info, [request], [best], handling.started)
        content = _response(request, best, others, prefix, model.tokenizer)
        handling.succeed()
        return json_response([content] if as_list else content, headers=headers)


def _validate(
    front: Front, model: LoadedModel, body: GenerateRequest, stream: bool
) -> ValidRequest:
    parameters, settings = body.parameters, front.settings
    shows_prompt = parameters.decoder_input_details
    return validate(
        body.inputs,
        parameters,
        model,
        settings,
        stream=stream,
        logprobs=stream or parameters.details or shows_prompt,
        prompt_logprobs=shows_prompt and settings.enable_prefill_logprobs,
    )


def _response(
    request: ValidRequest,
    best: SequenceText,
    others: Sequence[SequenceText],
    prefix: str,
    tokenizer: Tokenizer,
) -> GenerateResponse:
    parameters = request.parameters
    if not (parameters.details or parameters.decoder_input_details):
        return GenerateResponse(prefix + best.text)
    details = Details(
        finish_reason=best.end.reason,
        generated_tokens=len(best.tokens),
        seed=best.seed,
        prefill=_prefill(best, tokenizer),
        tokens=best.tokens,
        best_of_sequences=[_rejected(other, prefix, tokenizer) for other in others] or UNSET,
        top_tokens=best.top_tokens or UNSET,
    )
    return GenerateResponse(prefix + best.text, details)


def _rejected(sequence: SequenceText, prefix: str, tokenizer: Tokenizer) -> BestOfSequence:
    return BestOfSequence(
        generated_text=prefix + sequence.text,
        finish_reason=sequence.end.reason,
        generated_tokens=len(sequence.tokens),
        seed=sequence.seed,
        prefill=_prefill(sequence, tokenizer),
        tokens=sequence.tokens,
        top_tokens=sequence.top_tokens or UNSET,
    )


def _prefill(sequence: SequenceText, tokenizer: Tokenizer) -> list[PrefillToken]:
    """The prompt, each token decoded alone; empty unless its log-probabilities were asked for.

    Behind an encoder only the start token, as in TGI.
    """
    if not sequence.request.prompt_logprobs:
        return []
    logprobs = [None, *map(shortest, sequence.prompt_logprobs)]
    return [
        PrefillToken(token_id, tokenizer.decode([token_id]), logprob)
        for token_id, logprob in zip(sequence.request.continued_token_ids, logprobs, strict=True)
    ]


def _frames(
    front: Front, model: LoadedModel, body: GenerateRequest, prefix: str, handling: Handling
) -> Iterator[bytes]:
    """One event per token, then nothing: native streams have no terminator."""
    request = _validate(front, model, body, stream=True)
    generation = handling.start([request], keep_stop=True)
    for event in generation.events(KEEP_ALIVE_SECONDS):
        yield KEEP_ALIVE if event is None else frame(_stream_response(event, prefix))


def _stream_response(event: TokenEvent, prefix: str) -> StreamResponse:
    top_tokens = event.top_tokens or UNSET
    if event.finish is None:
        return StreamResponse(event.index, event.token, top_tokens)
    sequence, details = event.sequence, None
    if sequence.request.parameters.details:
        details = StreamDetails(
            finish_reason=event.finish.reason,
            generated_tokens=event.index,
            seed=sequence.seed,
            input_length=len(sequence.request.token_ids),
        )
    return StreamResponse(event.index, event.token, top_tokens, prefix + sequence.text, details)
