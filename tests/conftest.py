"""All tests: makes `tests/fakes` importable, also for the worker processes that a test starts."""

from __future__ import annotations

import sys
from pathlib import Path

FAKES = Path(__file__).resolve().parent / "fakes"
sys.path.insert(0, str(FAKES))
