"""Physical memory of a compressed device, handed out in granules.

A page's granules need not lie side by side: they form a chain, as in a device with an indirection table, so
that memory does not fragment and the free count alone says what still fits. Left out: the memory that the
links themselves take on a real device.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from privmem.nodeagent.device import _granule_kernel as kernel
from privmem.nodeagent.device._granule_kernel import NIL
from privmem.scheduler.errors import InvariantError


class Granules:
    """`nr_granules` granules of `granule_bytes`, numbered from 1; what is in them is kept here too.

    next_   int32 or int64 [nr_granules + 1], link of each granule, NIL at a chain's end; grows by need
    memory  uint8 [rows, granule_bytes], row g holds granule g; grows by need, rows never written are zeros
    """

    def __init__(self, nr_granules: int, granule_bytes: int) -> None:
        self.nr_granules = nr_granules
        self.granule_bytes = granule_bytes
        self._state = np.array([NIL, nr_granules, 0], dtype=np.int64)
        self._next = np.zeros(nr_granules + 1, dtype=np.int32 if nr_granules < 1 << 31 else np.int64)
        self._memory = np.zeros((0, granule_bytes), dtype=np.uint8)

    @property
    def free(self) -> int:
        """Free granules."""
        return int(self._state[1])

    @property
    def used_bytes(self) -> int:
        """Physical memory in use."""
        return (self.nr_granules - self.free) * self.granule_bytes

    def take(self, nrs: np.ndarray) -> np.ndarray:
        """A chain of nrs[i] granules each: its first one, int64, NIL for 0. Raises InvariantError when there are
        too few: callers hold a credit before they store.
        """
        wanted = int(nrs.sum())
        if wanted > self.free or (len(nrs) and nrs.min() < 0):
            raise InvariantError(f"{wanted} granules asked for, {self.free} free")
        firsts = np.empty(len(nrs), dtype=np.int64)
        kernel.take(self._state, self._next, nrs, firsts)
        return firsts

    def give(self, firsts: np.ndarray) -> int:
        """Free the chains that start at `firsts` (NIL is none); returns how many granules they had."""
        return int(kernel.give(self._state, self._next, firsts))

    def write(self, firsts: np.ndarray, lengths: np.ndarray, data: bytes) -> None:
        """Pages into the chains that start at `firsts`: lengths[i] (int64[n, blocks]) are the blocks of page i,
        `data` all blocks one after the other. Each starts on a granule; what is left of its last one is zeroed.
        """
        self._reach(int(self._state[2]))
        if not kernel.scatter(self._next, self._memory, firsts, lengths, np.frombuffer(data, dtype=np.uint8)):
            raise InvariantError("a page has more blocks than its chain holds")

    def read(self, firsts: np.ndarray, lengths: np.ndarray) -> bytes:
        """What `write` was given."""
        data = np.empty(int(lengths.sum()), dtype=np.uint8)
        if not kernel.gather(self._next, self._memory, firsts, lengths, data):
            raise InvariantError("a page has more blocks than its chain holds")
        return data.tobytes()

    def wipe(self, firsts: np.ndarray) -> None:
        """Zero the chains at `firsts`, which were written to."""
        kernel.wipe(self._next, self._memory, firsts)

    def chains(self, firsts: np.ndarray) -> np.ndarray:
        """The granules of all these chains, one after the other, int64. Raises InvariantError when there are more
        than are in use.
        """
        out = np.empty(self.nr_granules - self.free, dtype=np.int64)
        nr = int(kernel.walk_all(self._next, firsts, out))
        if nr < 0:
            raise InvariantError(f"chains have more than the {len(out)} granules that are in use")
        return out[:nr]

    def rows(self, granules: np.ndarray) -> np.ndarray:
        """What granules that were written to hold, uint8[n, granule_bytes]."""
        return self._memory[granules]

    def _reach(self, granule: int) -> None:
        have = len(self._memory)
        if granule >= have:
            want = min(max(granule + 1, 2 * have), self.nr_granules + 1)
            memory = np.zeros((want, self.granule_bytes), dtype=np.uint8)
            memory[:have] = self._memory
            self._memory = memory

    def validate(self, firsts: np.ndarray) -> None:
        """Raise InvariantError unless the free chain and the chains at `firsts` hold every used granule once."""
        head, free, used = self._state.tolist()
        uses = np.zeros(used + 1, dtype=np.uint8)
        for first in firsts.tolist():
            if not kernel.count_uses(self._next, first, used, uses):
                raise InvariantError(f"a granule of the chain at {first} is used twice or does not exist")
        held = int(uses.sum())
        if not kernel.count_uses(self._next, head, used, uses):
            raise InvariantError("a free granule is in use, or free twice")
        if int(uses.sum()) != used or held + free != self.nr_granules:
            raise InvariantError(f"{held} granules held, {free} counted free, of {self.nr_granules}")

    def snapshot(self) -> dict[str, Any]:
        """Who has which granule; what is in them is the owner's to keep."""
        return {"state": self._state.copy(), "next": self._next[: int(self._state[2]) + 1].copy()}

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Inverse of `snapshot`; all memory is zeros afterwards."""
        self._state[:] = snapshot["state"]
        self._next = np.zeros_like(self._next)
        self._next[: len(snapshot["next"])] = snapshot["next"]
        self._memory = np.zeros((0, self.granule_bytes), dtype=np.uint8)

    def refill(self, granules: np.ndarray, rows: np.ndarray) -> None:
        """Put back what `rows` gave."""
        if len(granules):
            self._reach(int(granules.max()))
            self._memory[granules] = rows
