"""One server for all fuzzing: short contexts, checks of the engine on; it must end up idle."""

from collections.abc import Iterator

import pytest
from live_server import LiveServer, live_server

CONTEXT = 128  # tokens: whatever a body asks for, its answer is short
POOL = 4 * CONTEXT  # tokens: a dozen sequences together have to be set back and computed again


@pytest.fixture(scope="session")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server; its log is shown if it died, failed, or holds on to something at the end."""
    log = tmp_path_factory.mktemp("fuzz") / "log"
    limits = ("--max-total-tokens", str(CONTEXT), "--max-batch-total-tokens", str(POOL))
    with live_server(log, *limits, "--enable-prefill-logprobs") as server:
        server.post("/generate", {"inputs": "Count to 10"})  # now every metric exists
        yield server
        assert server.process.poll() is None, log.read_text()
        server.wait_until_idle()
        assert server.metric("tgi_queue_size") == 0, log.read_text()
        assert server.metric("tgi_kv_cache_usage_ratio") == 0, log.read_text()
        faults = [line for line in log.read_text().splitlines() if " ERROR " in line]
        assert not faults, log.read_text()
