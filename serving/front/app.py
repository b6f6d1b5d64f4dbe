"""The Flask application of one front worker.

Runs in the front. Comes in: the worker's `Front`. Goes out: a WSGI application with every route,
TGI's error forms, the body limit, CORS and the API key. Next: the route modules.
"""

import logging

import flask
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from serving.errors import BodyError, ErrorKind, RequestError
from serving.front.access import answer_preflight, cors_headers, require_api_key
from serving.front.context import Front
from serving.front.generation import ClientGone
from serving.front.openai import routes as openai_routes
from serving.front.platforms import sagemaker
from serving.front.responses import (
    CLIENT_GONE,
    body_error_response,
    empty_response,
    error_response,
)
from serving.front.tgi import routes as tgi_routes

log = logging.getLogger(__name__)


def create_app(front: Front) -> flask.Flask:
    """An application that serves `front`; nothing is global."""
    app = flask.Flask("serving.front", static_folder=None)
    # A body without a stated length is read up to this: the extra byte tells that it is too long.
    app.config["MAX_CONTENT_LENGTH"] = front.settings.payload_limit + 1
    app.url_map.merge_slashes = False  # "/v1//models" is unknown, not a redirect
    app.before_request(answer_preflight)
    if front.settings.api_key is not None:
        app.before_request(require_api_key(front.settings.api_key))
    app.after_request(cors_headers(front.settings.cors_allow_origin))
    for module in (tgi_routes, openai_routes, sagemaker):
        app.register_blueprint(module.blueprint(front))
    app.register_error_handler(RequestError, error_response)
    app.register_error_handler(BodyError, body_error_response)
    app.register_error_handler(ClientGone, _client_gone)
    app.register_error_handler(HTTPException, _framework_error)
    app.register_error_handler(Exception, _unexpected)
    return app


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
    log.error("unexpected error in %s", flask.request.path, exc_info=error)
    return error_response(RequestError(ErrorKind.INCOMPLETE, "Incomplete generation"))
