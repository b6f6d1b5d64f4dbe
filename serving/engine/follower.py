"""The loop of every rank but the first: receive a plan, run this rank's part, say that it is alive.

Built by `process.py`. No scheduler, no sampling, no sockets to the front: what rank 0 decides is in
the plans. Next: `plan_channel.py`, `model_runner.py`.
"""

from serving.engine.launcher_reports import LauncherReports
from serving.engine.plan_channel import PlanReader
from serving.engine.step.model_runner import ModelRunner

POLL_SECONDS = 1.0  # to notice `stop()`


class FollowerLoop:
    """Runs plans until `stop()` or until rank 0 has gone."""

    def __init__(self, plans: PlanReader, runner: ModelRunner, reports: LauncherReports) -> None:
        self._plans = plans
        self._runner = runner
        self._reports = reports
        self._running = True

    def stop(self) -> None:
        """Return from `run()` after the current step (called from a signal handler)."""
        self._running = False

    def run(self) -> None:
        """Follow. Raises `EOFError` if rank 0 ends before this rank is told to."""
        while self._running:
            try:
                command = self._plans.receive(POLL_SECONDS)
            except EOFError:
                if self._running:
                    raise
                return  # rank 0 was told to stop too, and was quicker
            if command is not None:
                self._runner.follow(command.plan, command.chosen)
                self._reports.alive()
