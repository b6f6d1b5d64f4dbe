"""The Python API in one place, for scripts: `from sm_deploy.api import Clients, deploy, ...`.

Runs on the deploying person's machine. Every function raises `DeployError` only. Next:
`deployment.py`.
"""

from sm_deploy.async_invoking import Pending, invoke_async, wait_for_answer
from sm_deploy.clients import LOCAL_URL, Clients
from sm_deploy.cloudwatch import follow, last_lines, log_group
from sm_deploy.deployment import Deployment, How, deploy
from sm_deploy.errors import DeployError
from sm_deploy.execution import Pace
from sm_deploy.invoking import Target, invoke, invoke_stream, sse_events, text_of
from sm_deploy.options import AsyncOptions, ComponentOptions, EndpointOptions, Network
from sm_deploy.plan import Plan, make_plan
from sm_deploy.preparation import prepare
from sm_deploy.reporting import Reporter
from sm_deploy.scaling import ScalingOptions, scale, scaling_calls, set_count, stop_scaling
from sm_deploy.status import EndpointStatus, endpoint_status
from sm_deploy.strategy import Strategy
from sm_deploy.teardown import delete_endpoint
from sm_deploy.template import template
from sm_deploy.updating import Changes, update

__all__ = [
    "LOCAL_URL",
    "AsyncOptions",
    "Changes",
    "Clients",
    "ComponentOptions",
    "DeployError",
    "Deployment",
    "EndpointOptions",
    "EndpointStatus",
    "How",
    "Network",
    "Pace",
    "Pending",
    "Plan",
    "Reporter",
    "ScalingOptions",
    "Strategy",
    "Target",
    "delete_endpoint",
    "deploy",
    "endpoint_status",
    "follow",
    "invoke",
    "invoke_async",
    "invoke_stream",
    "last_lines",
    "log_group",
    "make_plan",
    "prepare",
    "scale",
    "scaling_calls",
    "set_count",
    "sse_events",
    "stop_scaling",
    "template",
    "text_of",
    "update",
    "wait_for_answer",
]
