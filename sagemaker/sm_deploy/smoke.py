"""One small request after a deployment: InService alone does not prove that a model answers.

Runs on the deploying person's machine. Comes in: a `Plan` whose resources are in service. Goes
out: nothing, or a `DeployError` with what the model answered. Next: `invoking.py`.
"""

from sm_deploy.clients import Clients
from sm_deploy.invoking import Target, invoke
from sm_deploy.plan import Plan
from sm_deploy.reporting import Reporter

BODY = {"inputs": "Hello", "parameters": {"max_new_tokens": 8}}


def smoke_test(clients: Clients, plan: Plan, report: Reporter) -> None:
    """Ask for eight tokens. Raises `DeployError` if no answer comes."""
    if "AsyncInferenceConfig" in plan.config.parameters:
        report.note("no trial request: an asynchronous endpoint answers into S3")
        return
    component = plan.component
    if component is not None and component.parameters["RuntimeConfig"]["CopyCount"] == 0:
        report.note("no trial request: the component has no copies")
        return
    report.progress("trying one request")
    answer = invoke(clients, Target(plan.endpoint_name, plan.component_name), BODY)
    report.note(f"a trial request was answered with {len(answer)} bytes")
