"""Extents: which parts of a device's address range which host holds.

A pooled device grants contiguous, aligned, power-of-two runs of pages (dynamic capacity, CXL 3.0); a
dedicated one is granted whole at boot. Free space is a buddy whose smallest block is one extent, so that
given-back neighbours merge again.
"""

from __future__ import annotations

import errno
from typing import Any

from privmem.nodeagent.buddy import Buddy
from privmem.scheduler.errors import InvariantError


class ExtentAllocator:
    """Extents over `capacity_pages` pages in units of `extent_pages`; a capacity that is no multiple loses
    the rest.
    """

    def __init__(self, capacity_pages: int, extent_pages: int) -> None:
        if capacity_pages <= 0 or extent_pages <= 0:
            raise InvariantError(f"{capacity_pages} pages in extents of {extent_pages} make no device")
        self.extent_pages = extent_pages
        units = capacity_pages // extent_pages
        self.buddy = Buddy(0, units, nr_orders=max(1, units.bit_length()))
        self.buddy.add_range(0, units)
        #: First page -> (host, pages), ascending by first page.
        self.held: dict[int, tuple[str, int]] = {}

    def grant(self, host: str, nr_pages: int) -> tuple[int, int] | int:
        """(first page, pages) of a new extent, rounded up to a power of two of extents, or -ENOMEM, -EINVAL."""
        if nr_pages <= 0:
            return -errno.EINVAL
        units = -(-nr_pages // self.extent_pages)
        order = (units - 1).bit_length()
        if order >= len(self.buddy.free_head):
            return -errno.ENOMEM
        first = self.buddy.alloc(order)
        if first < 0:
            return -errno.ENOMEM
        start, pages = first * self.extent_pages, self.extent_pages << order
        self.held[start] = (host, pages)
        self.held = dict(sorted(self.held.items()))
        return start, pages

    def release(self, host: str, start: int, nr_pages: int) -> int:
        """Take back an extent exactly as it was granted: 0, or -EINVAL when the host does not hold that one."""
        if self.held.get(start) != (host, nr_pages):
            return -errno.EINVAL
        del self.held[start]
        self.buddy.free(start // self.extent_pages, (nr_pages // self.extent_pages).bit_length() - 1)
        return 0

    def owner_of(self, page: int) -> str | None:
        """The host that holds a page."""
        for start, (host, pages) in self.held.items():
            if start <= page < start + pages:
                return host
        return None

    def granted_pages(self) -> dict[str, int]:
        """Pages by host."""
        total: dict[str, int] = {}
        for host, pages in self.held.values():
            total[host] = total.get(host, 0) + pages
        return total

    def validate(self) -> None:
        """Raise InvariantError unless held and free extents fill the device without overlap."""
        self.buddy.validate()
        end = 0
        for start, (_, pages) in self.held.items():
            if start < end:
                raise InvariantError(f"the extent at page {start} overlaps the one before")
            end = start + pages
        held = sum(pages for _, pages in self.held.values()) // self.extent_pages
        if held + self.buddy.free_pages != self.buddy.end:
            raise InvariantError(f"{held} extents held, {self.buddy.free_pages} free, of {self.buddy.end}")

    def snapshot(self) -> dict[str, Any]:
        """The whole state."""
        return {"held": [[s, h, p] for s, (h, p) in self.held.items()], "buddy": self.buddy.snapshot()}

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Inverse of `snapshot`."""
        self.held = {start: (host, pages) for start, host, pages in snapshot["held"]}
        self.buddy.restore(snapshot["buddy"])
