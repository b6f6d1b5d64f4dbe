"""Fixtures and options that several folders share."""

from pathlib import Path

import pytest

pytest_plugins = ["tests.support.front_fixtures"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--parity-table", type=Path, help="write the table of tests/models/conftest.py to this file"
    )
