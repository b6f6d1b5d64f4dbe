"""Addresses, ports and interfaces that the machines of one server meet on.

Runs in the launchers. Comes in: `--master-addr` and the range of allowed ports. Goes out: the IP
address that machine 0 binds, a free port for each rendezvous, the interface for gloo. Next:
`cluster.py`.
"""

import fcntl
import ipaddress
import logging
import random
import socket
import struct
from collections.abc import Iterable, Mapping

from serving.errors import StartupError
from serving.settings import Settings
from serving.settings_sharding import port_range

logger = logging.getLogger(__name__)

PHASE = "machines"
LOOPBACK = "lo"  # on every Linux
SIOCGIFADDR = 0x8915  # <linux/sockios.h>
ATTEMPTS = 200  # ports that are tried


def own_address(host: str) -> str:
    """IPv4 address of `host`, which must be this machine. Raises `StartupError`."""
    remedy = "give --master-addr as an IPv4 address of machine 0 that all machines can reach"
    try:
        address = socket.gethostbyname(host)
        with socket.socket() as probe:
            probe.bind((address, 0))
    except OSError as error:
        cause = f"`master_addr` {host} is no address of this machine: {error}"
        raise StartupError(PHASE, cause, remedy) from error
    found = ipaddress.ip_address(address)
    if found.is_unspecified or (found.is_loopback and not is_loopback(host)):
        cause = f"`master_addr` {host} is {address} here, where no other machine can reach it"
        raise StartupError(PHASE, cause, remedy)
    return address


def is_loopback(host: str) -> bool:
    """Whether `host` names this machine on every machine, as "localhost" and 127.0.0.2 do."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def with_gloo_interface(environ: Mapping[str, str], settings: Settings) -> dict[str, str]:
    """The environment of ranks, with gloo bound to the interface on which they meet.

    Left to itself gloo takes the address of the machine's name, which a container may not have, and
    which is a loopback address on many machines.
    """
    host = settings.master_addr if settings.nnodes > 1 else "localhost"
    interface = None if "GLOO_SOCKET_IFNAME" in environ else _interface_to(host)
    return dict(environ) if interface is None else {**environ, "GLOO_SOCKET_IFNAME": interface}


def _interface_to(host: str) -> str | None:
    """Name of the interface from which `host` is reached; None, and a warning, if nobody knows."""
    if is_loopback(host):
        return LOOPBACK
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))  # asks the routing table, sends nothing
            address = probe.getsockname()[0]
    except OSError as error:
        logger.warning("no interface for gloo: no way to `master_addr` %s: %s", host, error)
        return None
    for _, name in socket.if_nameindex():
        if _address_of(name) == address:
            return name
    logger.warning("no interface for gloo: none has the address %s in the first place", address)
    return None


def _address_of(interface: str) -> str | None:
    """Its first IPv4 address, if it has one."""
    request = struct.pack("256s", interface.encode())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            answer = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, request)
        except OSError:
            return None
    return socket.inet_ntoa(answer[20:24])  # name (16), family (2), port (2), address


def free_port(safe_port_range: str | None) -> int:
    """A port that nobody listens on, of "FIRST-LAST" or any. Raises `StartupError`."""
    ports: Iterable[int] = (0,)
    if safe_port_range is not None:
        allowed = port_range(safe_port_range)
        # At random: the port of the last epoch may still be held by connections that end.
        ports = random.sample(allowed, min(ATTEMPTS, len(allowed)))
    for port in ports:
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    cause = f"no port of SAGEMAKER_SAFE_PORT_RANGE {safe_port_range} is free"
    raise StartupError(PHASE, cause, "allow more ports")
