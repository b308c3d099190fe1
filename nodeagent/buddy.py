"""The buddy allocator of one zone or device: a thin face over `_buddy_kernel`, which says what it follows.

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
    7: "two free blocks that make a larger one are not merged",
}


class Buddy:
    """Free blocks of orders 0 to `nr_orders` - 1 over frames [start, end).

    Arrays, indexed by frame number: `next_`, `prev` int32, links at the head of each free block;
    `block_order` int8, the order there, -1 elsewhere. A host passes its whole frame table, which all its
    zones share (a frame is on a free list or on an LRU list, never on both); without them the Buddy makes its
    own. `free_head` int32 and `nr_free` int64 have an entry an order. The arrays are changed in place and
    never replaced, so compiled code may keep them.

    Invariants: every free frame is in exactly one block; a block of order k starts at a multiple of 2**k from
    `start`; two free buddies inside [start, end) are one block. Frames become free by `add_range` alone and
    stop being the Buddy's by `remove_range` alone. Which allocated frame belongs to whom the caller knows.
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
        self.nr_orders = nr_orders
        #: Kept beside the lists, for it is asked on every allocation.
        self.free_pages = 0
        self._arrays = (self.free_head, self.nr_free, self.next_, self.prev, self.block_order)

    def alloc(self, order: int = 0) -> int:
        """First frame of a free block of 2**order frames, or -1."""
        if order < 0:
            raise InvariantError(f"a block of order {order} was asked for")
        block = int(kernel.alloc_block(order, *self._arrays))
        if block >= 0:
            self.free_pages -= 1 << order
        return block

    def free(self, frame: int, order: int = 0) -> None:
        """Give back a block that `alloc` gave, or an aligned part of one. Raises InvariantError, with nothing
        changed, for one that is not of this zone, not aligned, or free in any part.
        """
        if not 0 <= order < self.nr_orders:
            raise InvariantError(f"a block of order {order} was freed")
        size = 1 << order
        if not self.start <= frame <= self.end - size or (frame - self.start) & (size - 1):
            raise InvariantError(f"block {frame} of order {order} is not of [{self.start}, {self.end})")
        if not kernel.free_block(frame, order, self.start, self.end, False, *self._arrays):
            raise InvariantError(f"block {frame} of order {order} is freed twice")
        self.free_pages += size

    def alloc_bulk(self, nr: int) -> np.ndarray:
        """Up to `nr` single frames, int32: what `nr` calls of `alloc(0)` give, in that order."""
        if nr < 0:
            raise InvariantError(f"{nr} frames were asked for")
        out = np.empty(min(nr, self.free_pages), dtype=np.int32)
        done = int(kernel.alloc_bulk(len(out), out, *self._arrays))
        self.free_pages -= done
        return out[:done]

    def free_bulk(self, frames: np.ndarray) -> None:
        """Give back single frames (int32), as `free` one by one in this order. Raises InvariantError at the
        first that is not of this zone or free already; those before it are free then.
        """
        frames = np.ascontiguousarray(frames, dtype=np.int32)
        done = int(kernel.free_bulk(frames, len(frames), self.start, self.end, *self._arrays))
        self.free_pages += done
        if done < len(frames):
            frame = int(frames[done])
            if not self.start <= frame < self.end:
                raise InvariantError(f"frame {frame} is not of [{self.start}, {self.end})")
            raise InvariantError(f"frame {frame}, or one of the run that it begins, is freed twice")

    def add_range(self, first: int, nr: int) -> None:
        """Frames that were not there before become free (memory comes online); they are allocated after what
        was free before, from low to high. Raises InvariantError, with nothing changed, for a range that is
        out of bounds or free in any part.
        """
        self._bounds(first, nr)
        if not kernel.add_range(first, nr, self.start, self.end, *self._arrays):
            raise InvariantError(f"some of the frames [{first}, {first + nr}) are free already")
        self.free_pages += nr

    def remove_range(self, first: int, nr: int) -> bool:
        """Take frames away if all of them are free (memory goes offline, a contiguous range is taken); False,
        and no change, otherwise. Raises InvariantError for a range that is out of bounds.
        """
        self._bounds(first, nr)
        if not kernel.remove_range(first, nr, self.start, *self._arrays):
            return False
        self.free_pages -= nr
        return True

    def count_free(self, first: int, nr: int) -> int:
        """How many of the frames [first, first + nr) are free."""
        self._bounds(first, nr)
        return int(kernel.count_free(first, nr, self.start, self.nr_orders, self.block_order))

    def is_range_free(self, first: int, nr: int) -> bool:
        """Whether all of the frames [first, first + nr) are free."""
        return self.count_free(first, nr) == nr

    def _bounds(self, first: int, nr: int) -> None:
        if not self.start <= first <= first + nr <= self.end:
            raise InvariantError(f"frames [{first}, {first + nr}) are not of [{self.start}, {self.end})")

    def free_blocks_by_order(self) -> list[int]:
        """As a line of /proc/buddyinfo."""
        return [int(n) for n in self.nr_free]

    def validate(self) -> None:
        """Raise InvariantError unless lists, heads and counts agree, no two blocks overlap, and no two could
        be one.
        """
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
        """The whole state, for a Buddy that owns its arrays. Links that mean nothing any more read -1, so
        that equal states give equal snapshots.
        """
        heads = self.block_order != kernel.NIL
        arrays = {
            "next": np.where(heads, self.next_, np.int32(kernel.NIL)),
            "prev": np.where(heads, self.prev, np.int32(kernel.NIL)),
            "block_order": self.block_order.copy(),
        }
        return self.lists_snapshot() | arrays

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Inverse of `snapshot`."""
        self.lists_restore(snapshot)
        self.next_[:] = snapshot["next"]
        self.prev[:] = snapshot["prev"]
        self.block_order[:] = snapshot["block_order"]
