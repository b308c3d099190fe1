"""Ends the processes of a private Ray instance when its driver was killed and could not.

Ray's own processes notice the death of a driver, but its agents need a minute for it (Ray 2.60: they try to
report to a head that is gone), and its folder stays. This file runs as a process of its own, which waits on a
pipe that only the driver holds: `done` comes through it when the driver ended Ray itself; if it just breaks, the
driver is gone. Each process to be ended is named by number and start time, so that a number in use again is left
alone.

It runs as a script with an isolated interpreter (some 10 ms to start) and must import nothing of ours.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

DONE = "done"


class Reaper:
    """The driver's side."""

    def __init__(self, folder: str) -> None:
        """Start the process; `folder` will be removed with the instance."""
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # the Ctrl-C of a terminal goes to a whole process group
            text=True,
        )

    def watch_children(self) -> None:
        """Name all processes below this one; to be called again when there are more."""
        lines = [
            f"{pid} {started}\n" for pid, started in descendants(os.getpid()) if pid != self._process.pid
        ]
        self._tell("".join(lines))

    def dismiss(self) -> None:
        """All is ended in good order."""
        self._tell(f"{DONE}\n")
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._process.wait()

    def _tell(self, text: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it was killed: then there is only Ray's own way
            self._process.stdin.write(text)
            self._process.stdin.flush()


def descendants(root: int) -> list[tuple[int, str]]:
    """(number, start time) of every process below `root`."""
    children: dict[int, list[tuple[int, str]]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            found = _stat(int(entry.name))
            if found is not None:
                children.setdefault(found[0], []).append((int(entry.name), found[1]))
    below: list[tuple[int, str]] = []
    ahead = [root]
    while ahead:
        here = children.get(ahead.pop(), [])
        below += here
        ahead += [pid for pid, _ in here]
    return below


def _stat(pid: int) -> tuple[int, str] | None:
    """(parent, start time) of a process, from /proc/PID/stat (proc(5), fields 4 and 22)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text[text.rindex(")") + 2 :].split()
    return int(fields[1]), fields[19]


def main(folder: str) -> None:
    """The process's side."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    watched: list[tuple[int, str]] = []
    for line in sys.stdin:
        if line.strip() == DONE:
            return
        pid, started = line.split()
        watched.append((int(pid), started))
    for pid, started in watched:
        found = _stat(pid)
        if found is not None and found[1] == started:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1])
