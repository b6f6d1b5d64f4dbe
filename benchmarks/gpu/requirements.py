"""Which libraries each section needs beside torch, and what is not installed.

Read by `sections.py` before a part is run, and by `--help`. A machine with a GPU may have torch,
transformers and triton only, and no network: the wheels to carry there are named here. A test
compares this with what the code imports.
"""

from collections.abc import Iterable
from importlib import util

# Modules that the command itself and every part import: the machine must have them.
ALWAYS = ("torch", "tokenizers", "safetensors", "click", "rich")
ENGINE = ("numpy", "msgspec", "zmq", "llguidance", "prometheus_client")
CLIENTS = ("msgspec", "psutil", "tokenizers")
SERVER = (*ENGINE, "flask", "werkzeug", "gunicorn", "gevent", "jinja2", "flask_openapi3_swagger")
NEEDED = {
    "machine": (),
    "kernels": (),
    "engine": ENGINE,
    "http": (*SERVER, *(name for name in CLIENTS if name not in SERVER)),
    "correctness": (*ENGINE, "transformers", "pytest"),
}
# Parts that need less than their section.
LESS = {"correctness.checks": ("pytest",)}
ON_A_GPU = ("triton",)
# Wheels whose name differs from the module's, and what they need themselves.
WHEELS = {
    "zmq": "pyzmq",
    "prometheus_client": "prometheus-client",
    "flask": "flask blinker itsdangerous",
    "gevent": "gevent greenlet zope.event zope.interface",
    "flask_openapi3_swagger": "flask-openapi3-swagger",
}


def of_part(section: str, part: str) -> tuple[str, ...]:
    """Modules that a part of a section needs, by its full name."""
    return LESS.get(part, NEEDED[section])


def missing(names: Iterable[str]) -> list[str]:
    """Modules that are not installed."""
    return [name for name in names if util.find_spec(name) is None]


def wheels(names: Iterable[str]) -> str:
    """What must be carried for these modules."""
    return " ".join(WHEELS.get(name, name) for name in names)


def help_text() -> str:
    """For `--help`: what each section needs."""
    lines = [f"  {name}: {wheels(needed)}" for name, needed in NEEDED.items() if needed]
    return "\n".join([f"  always: {wheels((*ALWAYS, *ON_A_GPU))}", *lines])
