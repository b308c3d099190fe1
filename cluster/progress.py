"""What a run says on standard error while it goes: what it waits for, how far it is, how fast.

On a terminal one line is rewritten; elsewhere a line appears now and then. Wall-clock time is used for the
display alone.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TextIO

LIVE_EVERY_S = 0.25
PLAIN_EVERY_S = 10.0
_SCALES = (("s", 10**9), ("ms", 10**6), ("us", 10**3))


def span(ns: int) -> str:
    """A time as people write it: `12.5 ms`."""
    for unit, scale in _SCALES:
        if ns >= scale:
            return f"{ns / scale:.4g} {unit}"
    return f"{ns} ns"


def rate(count: float) -> str:
    """A count with a decimal prefix: `1.25 M`."""
    for prefix, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= scale:
            return f"{count / scale:.3g} {prefix}"
    return f"{count:.0f} "


class Display:
    """The lines of one run."""

    def __init__(self, *, quiet: bool = False, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self.quiet = quiet
        self.live = self.stream.isatty()
        self.every_s = LIVE_EVERY_S if self.live else PLAIN_EVERY_S
        self._live_width = 0
        #: Wall clock and accesses when the run started to move, and wall clock of the last line.
        self._began: tuple[float, int] | None = None
        self._last_s = 0.0

    def say(self, text: str) -> None:
        """A line of its own, whatever else is on display."""
        if not self.quiet:
            self.clear()
            print(text, file=self.stream, flush=True)

    def waiting(self, text: str) -> None:
        """What the run waits for before it moves."""
        if self.live:
            self._rewrite(f"{text} ...")
        else:
            self.say(f"{text} ...")

    def begin(self, accesses: int) -> None:
        """The run moves from here; `accesses` were made before, in a run that this one goes on with."""
        self._began = (time.monotonic(), accesses)
        self._last_s = self._began[0]

    def update(self, virtual_ns: int, total_ns: int, accesses: int) -> None:
        """How far the run is, if it is time to say so."""
        now_s = time.monotonic()
        if self.quiet or self._began is None or now_s - self._last_s < self.every_s:
            return
        self._last_s = now_s
        since_s, before = self._began
        per_s = (accesses - before) / (now_s - since_s)
        share = 100 * virtual_ns // total_ns
        line = f"{span(virtual_ns)} of at most {span(total_ns)} ({share} %), {rate(per_s)}accesses/s"
        if self.live:
            self._rewrite(line)
        else:
            print(line, file=self.stream, flush=True)

    def clear(self) -> None:
        """Take the live line away."""
        if self.live and self._live_width:
            self._rewrite("")
            self._live_width = 0

    def _rewrite(self, line: str) -> None:
        if not self.quiet:
            print(f"\r{line:<{self._live_width}}\r{line}", end="", file=self.stream, flush=True)
            self._live_width = len(line)


def compiled_before() -> bool:
    """Whether numba has compiled something of privmem on this machine and kept it."""
    root = Path(__file__).resolve().parent.parent
    return any((root / "nodeagent").rglob("*.nbi"))
