"""Fixtures that several folders share."""

pytest_plugins = ["tests.support.front_fixtures"]
