"""Addresses, ports and interfaces of several machines."""

import socket

import psutil
import pytest

from serving.errors import StartupError
from serving.launcher.nodes.network import free_port, own_address, with_gloo_interface
from serving.settings import Settings


@pytest.mark.parametrize(
    ("host", "address"), [("localhost", "127.0.0.1"), ("127.0.0.2", "127.0.0.2")]
)
def test_own_addresses(host: str, address: str) -> None:
    assert own_address(host) == address


@pytest.mark.parametrize("host", ["192.0.2.1", "0.0.0.0", "no.such.host.invalid"])
def test_addresses_that_others_cannot_use(host: str) -> None:
    with pytest.raises(StartupError, match=f"`master_addr` {host} is "):
        own_address(host)


def test_a_name_that_is_loopback_here_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostbyname", lambda name: "127.0.1.1")
    with pytest.raises(StartupError, match=r"host-0 is 127\.0\.1\.1 here, where no other machine"):
        own_address("host-0")


def test_a_free_port_of_a_range() -> None:
    with socket.create_server(("", 0)) as taken, socket.socket() as probe:
        probe.bind(("", 0))
        port, other = taken.getsockname()[1], probe.getsockname()[1]
        probe.close()
        assert free_port(f"{other}-{other}") == other
        with pytest.raises(StartupError, match=f"no port of .* {port}-{port} is free"):
            free_port(f"{port}-{port}")


def test_any_free_port() -> None:
    with socket.create_server(("", free_port(None))):
        pass


def test_gloo_uses_the_interface_to_machine_0() -> None:
    interfaces = {
        address.address: name
        for name, addresses in psutil.net_if_addrs().items()
        for address in addresses[::-1]
        if address.family is socket.AF_INET
    }
    for address, name in interfaces.items():
        settings = Settings(nnodes=2, master_addr=address)
        assert with_gloo_interface({}, settings)["GLOO_SOCKET_IFNAME"] == name


@pytest.mark.parametrize(
    ("nnodes", "master_addr", "given", "interface"),
    [
        (1, "localhost", {}, "lo"),
        (1, "localhost", {"GLOO_SOCKET_IFNAME": "eth0"}, "eth0"),
        (2, "127.0.0.2", {}, "lo"),
        (2, "host-0.invalid", {}, None),
    ],
)
def test_the_interface_of_gloo(
    nnodes: int, master_addr: str, given: dict[str, str], interface: str | None
) -> None:
    settings = Settings(nnodes=nnodes, master_addr=master_addr)
    assert with_gloo_interface(given, settings).get("GLOO_SOCKET_IFNAME") == interface
