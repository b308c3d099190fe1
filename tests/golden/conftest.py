"""Compares text with a file beside the test; `pytest tests/golden --update-golden` rewrites the files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite the expected outputs")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """`golden(name, text)`: the text is that of the file `name`, or the test fails."""
    # The option exists only when this folder is named on the command line.
    update = request.config.getoption("--update-golden", default=False)

    def check(name: str, text: str) -> None:
        path = Path(__file__).parent / name
        if update:
            path.write_text(text, encoding="utf-8")
        assert text == path.read_text(encoding="utf-8")

    return check
