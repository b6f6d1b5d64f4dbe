"""The search for the model's files, in a thread of its own: a download may take long.

Runs in the launcher, whose heartbeats and signals go on meanwhile. Comes in: settings. Goes out:
the directory, or the error that ended the search. Next: `models/hub.py`.
"""

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from serving.models.hub import resolve_model
from serving.settings import NO_MODEL, Settings

logger = logging.getLogger(__name__)


class ModelSearch:
    """A search, running from construction on."""

    def __init__(self, settings: Settings, wake: Callable[[], None]) -> None:
        """Start the thread; it calls `wake` at its end."""
        self._settings = settings
        self._wake = wake
        self._found: Path | Exception | None = None
        if settings.model_id == NO_MODEL and settings.weights_cache_override is None:
            logger.info("no model id is given: serving the embedded demo model")
        # A daemon: a download must not outlive a SIGTERM.
        threading.Thread(target=self._search, name="model files", daemon=True).start()

    def is_over(self) -> bool:
        """Whether `path` can be called."""
        return self._found is not None

    def path(self) -> Path:
        """The model's directory, once `is_over`. Raises what the search raised."""
        if isinstance(self._found, Path):
            return self._found
        raise self._found or RuntimeError("the search for the model is not over")

    def _search(self) -> None:
        try:
            self._found = resolve_model(self._settings)
        except Exception as error:  # raised again by `path`, in the main thread
            self._found = error
        self._wake()
