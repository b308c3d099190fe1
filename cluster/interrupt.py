"""SIGINT and SIGTERM during a run: stop at the end of the epoch if that is near, else at once; never while
cleaning up.

Handlers are Python's, so they run in the main thread between two steps of the interpreter.
"""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any

#: How long a run may take to come to the end of its epoch after it was asked to stop.
PATIENCE_S = 3.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """Handles the signals between entering and leaving. Three phases: at once, at the epoch's end, not now."""

    def __init__(self) -> None:
        #: Somebody asked to stop.
        self.asked = False
        self._patient = False
        self._deaf = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        for number in (*_SIGNALS, signal.SIGALRM):
            self._before[number] = signal.getsignal(number)
        self.install()
        return self

    def __exit__(self, kind: type[BaseException] | None, _e: object, _t: TracebackType | None) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def install(self) -> None:
        """Take the signals; to be called again after others may have taken them (Ray does, for SIGTERM)."""
        for number in _SIGNALS:
            signal.signal(number, self._stop)
        signal.signal(signal.SIGALRM, self._patience_over)

    def patient(self) -> None:
        """From now on a signal waits for the end of the epoch, and a second one does not."""
        self._patient = True

    def deaf(self) -> None:
        """From now on results are written or processes ended: signals are taken note of, and no more."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        self._deaf = True

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        again, self.asked = self.asked, True
        if self._deaf:
            return
        if again or not self._patient:
            raise KeyboardInterrupt
        signal.setitimer(signal.ITIMER_REAL, PATIENCE_S)

    def _patience_over(self, _number: int, _frame: FrameType | None) -> None:
        if not self._deaf:
            raise KeyboardInterrupt
