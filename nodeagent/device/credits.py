"""How many pages each host may send to a storing device: a promise that is always kept.

A credit is counted from the physical memory that is free if no page compresses, so a page within it always
fits, and a host that has none left keeps its page. Several hosts share the room evenly. A promise is never
taken back, not even for a fairer share: the host may have used it already, in a message that is on its way
(as a TCP window's right edge never moves left). So

    sum of the promises <= room of the device        at all times

because a page that arrives lowers both by one, or the room by less, and pages that are freed only raise the
room. A device that has a place of its own for every page of its address range needs no promises: there
credits are without limit.
"""

from __future__ import annotations

from typing import Any

from privmem.scheduler.abi import PAGE_SIZE
from privmem.scheduler.errors import InvariantError, ProtocolError

#: Credit where memory cannot run out: more than any device has pages (CAPACITY_MAX is 4 TiB).
UNLIMITED_PAGES = 1 << 30


def is_limited(spec: dict[str, Any]) -> bool:
    """Whether a device's spec lets its physical memory run out before its address range does."""
    return spec["compression"] is not None or spec["physical_bytes"] < spec["capacity_pages"] * PAGE_SIZE


class Credits:
    """Promises to each host, in pages, and the pages taken from it that it was not told about."""

    def __init__(self, hosts: list[str], room_pages: int, limited: bool) -> None:
        self.limited = limited
        self.promised = dict.fromkeys(sorted(hosts), 0 if limited else UNLIMITED_PAGES)
        self.unacknowledged = dict.fromkeys(sorted(hosts), 0)
        #: Hosts whose promise has grown since they were told.
        self.grown = dict.fromkeys(sorted(hosts), False)
        self.share_out(room_pages)
        self.grown = dict.fromkeys(self.grown, False)  # hosts know their first promise from their spec

    def take(self, host: str, nr_pages: int) -> None:
        """`nr_pages` came in from a host. Raises ProtocolError when it had not been promised them."""
        if nr_pages > self.promised.get(host, 0):
            raise ProtocolError(f"{host} stores {nr_pages} pages, its credit is {self.promised.get(host, 0)}")
        if self.limited:
            self.promised[host] -= nr_pages
        self.unacknowledged[host] += nr_pages

    def share_out(self, room_pages: int) -> None:
        """Promise what is not promised yet. It goes to those who have least; what cannot be split goes to the
        first names.
        """
        if not self.limited:
            return
        spare = room_pages - sum(self.promised.values())
        if spare < 0:
            raise InvariantError(f"{sum(self.promised.values())} pages promised, room for {room_pages}")
        poorest = sorted(self.promised, key=lambda host: (self.promised[host], host))
        level, members = 0, 0
        for members, host in enumerate(poorest, start=1):
            # Raise the `members` poorest to the level of the next one, or as far as it goes.
            above = self.promised[poorest[members]] if members < len(poorest) else None
            level = self.promised[host] if members == 1 else level
            if above is None or (above - level) * members >= spare:
                break
            spare -= (above - level) * members
            level = above
        each, over = divmod(spare, members) if members else (0, 0)
        for number, host in enumerate(sorted(poorest[:members])):
            new = level + each + (number < over)
            self.grown[host] |= new > self.promised[host]
            self.promised[host] = new

    def due(self, with_grown: bool) -> list[tuple[str, int, int]]:
        """(host, pages taken, promise) of each host that is to be told: those whose pages were taken, and, where
        asked for, those whose promise has grown. They count as told afterwards.
        """
        told = []
        for host, count in self.unacknowledged.items():
            if count or (with_grown and self.grown[host]):
                told.append((host, count, self.promised[host]))
                self.unacknowledged[host] = 0
                self.grown[host] = False
        return told

    def snapshot(self) -> dict[str, Any]:
        """The whole state."""
        return {
            "promised": dict(self.promised),
            "unacknowledged": dict(self.unacknowledged),
            "grown": dict(self.grown),
        }

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Inverse of `snapshot`."""
        self.promised = dict(snapshot["promised"])
        self.unacknowledged = dict(snapshot["unacknowledged"])
        self.grown = dict(snapshot["grown"])

    def validate(self, room_pages: int) -> None:
        """Raise InvariantError unless all promises can be kept."""
        if self.limited and sum(self.promised.values()) > room_pages:
            raise InvariantError(f"{sum(self.promised.values())} pages promised, room for {room_pages}")
