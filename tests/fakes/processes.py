"""Runs of `fake_run.py` and of `privmem` as processes of their own, with a session each, so that a test can see
what they leave behind.
"""

from __future__ import annotations

import json
import os
import re
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
        self.out, self.err = self.popen.communicate(timeout=timeout_s)
        return self.popen.returncode

    def wait_for(self, *patterns: Path, timeout_s: float = 120) -> None:
        """Until one of the paths (globs in the last part) is there, or the process has ended."""
        give_up = time.monotonic() + timeout_s
        while self.popen.poll() is None and not any(any(p.parent.glob(p.name)) for p in patterns):
            assert time.monotonic() < give_up, f"{patterns} did not appear"
            self._pause()

    def interrupt(self) -> None:
        """Ctrl-C, which a terminal sends to the whole process group."""
        os.killpg(self.popen.pid, signal.SIGINT)

    def left_behind(self) -> list[str]:
        """Names of processes of the session that still run."""
        names = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    text = (entry / "stat").read_text()
                except OSError:
                    continue
                name, fields = (
                    text[text.index("(") : text.rindex(")") + 1],
                    text[text.rindex(")") + 2 :].split(),
                )
                if int(fields[3]) == self.popen.pid and fields[0] != "Z":
                    names.append(name)
        return names

    def wait_until_nothing_is_left(self, timeout_s: float) -> None:
        """All processes of the session end by themselves in this time."""
        give_up = time.monotonic() + timeout_s
        while left := self.left_behind():
            assert time.monotonic() < give_up, f"still there: {left}"
            self._pause()

    def _pause(self) -> None:
        try:
            self.popen.wait(timeout=0.02)
        except subprocess.TimeoutExpired:
            return
        time.sleep(0.02)


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
