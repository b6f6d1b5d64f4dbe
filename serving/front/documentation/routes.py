"""The API's description and the page that shows it.

Runs in the front. Comes in: /api-doc/openapi.json, /docs and what its page loads. Goes out: the
OpenAPI document of this server, and Swagger UI from installed files: a browser talks to nobody
else. Next: `document.py`.
"""

import importlib.util
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import flask

from serving.front.context import Front
from serving.front.documentation.document import document
from serving.front.responses import json_response

OURS = Path(__file__).parent / "assets"
MAX_AGE_SECONDS = 3600
# The page loads from here only; Swagger UI writes styles and inline images itself.
POLICY = (
    "default-src 'none'; script-src 'self'; connect-src 'self'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data:; base-uri 'none'; form-action 'none'"
)


@dataclass(frozen=True)
class Asset:
    """A file of the page."""

    path: Path
    content_type: str


def blueprint(front: Front) -> flask.Blueprint:
    """The routes, bound to `front`."""
    routes = flask.Blueprint("docs", __name__)
    routes.add_url_rule(
        "/api-doc/openapi.json", "openapi", partial(openapi, front), methods=["GET"]
    )
    routes.add_url_rule("/docs", "redirect", _redirect, methods=["GET"])
    view = partial(page, assets())
    routes.add_url_rule("/docs/", "index", partial(view, "index.html"), methods=["GET"])
    routes.add_url_rule("/docs/<name>", "asset", view, methods=["GET"])
    return routes


def assets() -> dict[str, Asset]:
    """Name under /docs/ to file. Raises `ModuleNotFoundError` if Swagger UI is not installed."""
    name = "flask_openapi3_swagger"  # only its files are used: it is found, not imported
    package = importlib.util.find_spec(name)
    if package is None or not package.submodule_search_locations:
        raise ModuleNotFoundError(f"Swagger UI is missing: install {name.replace('_', '-')}")
    swagger = Path(package.submodule_search_locations[0]) / "templates/swagger"
    script, style = "text/javascript", "text/css"
    return {
        "index.html": Asset(OURS / "index.html", "text/html"),
        "start.js": Asset(OURS / "start.js", script),
        "swagger-ui-bundle.js": Asset(swagger / "js/swagger-ui-bundle.js", script),
        "swagger-ui.css": Asset(swagger / "css/swagger-ui.css", style),
        "favicon.svg": Asset(swagger / "images/swagger.svg", "image/svg+xml"),
    }


def openapi(front: Front) -> flask.Response:
    """GET /api-doc/openapi.json."""
    return json_response(document(flask.current_app.url_map, front.settings))


def page(files: dict[str, Asset], name: str) -> flask.Response:
    """GET /docs/ and the files below it."""
    asset = files.get(name)
    if asset is None:
        flask.abort(404)
    response = flask.Response(asset.path.read_bytes(), mimetype=asset.content_type)
    response.headers["content-security-policy"] = POLICY
    response.headers["x-content-type-options"] = "nosniff"
    response.cache_control.max_age = MAX_AGE_SECONDS
    response.add_etag()
    response.make_conditional(flask.request)
    return response


def _redirect() -> flask.Response:
    response = flask.Response(b"", 303)
    response.headers["location"] = "/docs/"
    return response
