"""How traffic moves to what is new: SageMaker's deployment guardrails.

Runs on the deploying person's machine. Comes in: a choice and a step size. Goes out: the
`DeploymentConfig` of `update_endpoint` and of `update_inference_component`. Next: `updating.py`.
"""

from dataclasses import dataclass
from typing import Any, Literal

from sm_deploy.errors import DeployError

Kind = Literal["all-at-once", "canary", "linear", "rolling"]
# Kind -> smallest and largest step, percent of the instances.
STEPS: dict[Kind, tuple[int, int]] = {
    "all-at-once": (100, 100), "canary": (1, 50), "linear": (10, 50), "rolling": (5, 50),
}  # fmt: skip
LONGEST_WAIT = 3600  # seconds
MOST_ALARMS = 10


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """All-at-once, canary and linear are blue/green: a second fleet is started beside the first.

    Rolling replaces the instances in batches: it needs few spare ones, so it suits scarce types.
    """

    kind: Kind = "all-at-once"
    step_percent: int | None = None  # of the first, or each, step; default: the largest
    wait_seconds: int = 300  # between steps, while alarms are watched
    alarms: tuple[str, ...] = ()  # names; one of them going off rolls the update back
    watch_errors: bool = False  # make an alarm on 5xx answers, and roll back on it

    def __post_init__(self) -> None:
        if self.kind not in STEPS:
            raise DeployError("strategy", f"'{self.kind}' is unknown", f"one of {', '.join(STEPS)}")
        least, most = STEPS[self.kind]
        if self.step_percent is not None and not least <= self.step_percent <= most:
            cause = f"{self.step_percent} % is not from {least} to {most} for {self.kind}"
            raise DeployError("step", cause, "choose another --step")
        if not 0 <= self.wait_seconds <= LONGEST_WAIT:
            cause = f"{self.wait_seconds} s is not from 0 to {LONGEST_WAIT}"
            raise DeployError("wait between steps", cause, "choose another --step-wait")
        if len(self.alarms) + self.watch_errors > MOST_ALARMS:
            raise DeployError("alarms", f"more than {MOST_ALARMS}", "choose fewer")

    def for_endpoint(self, more_alarms: list[str]) -> dict[str, Any]:
        """`DeploymentConfig` of `update_endpoint`."""
        size = {"Type": "CAPACITY_PERCENT", "Value": self._step}
        if self.kind == "rolling":
            policy: dict[str, Any] = {
                "RollingUpdatePolicy": {
                    "MaximumBatchSize": size,
                    "WaitIntervalInSeconds": self.wait_seconds,
                }
            }
        else:
            routing: dict[str, Any] = {
                "Type": self.kind.upper().replace("-", "_"),
                "WaitIntervalInSeconds": self.wait_seconds,
            }
            steps = {"canary": "CanarySize", "linear": "LinearStepSize"}
            if self.kind in steps:
                routing[steps[self.kind]] = size
            policy = {"BlueGreenUpdatePolicy": {"TrafficRoutingConfiguration": routing}}
        return policy | self._rollback(more_alarms)

    def for_component(self, more_alarms: list[str]) -> dict[str, Any]:
        """`DeploymentConfig` of `update_inference_component`, which can only roll."""
        size = {"Type": "CAPACITY_PERCENT", "Value": self._step}
        policy = {"MaximumBatchSize": size, "WaitIntervalInSeconds": self.wait_seconds}
        return {"RollingUpdatePolicy": policy} | self._rollback(more_alarms)

    @property
    def _step(self) -> int:
        return self.step_percent or STEPS[self.kind][1]

    def _rollback(self, more_alarms: list[str]) -> dict[str, Any]:
        names = [*self.alarms, *more_alarms]
        if not names:
            return {}
        alarms = [{"AlarmName": name} for name in names]
        return {"AutoRollbackConfiguration": {"Alarms": alarms}}
