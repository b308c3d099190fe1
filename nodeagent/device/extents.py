"""Extents: which parts of a device's address range which host holds.

A pooled device grants one contiguous, aligned, power-of-two run of extents where there is one, else as few such
runs as make up what was asked for (a dynamic capacity device of CXL 3.0 may answer with a list); a dedicated one
is granted whole at boot. Whole extents of a run may come back alone. Free space is a buddy whose smallest block is
one extent, so that neighbours which come back merge again. Fresh space is granted from low to high addresses; what
came back is granted first. Left out: tags, and extents that hosts share.
"""

from __future__ import annotations

import errno
from typing import Any

import numpy as np

from privmem.nodeagent.buddy import Buddy
from privmem.scheduler.errors import InvariantError


class ExtentAllocator:
    """Extents over `capacity_pages` pages in units of `extent_pages`; what is left of a capacity that is no
    multiple is never granted.

    Addresses are in pages from the device's start. A request that cannot be met is answered with a negative
    errno, in line with the kernel; a host is only ever a name here.
    """

    def __init__(self, capacity_pages: int, extent_pages: int) -> None:
        if not 0 < extent_pages <= capacity_pages:
            raise InvariantError(f"{capacity_pages} pages in extents of {extent_pages} make no device")
        self.extent_pages = extent_pages
        units = capacity_pages // extent_pages
        self.buddy = Buddy(0, units, nr_orders=units.bit_length())
        self.buddy.add_range(0, units)
        #: First page -> (host, pages), in the order of granting.
        self.held: dict[int, tuple[str, int]] = {}
        self._forget()

    def _forget(self) -> None:
        #: Names of hosts, in the order of their first grant; for each unit, place of its host in them, or -1.
        self._hosts: list[str] = []
        self._owner = np.full(self.buddy.end, -1, dtype=np.int32)
        self._granted_pages: dict[str, int] = {}

    def _note(self, host: str, start: int, nr_pages: int) -> None:
        if host not in self._granted_pages:
            self._hosts.append(host)
            self._granted_pages[host] = 0
        self.held[start] = (host, nr_pages)
        self._granted_pages[host] += nr_pages
        first = start // self.extent_pages
        self._owner[first : first + nr_pages // self.extent_pages] = self._hosts.index(host)

    def grant(self, host: str, nr_pages: int) -> tuple[int, int] | int:
        """(first page, pages) of a new extent: `nr_pages` rounded up to a power of two of units, aligned to
        its own size; -EINVAL for a size that is none, -ENOMEM when there is no such run.
        """
        if nr_pages <= 0:
            return -errno.EINVAL
        order = (-(-nr_pages // self.extent_pages) - 1).bit_length()
        first = self.buddy.alloc(order)
        if first < 0:
            return -errno.ENOMEM
        extent = (first * self.extent_pages, self.extent_pages << order)
        self._note(host, *extent)
        return extent

    def grant_pieces(self, host: str, nr_pages: int) -> list[tuple[int, int]] | int:
        """`nr_pages`, rounded up to whole extents, in few pieces, the largest first: [(first page, pages)];
        -EINVAL for a size that is none, -ENOMEM when less is free.
        """
        units = -(-nr_pages // self.extent_pages)
        if units <= 0:
            return -errno.EINVAL
        if units > self.buddy.free_pages:
            return -errno.ENOMEM
        pieces: list[tuple[int, int]] = []
        order = units.bit_length() - 1
        while units:
            order = min(order, units.bit_length() - 1)
            first = self.buddy.alloc(order)
            if first < 0:
                order -= 1
                continue
            piece = (first * self.extent_pages, self.extent_pages << order)
            self._note(host, *piece)
            pieces.append(piece)
            units -= 1 << order
        return pieces

    def grant_all(self, host: str) -> tuple[int, int] | int:
        """The whole device as one extent, whatever its size (a dedicated device, at boot); -EBUSY when some
        of it is held.
        """
        if not self.buddy.remove_range(0, self.buddy.end):
            return -errno.EBUSY
        extent = (0, self.buddy.end * self.extent_pages)
        self._note(host, *extent)
        return extent

    def holds(self, host: str, start: int, nr_pages: int) -> bool:
        """Whether a host holds whole extents [start, start + nr_pages), all in one piece."""
        whole = self._piece_of(start)
        if whole < 0 or nr_pages <= 0 or start % self.extent_pages or nr_pages % self.extent_pages:
            return False
        who, pages = self.held[whole]
        return who == host and start + nr_pages <= whole + pages

    def _piece_of(self, page: int) -> int:
        """First page of the piece that a page is in, or -1."""
        if page in self.held:
            return page
        return next((start for start, (_, nr) in self.held.items() if start <= page < start + nr), -1)

    def release(self, host: str, start: int, nr_pages: int) -> int:
        """Take back a piece, or whole extents of one: 0, or -EINVAL when the host does not hold them."""
        if not self.holds(host, start, nr_pages):
            return -errno.EINVAL
        whole = self._piece_of(start)
        _, pages = self.held.pop(whole)
        if start > whole:
            self.held[whole] = (host, start - whole)
        if start + nr_pages < whole + pages:
            self.held[start + nr_pages] = (host, whole + pages - start - nr_pages)
        self._granted_pages[host] -= nr_pages
        first, units = start // self.extent_pages, nr_pages // self.extent_pages
        self._owner[first : first + units] = -1
        if units & (units - 1) or first % units:
            self.buddy.add_range(first, units)
        else:
            self.buddy.free(first, units.bit_length() - 1)
        return 0

    def owner_of(self, page: int) -> str | None:
        """The host that holds a page; None for one that is free, never granted or behind the device."""
        unit = page // self.extent_pages
        if not 0 <= unit < self.buddy.end or self._owner[unit] < 0:
            return None
        return self._hosts[self._owner[unit]]

    def owns(self, host: str, pages: np.ndarray) -> bool:
        """Whether all of these pages (any integer dtype) lie in extents that the host holds."""
        if not len(pages):
            return True
        if host not in self._granted_pages:
            return False
        if int(pages.min()) < 0 or int(pages.max()) >= self.buddy.end * self.extent_pages:
            return False
        return bool((self._owner[pages // self.extent_pages] == self._hosts.index(host)).all())

    def extents(self) -> list[tuple[int, int, str]]:
        """(first page, pages, host) of what is held, ascending."""
        return [(start, nr_pages, host) for start, (host, nr_pages) in sorted(self.held.items())]

    def granted_pages(self) -> dict[str, int]:
        """Pages by host, for hosts that hold any, by name."""
        return {host: nr_pages for host, nr_pages in sorted(self._granted_pages.items()) if nr_pages}

    @property
    def free_pages(self) -> int:
        """Pages that may still be granted, in one piece or many."""
        return self.buddy.free_pages * self.extent_pages

    def validate(self) -> None:
        """Raise InvariantError unless held and free extents fill the device without overlap, and owners and
        counts equal a recount.
        """
        self.buddy.validate()
        end = 0
        owner = np.full_like(self._owner, -1)
        counted = dict.fromkeys(self._granted_pages, 0)
        for start, nr_pages, host in self.extents():
            if start < end:
                raise InvariantError(f"the extent at page {start} overlaps the one before")
            end = start + nr_pages
            if host not in counted:
                raise InvariantError(f"the extent at page {start} is held by {host}, who was granted none")
            if start % self.extent_pages or nr_pages % self.extent_pages or nr_pages <= 0:
                raise InvariantError(f"the extent at page {start} is not made of whole units")
            first, units = start // self.extent_pages, nr_pages // self.extent_pages
            if first + units > self.buddy.end or self.buddy.count_free(first, units):
                raise InvariantError(f"the extent at page {start} is free in part, or behind the device")
            owner[first : first + units] = self._hosts.index(host)
            counted[host] += nr_pages
        if counted != self._granted_pages or not np.array_equal(owner, self._owner):
            raise InvariantError("the owners of extents are not those that were noted")
        held = sum(counted.values()) // self.extent_pages
        if held + self.buddy.free_pages != self.buddy.end:
            raise InvariantError(f"{held} extents held, {self.buddy.free_pages} free, of {self.buddy.end}")

    def snapshot(self) -> dict[str, Any]:
        """The whole state; equal states give equal snapshots, whatever the order of grants."""
        return {
            "held": [[start, host, nr_pages] for start, nr_pages, host in self.extents()],
            "buddy": self.buddy.snapshot(),
        }

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Inverse of `snapshot`."""
        self.buddy.restore(snapshot["buddy"])
        self.held = {}
        self._forget()
        for start, host, nr_pages in snapshot["held"]:
            self._note(host, start, nr_pages)
