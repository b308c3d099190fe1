"""Runs of `fake_run.py` and of `privmem` as processes of their own, with a session each, so that a test can see
what they leave behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

FAKE_RUN = Path(__file__).with_name("fake_run.py")


class Process:
    """A running command. Ends with the test: use it as a context."""

    def __init__(self, *command: str) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.out = self.err = ""

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        if self.popen.poll() is None:
            self.popen.kill()
            self.popen.communicate()

    def wait(self, timeout_s: float = 120) -> int:
        """The exit status; output is in `out` and `err` then."""
        self.out, err = self.popen.communicate(timeout=timeout_s)
        # In a fresh clone, whichever run is the first says that it compiles.
        self.err = err.replace("compiling (first run only) ...\n", "")
        return self.popen.returncode

    def wait_for(self, pattern: Path, timeout_s: float = 120) -> None:
        """Until the path (a glob in its last part) is there, or the process has ended."""
        give_up = time.monotonic() + timeout_s
        while not any(pattern.parent.glob(pattern.name)):
            assert time.monotonic() < give_up, f"{pattern} did not appear"
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.popen.wait(timeout=0.02)
                return

    def interrupt(self) -> None:
        """Ctrl-C, which a terminal sends to the whole process group."""
        os.killpg(self.popen.pid, signal.SIGINT)

    def left_behind(self) -> dict[int, str]:
        """Processes of the session that still run: number and name."""
        left = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    text = (entry / "stat").read_text()
                except OSError:
                    continue
                name, _, rest = text.rpartition(")")
                fields = rest.split()
                if int(fields[3]) == self.popen.pid and fields[0] != "Z":
                    left[int(entry.name)] = name.partition("(")[2]
        return left

    def wait_until_nothing_is_left(self, timeout_s: float) -> None:
        """All processes of the session end by themselves in this time."""
        give_up = time.monotonic() + timeout_s
        while left := self.left_behind():
            assert time.monotonic() < give_up, f"still there: {left}"
            with contextlib.suppress(ProcessLookupError):
                watched = os.pidfd_open(min(left))
                select.select([watched], [], [], timeout_s)
                os.close(watched)


def fake_run(folder: Path, **wish: Any) -> Process:
    """`fake_run.py FOLDER WISH`."""
    return Process(str(FAKE_RUN), str(folder), json.dumps(wish))


def privmem(*arguments: str | Path) -> Process:
    """The privmem command."""
    return Process("-m", "privmem.cluster", *map(str, arguments))


def digest_of(output: str) -> str:
    """The digest in the last line of a run's output."""
    found = re.search(r"^digest: (\w+)$", output, re.MULTILINE)
    assert found, output
    return found[1]
