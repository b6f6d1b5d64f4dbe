"""The listening socket, opened before anything slow is imported.

Runs in the front's master process. Comes in: the settings. Goes out: a bound socket, in whose
backlog early clients wait. Next: `server.py`.
"""

import logging
import socket

from serving.settings import Settings

BACKLOG = 2048

log = logging.getLogger(__name__)


def listen(settings: Settings) -> socket.socket:
    """A bound socket. Raises `OSError` if the address cannot be used."""
    address = settings.listen_address
    if settings.hostname not in (address, "localhost"):
        log.warning("hostname '%s' is not an IP address: using %s", settings.hostname, address)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((address, settings.port))
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener
