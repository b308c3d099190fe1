"""All tests: makes `tests/fakes` importable, also for the processes that a test starts."""

from __future__ import annotations

import os
import sys
from pathlib import Path

FAKES = str(Path(__file__).resolve().parent / "fakes")
if FAKES not in sys.path:
    sys.path.insert(0, FAKES)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [FAKES, os.environ.get("PYTHONPATH", "")]))
