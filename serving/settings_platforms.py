"""What a platform expects of a server that it starts: size and time limits, routes of its own.

Runs in the launcher, called by `settings_sources.resolve()`. Comes in: `Settings` as given. Goes
out: the same with the defaults of SageMaker's `serve` where nothing was given, or a `SettingsError`
with exit code 1 for a route that cannot be one. Next: `settings_checks.py`.
"""

import re
from collections.abc import Iterator

import msgspec

from serving.settings import Settings, SettingsError

MIB = 1 << 20
REAL_TIME_BODY = 25 * MIB  # SageMaker's limits of a request
BATCH_BODY = 100 * MIB
# SageMaker ends a request after 60 s, a stream after 8 minutes, one of a batch job after an hour.
# A cut answer must be on its way before: these leave room for the last step and the network.
WHOLE_SECONDS = 55.0
STREAM_SECONDS = 470.0
BATCH_SECONDS = 3540.0
ROUTES = ("health_route", "predict_route")
ROUTE = re.compile(r"(/[A-Za-z0-9._~:@!$&'()*+,;=-]+)+")


def with_platform_defaults(settings: Settings, *, serve: bool) -> Settings:
    """`serve`: SageMaker has started the server. Raises `SettingsError`."""
    _check_routes(settings)
    if not serve:
        return settings
    origin = "SAGEMAKER_BATCH" if settings.batch_transform else "serve"
    missing = {name: value for name, value in _defaults(settings) if name not in settings.origins}
    origins = settings.origins | dict.fromkeys(missing, origin)
    return msgspec.structs.replace(settings, **missing, origins=origins)


def _defaults(settings: Settings) -> Iterator[tuple[str, int | float]]:
    """Of SageMaker; who states the longest time of any request has settled both kinds."""
    batch = settings.batch_transform
    yield "payload_limit", BATCH_BODY if batch else REAL_TIME_BODY
    if settings.max_request_seconds is None:
        yield "max_whole_seconds", BATCH_SECONDS if batch else WHOLE_SECONDS
        yield "max_stream_seconds", BATCH_SECONDS if batch else STREAM_SECONDS


def _check_routes(settings: Settings) -> None:
    for name in ROUTES:
        route = getattr(settings, name)
        if route is not None and not ROUTE.fullmatch(route):
            raise SettingsError(
                f"`{name}` must be a path such as /predict. Given: {route} "
                f"({settings.origins[name]})",
                exit_code=1,
            )
