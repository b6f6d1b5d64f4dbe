"""What every route is given: settings, engine, metrics, and the model once it is loaded.

Runs in each front worker; made by `server.py`, or by a test. No other state is shared between
requests. Next: `app.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass

from serving.errors import ErrorKind, RequestError
from serving.front.engine_client import Engine, require_available
from serving.front.model import LoadedModel
from serving.front.session_table import SessionTable
from serving.metrics import FrontMetrics
from serving.settings import Settings


@dataclass
class Front:
    """The worker's parts; `model` is None until the first engine is ready."""

    settings: Settings
    engine: Engine
    metrics: FrontMetrics
    metrics_page: Callable[[], bytes]
    model: LoadedModel | None = None
    sessions: SessionTable | None = None  # None: disabled

    def loaded_model(self) -> LoadedModel:
        """The model, also while no sequence is taken. Raises `RequestError` UNHEALTHY."""
        self.engine.wait_if_late()
        if self.model is None:
            raise RequestError(ErrorKind.UNHEALTHY, "the model is loading")
        return self.model

    def serving_model(self) -> LoadedModel:
        """The model, if sequences are taken. Raises `RequestError` UNHEALTHY or GENERATION."""
        self.engine.wait_if_late()
        require_available(self.engine.availability)
        return self.loaded_model()
