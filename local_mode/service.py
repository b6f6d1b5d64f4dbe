"""The process of `local-endpoint up`: an emulator, and the endpoint that `up` asks for.

Runs in the foreground, or detached with its options as JSON on stdin (they may hold secrets, so
they are on no command line). Comes in: `UpOptions`. Goes out: exit code 0 after a signal, 1 if the
endpoint did not get into service. Next: `emulator.py`.
"""

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from local_mode.emulator import Emulator, EmulatorOptions
from local_mode.errors import LocalModeError, ServiceError
from local_mode.hosting.runners import DEFAULT_IMAGE, choose_runner
from local_mode.stop_signal import StopSignal
from local_mode.up_options import UpOptions

ROLE = "arn:aws:iam::000000000000:role/local"
INSTANCE_TYPE = "ml.m5.xlarge"  # says nothing here: the machine is this one
POLL_SECONDS = 0.1
LOG_FORMAT = "%(asctime)s %(levelname)s %(message)s"


def run(options: UpOptions, announce: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT; call from the main thread.

    `announce` gets the address once everything is in service. Raises `LocalModeError` if it does
    not come to that.
    """
    stop = StopSignal()
    options.folder.mkdir(parents=True, exist_ok=True)
    emulator = Emulator(
        EmulatorOptions(
            runner=choose_runner(options.runner, options.image, os.environ),
            folder=options.folder,
            objects=Path(options.objects) if options.objects else options.folder / "s3",
            host=options.host,
            port=options.port,
            limits=options.limits,
        )
    )
    try:
        if options.endpoint:
            create_endpoint(emulator, options)
            _wait_until_in_service(emulator, options, stop)
        if not stop.wait(0):
            announce(emulator.url)
        stop.wait()
    finally:
        emulator.close()


def create_endpoint(emulator: Emulator, options: UpOptions) -> None:
    """Model, config and endpoint by the calls that anybody would make. Raises `LocalModeError`."""
    name = options.endpoint
    variant = {
        "VariantName": "AllTraffic", "ModelName": name, "InstanceType": INSTANCE_TYPE,
        "InitialInstanceCount": 1,
    }  # fmt: skip
    config: dict[str, Any] = {"EndpointConfigName": name, "ProductionVariants": [variant]}
    if options.asynchronous:
        config["AsyncInferenceConfig"] = {
            "OutputConfig": {
                "S3OutputPath": f"s3://local/{name}/output",
                "S3FailurePath": f"s3://local/{name}/failure",
            }
        }
    calls: dict[str, dict[str, Any]] = {
        "CreateModel": {
            "ModelName": name,
            "PrimaryContainer": container_definition(options),
            "ExecutionRoleArn": ROLE,
        },
        "CreateEndpointConfig": config,
        "CreateEndpoint": {"EndpointName": name, "EndpointConfigName": name},
    }
    for operation, parameters in calls.items():
        try:
            emulator.control.call(operation, parameters)
        except ServiceError as error:
            remedy = "check --name, --model and --env"
            raise LocalModeError(f"endpoint {name}", str(error), remedy) from error


def container_definition(options: UpOptions) -> dict[str, object]:
    """The container of `up`'s endpoint: a local directory is mounted, anything else is a Hub id."""
    environment = dict(options.environment)
    definition: dict[str, object] = {
        "Image": options.image or DEFAULT_IMAGE,
        "Environment": environment,
    }
    directory = Path(options.model).expanduser().resolve()
    if options.model and directory.is_dir():
        source = {
            "S3Uri": f"{directory.as_uri()}/", "S3DataType": "S3Prefix", "CompressionType": "None",
        }  # fmt: skip
        definition["ModelDataSource"] = {"S3DataSource": source}
    elif options.model:
        environment["HF_MODEL_ID"] = options.model
    return definition


def _wait_until_in_service(emulator: Emulator, options: UpOptions, stop: StopSignal) -> None:
    """Raise `LocalModeError` if the endpoint fails; return early when asked to stop."""
    asked = {"EndpointName": options.endpoint}
    while not stop.wait(POLL_SECONDS):
        described = emulator.control.call("DescribeEndpoint", asked)
        if described["EndpointStatus"] == "InService":
            return
        if described["EndpointStatus"] == "Failed":
            what = f"endpoint {options.endpoint}"
            raise LocalModeError(what, described["FailureReason"], "see the log that it names")


def configure_logging() -> None:
    """One line per event on stderr."""
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT, stream=sys.stderr)


def main() -> None:
    """The detached process: options on stdin, log on stderr."""
    options = UpOptions.decode(sys.stdin.read())
    configure_logging()
    try:
        run(options, lambda url: logging.getLogger(__name__).info("in service on %s", url))
    except LocalModeError as error:
        logging.getLogger(__name__).error("%s", error)
        sys.exit(1)


if __name__ == "__main__":
    main()
