"""`text-generation-launcher`, also `python -m serving`: the command that the container runs.

Comes in: command line and environment, which are read here and nowhere else. Goes out: an exit
code (0 stopped by a signal, 1 failure, 2 unusable settings). Next: `launch.py`.
"""

import logging
import os
import sys

import click

from serving import __version__
from serving.launcher.launch import launch
from serving.settings import Settings, SettingsError, fields
from serving.settings_sources import resolve
from serving.telemetry import configure_logging

logger = logging.getLogger("serving")


def main() -> None:
    """Resolve the settings, serve until the end, and exit with the launcher's code."""
    try:
        settings = resolve(sys.argv[1:], os.environ)
    except SettingsError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except click.exceptions.Exit as done:  # --help, --version
        sys.exit(done.exit_code)
    configure_logging("launcher", settings.log_level, settings.json_output)
    log_settings(settings)
    code = launch(settings, os.environ)
    logging.shutdown()
    sys.stdout.flush()
    # Not sys.exit: that would wait for the threads of a download which a signal interrupted.
    os._exit(code)


def log_settings(settings: Settings) -> None:
    """Log the settings that were given; all of them with --env; a warning for each inert one."""
    logger.info("text-generation-serving %s", __version__)
    for name, line in zip(fields(), settings.lines(), strict=True):
        if settings.env or name in settings.origins:
            logger.info("setting %s", line)
        else:
            logger.debug("setting %s", line)
    for warning in settings.warnings():
        logger.warning("%s", warning)


if __name__ == "__main__":
    main()
