"""Entry point of the front: `python -m serving.front SETTINGS.json RUN_DIR`.

Started by the launcher. Comes in: the resolved settings and the directory with the sockets. Goes
out: HTTP until SIGTERM; exit code 1 and a last line if the address cannot be used. Gevent patches
the standard library before anything else is imported. Next: `server.py`.
"""

import sys
from pathlib import Path

from gevent import monkey

monkey.patch_all()

import logging  # noqa: E402

import msgspec  # noqa: E402

from serving.front.listener import listen  # noqa: E402
from serving.settings import Settings  # noqa: E402
from serving.telemetry import configure_logging  # noqa: E402


def main(settings_path: Path, run_directory: Path) -> None:
    """Serve; returns only by exiting the process."""
    settings = msgspec.json.decode(settings_path.read_bytes(), type=Settings)
    configure_logging("front", settings.log_level, settings.json_output)
    try:
        listener = listen(settings)
    except OSError as error:
        address = f"{settings.listen_address}:{settings.port}"
        logging.getLogger(__name__).error("cannot listen on %s: %s", address, error.strerror)
        sys.exit(1)
    from serving.front.server import FrontServer  # slow to import: the port is open by now

    FrontServer(settings, run_directory, listener).run()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
