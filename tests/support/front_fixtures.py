"""Fixtures of the front's tests: a tiny model, a scripted engine, the application."""

from collections.abc import Callable
from pathlib import Path

import flask
import pytest
from flask.testing import FlaskClient
from prometheus_client import CollectorRegistry

from serving.front.app import create_app
from serving.front.context import Front
from serving.front.model import LoadedModel, load_model
from serving.front.text.tokenization import Tokenizer
from serving.metrics import FrontMetrics, render
from serving.settings import Settings
from tests.support.fake_engine import ScriptedEngine, engine_info
from tests.support.tiny_model import make_model_directory

MakeFront = Callable[..., Front]


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_directory(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def tokenizer(model_directory: Path) -> Tokenizer:
    return Tokenizer(model_directory)


@pytest.fixture(scope="session")
def model(model_directory: Path) -> LoadedModel:
    return load_model(engine_info(model_directory), Settings(model_id="org/model"))


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine()


@pytest.fixture
def make_front(model: LoadedModel, engine: ScriptedEngine) -> MakeFront:
    """Builds a `Front` with a loaded model; keyword arguments are settings."""

    def make(**settings: object) -> Front:
        registry = CollectorRegistry()
        metrics = FrontMetrics(registry)
        metrics.set_limits(model.info.max_input_tokens, model.info.max_total_tokens)
        values = {"model_id": "org/model", **settings}
        return Front(Settings(**values), engine, metrics, lambda: render(registry), model)

    return make


@pytest.fixture
def front(make_front: MakeFront) -> Front:
    return make_front()


@pytest.fixture
def app(front: Front) -> flask.Flask:
    return create_app(front)


@pytest.fixture
def client(app: flask.Flask) -> FlaskClient:
    return app.test_client()
