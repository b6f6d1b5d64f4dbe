"""The roofline of `front_throughput.py`: what gunicorn and gevent alone cost for each event.

Runs as `python -m benchmarks.bare_stream PORT TOKENS`. Comes in: any request. Goes out: the same
frame so many times, one write each, with a turn for the other greenlets in between.
"""

from collections.abc import Callable, Iterator
from typing import Any

import click
import gevent
from gunicorn.app.base import BaseApplication

FRAME = (
    b'data: {"index":100,"token":{"id":543,"text":" blue","logprob":-1.2345678,"special":false},'
    b'"generated_text":null,"details":null}\n\n'
)


class BareStream(BaseApplication):  # type: ignore[misc]
    """One gevent worker of stock gunicorn."""

    def __init__(self, port: int, tokens: int) -> None:
        self._port = port
        self._tokens = tokens
        super().__init__()

    def load_config(self) -> None:
        """Gunicorn's settings."""
        values = {
            "bind": f"127.0.0.1:{self._port}",
            "worker_class": "gevent",
            "workers": 1,
            "loglevel": "warning",
            "control_socket_disable": True,
        }
        for name, value in values.items():
            self.cfg.set(name, value)

    def load(self) -> Callable[[dict[str, Any], Callable[..., Any]], Iterator[bytes]]:
        """The application."""

        def application(
            environ: dict[str, Any], start_response: Callable[..., Any]
        ) -> Iterator[bytes]:
            start_response("200 OK", [("content-type", "text/event-stream")])
            if environ["REQUEST_METHOD"] == "POST":
                for _ in range(self._tokens):
                    yield FRAME
                    gevent.sleep(0)

        return application


@click.command()
@click.argument("port", type=int)
@click.argument("tokens", type=int)
def main(port: int, tokens: int) -> None:
    """Serve on PORT until the process is ended."""
    BareStream(port, tokens).run()


if __name__ == "__main__":
    main()
