"""The OpenAPI document: every route that the application has, described.

Runs in the front, pure. Comes in: the application's URL map, which alone decides what exists, and
the settings. Goes out: the document as plain data. It is OpenAPI 3.1, not TGI's 3.0.3: the
schemas come from the structs that parse the bodies, and those are JSON Schema 2020-12, of which
only 3.1 is a superset. Next: `operations.py`, `schemas.py`.
"""

import re
from collections.abc import Iterator
from typing import Any

from werkzeug.routing import Map, Rule

import serving
from serving.front.access import GENERATING, PROTECTED
from serving.front.documentation.operations import OPERATIONS, Operation
from serving.front.documentation.schemas import components, reference
from serving.settings import Settings

VERSION = "3.1.0"
TITLE = "Text Generation Inference"
KEY = "ApiKey"
UNDESCRIBED = "docs."  # the endpoints of the document itself and of the page that shows it

ERRORS = {
    400: "The body is not JSON",
    401: "The API key is missing or wrong",
    404: "There is nothing under this path",
    413: "The body is larger than --payload-limit",
    415: "The content type is not JSON",
    422: "The body has the wrong shape, or a value is out of range",
    424: "The generation failed",
    429: "The model is overloaded",
    500: "The generation is incomplete",
    503: "The server does not take requests now",
}
BEFORE_PARSING = (400, 413, 415, 422)  # these may be plain text
TRY_LATER = (429, 503)
WITHOUT_BODY = (401, 404)
VARIABLE = re.compile(r"<(\w+)>")  # in a rule of Flask


def document(url_map: Map, settings: Settings) -> dict[str, Any]:
    """The OpenAPI document of all rules of `url_map` but the documentation's own."""
    paths: dict[str, dict[str, Any]] = {}
    for rule in described(url_map):
        item = paths.setdefault(VARIABLE.sub(r"{\1}", rule.rule), {})
        for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}):
            item[method.lower()] = _operation(rule, method.lower(), settings)
    return {
        "openapi": VERSION,
        "info": {
            "title": TITLE,
            "version": serving.__version__,
            "license": {"name": "Apache 2.0", "identifier": "Apache-2.0"},
        },
        "tags": [{"name": TITLE}],
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": components(settings),
            "securitySchemes": {KEY: {"type": "http", "scheme": "bearer"}},
        },
    }


def described(url_map: Map) -> Iterator[Rule]:
    """The rules that belong into the document."""
    return (rule for rule in url_map.iter_rules() if not rule.endpoint.startswith(UNDESCRIBED))


def _operation(rule: Rule, method: str, settings: Settings) -> dict[str, Any]:
    endpoint, described = rule.endpoint, OPERATIONS[rule.endpoint]
    operation: dict[str, Any] = {
        "tags": [TITLE],
        "operationId": f"{endpoint.replace('.', '_')}_{method}",
        "summary": described.summary,
    }
    if rule.arguments:
        operation["parameters"] = [_path_parameter(name) for name in sorted(rule.arguments)]
    if described.body:
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": _any_of(described.body)}},
        }
    statuses = described.errors
    if endpoint in PROTECTED:
        # Without --api-key nobody needs one.
        operation["security"] = [{KEY: []}, *([{}] if settings.api_key is None else [])]
        statuses = (*statuses, 401)
    operation["responses"] = {
        "200": _success(described),
        **{str(status): _error(status, described) for status in sorted(statuses)},
    }
    if endpoint in GENERATING:
        for response in operation["responses"].values():
            response.setdefault("headers", {})["X-Request-Id"] = _header("Id of the request")
    return operation


def _success(operation: Operation) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if operation.answers:
        content["application/json"] = {"schema": _any_of(operation.answers)}
    if operation.events:
        content["text/event-stream"] = {
            "schema": _event(_any_of(operation.events), terminated=operation.terminated)
        }
    if operation.text:
        content["text/plain"] = {"schema": {"type": "string"}}
    return {"description": operation.summary, **({"content": content} if content else {})}


def _event(data: dict[str, Any], *, terminated: bool) -> dict[str, Any]:
    """One event of a stream, in the form that OpenAPI 3.2 gives it: its data is JSON text."""
    text = {"type": "string", "contentMediaType": "application/json", "contentSchema": data}
    shown = {"anyOf": [{"const": "[DONE]"}, text]} if terminated else text
    return {"type": "object", "required": ["data"], "properties": {"data": shown}}


def _error(status: int, operation: Operation) -> dict[str, Any]:
    response: dict[str, Any] = {"description": ERRORS[status]}
    if status in WITHOUT_BODY:
        return response
    content: dict[str, Any] = {}
    if status in (422, 424, 429, 500, 503) or operation.json_errors_only:
        content["application/json"] = {"schema": _any_of(operation.error_bodies)}
    if status in BEFORE_PARSING and not operation.json_errors_only:
        content["text/plain"] = {"schema": {"type": "string"}}
    if status in TRY_LATER:
        response["headers"] = {"Retry-After": _header("Seconds")}
    return {**response, "content": content}


def _path_parameter(name: str) -> dict[str, Any]:
    schema = {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]*$"}
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _header(description: str) -> dict[str, Any]:
    return {"description": description, "schema": {"type": "string"}}


def _any_of(kinds: tuple[Any, ...]) -> dict[str, Any]:
    schemas = [reference(kind) for kind in kinds]
    return schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
