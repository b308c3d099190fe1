"""The buddy allocator of one zone or device: a thin face over `_buddy_kernel`.

Used by a host's zones, over the host's frame table, and by devices for the extents of their address range.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from privmem.nodeagent import _buddy_kernel as kernel
from privmem.scheduler.abi import MAX_ORDER
from privmem.scheduler.errors import InvariantError

_FAULTS = {
    1: "a free block is out of bounds or not aligned",
    2: "a free block's head has another order than its list",
    3: "a free list is linked wrongly",
    4: "a free list is longer or shorter than counted",
    5: "two free blocks overlap",
    6: "a frame says it heads a free block that is on no list",
}


class Buddy:
    """Free blocks of orders 0 to `nr_orders` - 1 over frames [start, end).

    Arrays, indexed by frame number: `next_`, `prev` int32, links at the head of each free block;
    `block_order` int8, the order there, -1 elsewhere. A host passes slices of nothing: its whole frame table,
    shared by all its zones (a frame is on a free list or on an LRU list, never on both). Without them the
    Buddy makes its own.
    """

    def __init__(
        self,
        start: int,
        end: int,
        next_: np.ndarray | None = None,
        prev: np.ndarray | None = None,
        block_order: np.ndarray | None = None,
        nr_orders: int = MAX_ORDER + 1,
    ) -> None:
        self.start, self.end = start, end
        self.next_ = np.full(end, kernel.NIL, dtype=np.int32) if next_ is None else next_
        self.prev = np.full(end, kernel.NIL, dtype=np.int32) if prev is None else prev
        self.block_order = np.full(end, kernel.NIL, dtype=np.int8) if block_order is None else block_order
        self.free_head = np.full(nr_orders, kernel.NIL, dtype=np.int32)
        self.nr_free = np.zeros(nr_orders, dtype=np.int64)
        #: Kept beside the lists, for it is asked on every allocation.
        self.free_pages = 0
        self._arrays = (self.free_head, self.nr_free, self.next_, self.prev, self.block_order)

    def alloc(self, order: int = 0) -> int:
        """First frame of a free block of 2**order frames, or -1."""
        block = int(kernel.alloc_block(order, *self._arrays))
        if block >= 0:
            self.free_pages -= 1 << order
        return block

    def free(self, frame: int, order: int = 0) -> None:
        """Give back a block that `alloc` gave. Raises InvariantError for one that is free or not of this
        zone.
        """
        size = 1 << order
        if not self.start <= frame <= self.end - size or (frame - self.start) & (size - 1):
            raise InvariantError(f"block {frame} of order {order} is not of [{self.start}, {self.end})")
        if kernel.block_of(frame, self.start, len(self.free_head), self.block_order) != kernel.NIL:
            raise InvariantError(f"frame {frame} is freed twice")
        kernel.free_block(frame, order, self.start, self.end, *self._arrays)
        self.free_pages += size

    def alloc_bulk(self, nr: int) -> np.ndarray:
        """Up to `nr` single frames, int32, the same as `nr` calls of `alloc(0)` would give."""
        out = np.empty(min(nr, self.free_pages), dtype=np.int32)
        done = int(kernel.alloc_bulk(len(out), out, *self._arrays))
        self.free_pages -= done
        return out[:done]

    def free_bulk(self, frames: np.ndarray) -> None:
        """Give back single frames, in this order. The caller answers for their being allocated."""
        kernel.free_bulk(frames, len(frames), self.start, self.end, *self._arrays)
        self.free_pages += len(frames)

    def add_range(self, first: int, nr: int) -> None:
        """Frames that were not there before become free (memory comes online)."""
        if not (self.start <= first and first + nr <= self.end):
            raise InvariantError(f"frames {first}..{first + nr} are not of [{self.start}, {self.end})")
        kernel.add_range(first, nr, self.start, self.end, *self._arrays)
        self.free_pages += nr

    def remove_range(self, first: int, nr: int) -> bool:
        """Take frames away for good if all of them are free (memory goes offline); False, and no change,
        otherwise.
        """
        if not kernel.remove_range(first, nr, self.start, self.end, *self._arrays):
            return False
        self.free_pages -= nr
        return True

    def free_blocks_by_order(self) -> list[int]:
        """As a line of /proc/buddyinfo."""
        return [int(n) for n in self.nr_free]

    def validate(self) -> None:
        """Raise InvariantError unless lists, heads and counts agree and no two blocks overlap."""
        fault = int(kernel.check(self.start, self.end, *self._arrays))
        if fault:
            raise InvariantError(f"buddy of [{self.start}, {self.end}): {_FAULTS[fault]}")
        counted = sum(int(n) << order for order, n in enumerate(self.nr_free))
        if counted != self.free_pages:
            raise InvariantError(
                f"buddy of [{self.start}, {self.end}): {counted} free, {self.free_pages} counted"
            )

    def lists_snapshot(self) -> dict[str, Any]:
        """State but for the frame arrays, whose owner keeps them."""
        return {
            "free_head": self.free_head.copy(),
            "nr_free": self.nr_free.copy(),
            "free_pages": self.free_pages,
        }

    def lists_restore(self, snapshot: dict[str, Any]) -> None:
        """Inverse of `lists_snapshot`."""
        self.free_head[:] = snapshot["free_head"]
        self.nr_free[:] = snapshot["nr_free"]
        self.free_pages = snapshot["free_pages"]

    def snapshot(self) -> dict[str, Any]:
        """The whole state, for a Buddy that owns its arrays."""
        arrays = {"next": self.next_.copy(), "prev": self.prev.copy(), "block_order": self.block_order.copy()}
        return self.lists_snapshot() | arrays

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Inverse of `snapshot`."""
        self.lists_restore(snapshot)
        self.next_[:] = snapshot["next"]
        self.prev[:] = snapshot["prev"]
        self.block_order[:] = snapshot["block_order"]
