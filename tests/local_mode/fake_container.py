"""A container that does what a test tells it to: by its environment, and by each request's body.

Started as the server of an endpoint: `fake_container.py serve`. POST bodies are JSON objects whose
member `do` chooses the answer; GET /ping is 200 unless `FAKE` or an earlier request says otherwise.
"""

import json
import os
import signal
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODE = os.environ.get("FAKE", "")
PREFIX = "X-Amzn-SageMaker-"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    ping_status = 503 if MODE == "never ready" else 200

    def do_GET(self) -> None:
        self.answer(Handler.ping_status if self.path == "/ping" else 404, b"")

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        asked = json.loads(content)
        action = asked.get("do") or asked.get("requestType")
        getattr(self, action.lower())(asked, len(content))

    def echo(self, asked: dict[str, Any], size: int) -> None:
        seen = {
            "path": self.path,
            "headers": dict(self.headers),
            "size": size,
            "arguments": sys.argv[1:],
            "environment": dict(os.environ),
        }
        attributes = self.headers.get(f"{PREFIX}Custom-Attributes")
        extra = {} if attributes is None else {f"{PREFIX}Custom-Attributes": attributes}
        self.answer(200, json.dumps(seen).encode(), extra)

    def fail(self, asked: dict[str, Any], size: int) -> None:
        self.answer(asked["status"], asked["text"].encode())

    def sleep(self, asked: dict[str, Any], size: int) -> None:
        time.sleep(asked["seconds"])
        self.answer(200, b"late")

    def stream(self, asked: dict[str, Any], size: int) -> None:
        self.send_response(200)
        self.send_header("Content-Type", asked.get("type", "text/event-stream"))
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for piece in asked["pieces"]:
            data = piece.encode()
            self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
            time.sleep(asked.get("pause", 0))
        if not asked.get("broken"):
            self.wfile.write(b"0\r\n\r\n")
        self.close_connection = True

    def cut(self, asked: dict[str, Any], size: int) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "100")
        self.end_headers()
        self.wfile.write(b"too little")
        self.close_connection = True

    def sicken(self, asked: dict[str, Any], size: int) -> None:
        Handler.ping_status = 503
        self.answer(200, b"")

    def die(self, asked: dict[str, Any], size: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def new_session(self, asked: dict[str, Any], size: int) -> None:
        assert self.headers[f"{PREFIX}Session-Id"] == "NEW_SESSION"
        self.answer(200, b"", {f"{PREFIX}New-Session-Id": "one; Expires=2030-01-01T00:00:00Z"})

    def close(self, asked: dict[str, Any], size: int) -> None:
        session = self.headers[f"{PREFIX}Session-Id"]
        self.answer(200, b"", {f"{PREFIX}Closed-Session-Id": session})

    def answer(self, status: int, body: bytes, extra: dict[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, value in (extra or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def main() -> None:
    if MODE == "exit":
        print("no such model")
        sys.exit(3)
    number = signal.SIG_IGN if MODE == "stubborn" else lambda *_: os._exit(0)
    signal.signal(signal.SIGTERM, number)
    port = int(os.environ["SAGEMAKER_BIND_TO_PORT"])
    print("serving", flush=True)
    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    main()
