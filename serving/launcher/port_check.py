"""Whether the front will be able to listen, asked before anything is started.

Runs in the launcher. Comes in: address and port of the settings. Goes out: nothing, or a
`StartupError` that names the port and the way out. Next: `launch.py`.
"""

import errno
import ipaddress
import socket

from serving.errors import StartupError

CAUSES = {
    errno.EADDRINUSE: ("is in use", "stop the other process, or choose another --port"),
    errno.EACCES: ("needs privileges", "choose a --port above 1023"),
}


def check_port_is_free(address: str, port: int) -> None:
    """Bind and release `port` of the IP `address`; raises `StartupError` if that fails."""
    family = socket.AF_INET if ipaddress.ip_address(address).version == 4 else socket.AF_INET6
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the front does
            probe.bind((address, port))
            probe.listen()
    except OSError as error:
        unknown = (f"cannot be used: {error.strerror}", "check --hostname and --port")
        cause, remedy = CAUSES.get(error.errno or 0, unknown)
        raise StartupError("listen", f"port {port} of {address} {cause}", remedy) from error
