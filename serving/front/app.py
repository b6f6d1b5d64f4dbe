"""The Flask application of one front worker.

Runs in the front. Comes in: the worker's `Front`. Goes out: a WSGI application with every route,
TGI's error forms, the body limit, CORS, the API key, and an `Observation` of each generating
request. Next: the route modules.
"""

import logging
from collections.abc import Callable
from functools import partial

import flask
from werkzeug.exceptions import HTTPException, MethodNotAllowed
from werkzeug.sansio.response import Response as AnyResponse

from serving.errors import BodyError, ErrorKind, RequestError
from serving.front.access import GENERATING, answer_preflight, cors_headers, require_api_key
from serving.front.context import Front
from serving.front.documentation import routes as documentation
from serving.front.generation import ClientGone
from serving.front.identity import identify
from serving.front.observation import Observation
from serving.front.openai import routes as openai_routes
from serving.front.platforms import configured, kserve, probes, sagemaker, vertex
from serving.front.responses import (
    CLIENT_GONE,
    body_error_response,
    empty_response,
    error_response,
)
from serving.front.tgi import routes as tgi_routes

log = logging.getLogger(__name__)


class FrontApp(flask.Flask):
    """Tells the request's observation of every error, whoever turns it into a response."""

    def handle_user_exception(self, error: Exception) -> flask.Response | AnyResponse:
        """As Flask does."""
        if "observation" in flask.g:
            flask.g.observation.fail(error)
        return super().handle_user_exception(error)  # type: ignore[return-value]


def create_app(front: Front) -> flask.Flask:
    """An application that serves `front`; nothing is global."""
    app = FrontApp("serving.front", static_folder=None)
    # A body without a stated length is read up to this: the extra byte tells that it is too long.
    app.config["MAX_CONTENT_LENGTH"] = front.settings.payload_limit + 1
    app.url_map.merge_slashes = False  # "/v1//models" is unknown, not a redirect
    app.before_request(answer_preflight)
    app.before_request(_begin_observation(front))
    app.after_request(_end_observation)
    if front.settings.api_key is not None:
        app.before_request(require_api_key(front.settings.api_key))
    app.after_request(cors_headers(front.settings.cors_allow_origin))
    for module in (tgi_routes, openai_routes, sagemaker, vertex, kserve, probes, documentation):
        app.register_blueprint(module.blueprint(front))
    app.register_blueprint(configured.blueprint(front, app.url_map))
    app.register_error_handler(RequestError, error_response)
    app.register_error_handler(BodyError, body_error_response)
    app.register_error_handler(ClientGone, _client_gone)
    app.register_error_handler(HTTPException, _framework_error)
    app.register_error_handler(Exception, _unexpected)
    return app


def _begin_observation(front: Front) -> Callable[[], None]:
    def begin() -> None:
        if flask.request.endpoint in GENERATING:
            flask.g.observation = Observation(
                front.metrics,
                identify(flask.request.headers),
                flask.request.path,
                log_prompts=front.settings.log_prompts,
            )

    return begin


def _end_observation(response: flask.Response) -> flask.Response:
    """The ids go into every response of a generating route, errors and streams included."""
    if "observation" in flask.g:
        observation: Observation = flask.g.observation
        response.headers.update(observation.identity.headers())
        if response.is_streamed:
            response.call_on_close(partial(observation.finish, response.status_code))
        else:
            observation.finish(response.status_code)
    return response


def _client_gone(_: ClientGone) -> flask.Response:
    return empty_response(CLIENT_GONE)


def _framework_error(error: HTTPException) -> flask.Response:
    """Unknown path, wrong method and the like: a status and no body."""
    response = empty_response(error.code or 500)
    if isinstance(error, MethodNotAllowed) and error.valid_methods:
        allowed = sorted(set(error.valid_methods) - {"OPTIONS"})
        response.headers["allow"] = ",".join(allowed)
    return response


def _unexpected(error: Exception) -> flask.Response:
    """A fault of ours: the log gets the traceback, the client a typed error."""
    fields = {}
    if "observation" in flask.g:
        fields["request_id"] = flask.g.observation.identity.request_id
    log.error(
        "unexpected error in %s", flask.request.path, exc_info=error, extra={"fields": fields}
    )
    return error_response(RequestError(ErrorKind.INCOMPLETE, "Incomplete generation"))
