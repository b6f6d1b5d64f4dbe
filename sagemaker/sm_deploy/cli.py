"""Entry point of `sagemaker-endpoint`; a thin layer over the Python API of this package.

Runs on the deploying person's machine or in CI. Comes in: the command line. Goes out: progress on
standard error, results on standard output, exit code 0, or 1 after one line that says what, cause
and remedy. Next: `cli_deploy.py`, `cli_running.py`, `cli_requests.py`.
"""

import sys
from typing import Any

import click

from sm_deploy.errors import DeployError

try:
    from sm_deploy import cli_deploy, cli_requests, cli_running
    from sm_deploy.console import show_error
except ModuleNotFoundError as missing:  # boto3 belongs to an extra
    if (missing.name or "").partition(".")[0] not in ("boto3", "botocore"):
        raise
    sys.exit(
        "sagemaker-endpoint: boto3 is not installed. Remedy: "
        "pip install 'text-generation-serving[sagemaker]'"
    )


class Program(click.Group):
    """A group whose commands end with one line for a `DeployError`."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; exit code 1 for a `DeployError`."""
        try:
            return super().invoke(ctx)
        except DeployError as error:
            show_error(error)
            ctx.exit(1)


@click.group(
    cls=Program, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
def main() -> None:
    """Deploy, change, invoke and delete a SageMaker endpoint that runs the serving image.

    Every command takes --local to do the same with local mode, without an AWS account.
    """


for command in (*cli_deploy.COMMANDS, *cli_running.COMMANDS, *cli_requests.COMMANDS):
    main.add_command(command)

if __name__ == "__main__":
    main()
