"""Physical memory of a compressed device, in granules.

A page's granules need not be contiguous: they form a chain, as in a device with an indirection table, so that
memory does not fragment. Free granules form a chain as well; the one freed last is taken first.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from privmem.nodeagent.device._granule_kernel import NIL, give, take
from privmem.scheduler.errors import InvariantError


class Granules:
    """`nr_granules` granules; `next_` int32 links each to the next of its chain, NIL at the end."""

    def __init__(self, nr_granules: int) -> None:
        self.nr_granules = nr_granules
        self.next_ = np.arange(1, nr_granules + 1, dtype=np.int32)
        self.next_[-1] = NIL
        self.state = np.array([0, nr_granules], dtype=np.int64)

    @property
    def free(self) -> int:
        """Free granules."""
        return int(self.state[1])

    def take(self, nr: int) -> int:
        """A chain of `nr` granules: its first. Raises InvariantError when there are fewer: callers lease
        before.
        """
        if not 0 < nr <= self.free:
            raise InvariantError(f"{nr} granules asked for, {self.free} free")
        return int(take(self.state, self.next_, nr))

    def give(self, first: int) -> int:
        """Free the chain that starts at `first`; how many granules it had."""
        return int(give(self.state, self.next_, first))

    def chain(self, first: int) -> list[int]:
        """All granules of a chain."""
        found = []
        while first != NIL:
            found.append(first)
            first = int(self.next_[first])
        return found

    def validate(self, chains: np.ndarray) -> None:
        """Raise InvariantError unless free chain and the chains that start at `chains` hold every granule
        once.
        """
        seen = np.zeros(self.nr_granules, dtype=np.int64)
        free = self.chain(int(self.state[0]))
        np.add.at(seen, free, 1)
        for first in chains.tolist():
            np.add.at(seen, self.chain(first), 1)
        if len(free) != self.free or not (seen == 1).all():
            raise InvariantError("a granule is lost or used twice")

    def snapshot(self) -> dict[str, Any]:
        """The whole state."""
        return {"next": self.next_.copy(), "state": self.state.copy()}

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Inverse of `snapshot`."""
        self.next_[:] = snapshot["next"]
        self.state[:] = snapshot["state"]
