"""All tests: makes `tests/fakes` importable, also for processes that a test starts; hypothesis has no deadlines."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from hypothesis import settings

# A busy machine is not a fault of the code.
settings.register_profile("privmem", deadline=None)
settings.load_profile("privmem")

FAKES = str(Path(__file__).resolve().parent / "fakes")
if FAKES not in sys.path:
    sys.path.insert(0, FAKES)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [FAKES, os.environ.get("PYTHONPATH", "")]))
