"""The account of one pooled device: who holds how much, what was promised, and what each host may have.

A request is granted in whole extents, as many of them as there are for this host: the quota caps what it holds,
a reservation keeps back what others were guaranteed and do not hold yet, and, where the pool is fair (it has
weights or a policy for giving back), what is free is first for those who stand below their share. What a host asked
for and did not get stays known for `WANT_NS`; it counts as its demand when shares are computed.

No kernel counterpart; the roles are those of CXL 3.0's fabric manager and dynamic capacity device.
"""

from __future__ import annotations

import errno
from typing import Any

from privmem.scheduler.errors import InvariantError, ProtocolError
from privmem.scheduler.pool_shares import Claim, Holder, give_back_order, shares

#: How long an unmet request counts as demand: ten times as long as a host waits before it asks again.
WANT_NS = 100_000_000
#: How long a host that could not give back what it was asked for is left alone.
KEPT_NS = 50_000_000


class DeviceAccount:
    """What the scheduler knows of one device. Spec: see `placement.Scheduler`."""

    def __init__(self, name: str, spec: dict[str, Any], hosts: list[str]) -> None:
        self.name = name
        self.capacity_pages = int(spec["capacity_pages"])
        self.extent_pages = int(spec["extent_pages"])
        self.pooled = bool(spec["pooled"])
        self.quota_pages: dict[str, int] = dict(spec.get("quota_pages") or {})
        self.reserved_pages: dict[str, int] = dict(spec.get("reserved_pages") or {})
        self.weights: dict[str, int] = dict(spec.get("weights") or {})
        self.give_back: str = spec.get("give_back") or "none"
        boot: dict[str, int] = dict(spec.get("granted") or {})
        for host in [*boot, *self.quota_pages, *self.reserved_pages, *self.weights]:
            if host not in hosts:
                raise ProtocolError(f"device {name} names the unknown host {host!r}")
        if sum(self.reserved_pages.values()) > self.capacity_pages:
            raise ProtocolError(f"device {name} is promised to more than it has")
        self.boot_pages = sum(boot.values())
        #: Hosts that may ask: all for a pooled device, else those that have a share from the start.
        self.members = (
            list(hosts) if self.pooled else [h for h in hosts if h in boot or h in self.quota_pages]
        )
        self.granted = {host: int(boot.get(host, 0)) for host in self.members}
        #: Admitted, not yet answered by the device: [host, nid, pages], in the order of admission.
        self.promised: list[list[Any]] = []
        self.refused = dict.fromkeys(hosts, 0)
        #: Unmet requests: pages, and until when they count.
        self.wants: dict[str, list[int]] = {}
        #: Pages that a host was asked to give back and has not answered for.
        self.asked_back = dict.fromkeys(self.members, 0)
        #: Not asked again before this time.
        self.left_alone_until_ns = dict.fromkeys(self.members, 0)
        #: Accesses to its extents in the last epoch that a host told of.
        self.accesses = dict.fromkeys(self.members, 0)
        self.asked_last = ""
        self.peak_pages = dict(self.granted)
        self.peak_total_pages = self.boot_pages
        self.admitted_pages = self.confirmed_pages = self.failed_pages = self.released_pages = 0
        self.partial_grants = self.reclaims = self.reclaimed_pages = self.kept_pages = self.lost_pages = 0

    @property
    def fair(self) -> bool:
        """Whether shares count, or only who comes first."""
        return bool(self.weights) or self.give_back != "none"

    @property
    def promised_pages(self) -> int:
        """Pages of requests that the device has not answered yet."""
        return sum(int(pages) for _, _, pages in self.promised)

    @property
    def free_pages(self) -> int:
        """Pages that are nobody's."""
        return self.capacity_pages - sum(self.granted.values()) - self.promised_pages

    def held_pages(self, host: str) -> int:
        """What a host has or was promised."""
        return self.granted[host] + sum(int(pages) for h, _, pages in self.promised if h == host)

    def round_up(self, nr_pages: int) -> int:
        """Whole extents that hold `nr_pages`."""
        return -(-nr_pages // self.extent_pages) * self.extent_pages

    def _round_down(self, nr_pages: int) -> int:
        return max(0, nr_pages) // self.extent_pages * self.extent_pages

    # -- shares

    def entitled_pages(self) -> dict[str, int]:
        """The share of each member, by what all hold and want now. Without fairness: what it holds."""
        held = {host: self.held_pages(host) for host in self.members}
        if not self.fair:
            return held
        claims = {
            host: Claim(
                (held[host] + self.wants.get(host, [0])[0]) // self.extent_pages,
                self.reserved_pages.get(host, 0) // self.extent_pages,
                self.weights.get(host, 1),
            )
            for host in self.members
        }
        found = shares(claims, self.capacity_pages // self.extent_pages)
        return {host: units * self.extent_pages for host, units in found.items()}

    def _room_pages(self, host: str, held: int) -> int:
        """What is free for a host: not what others were guaranteed, nor, if it is fair, what others wait for."""
        room = self.free_pages
        others = [other for other in self.members if other != host]
        for other in others:
            room -= max(0, self.reserved_pages.get(other, 0) - self.held_pages(other))
        if not self.fair:
            return room
        entitled = self.entitled_pages()
        owed = sum(
            max(0, entitled[other] - max(self.held_pages(other), self.reserved_pages.get(other, 0)))
            for other in others
        )
        return min(room, max(entitled[host] - held, room - owed))

    def admit(self, host: str, nid: int, nr_pages: int, now_ns: int) -> int:
        """Promise pages to a host: how many, in whole extents and perhaps fewer than it asked for, or a negative
        errno.
        """
        if host not in self.granted:
            return -errno.EPERM
        if nr_pages <= 0:
            return -errno.EINVAL
        self.wants = {h: want for h, want in self.wants.items() if want[1] > now_ns and h != host}
        held = self.held_pages(host)
        allowed = self._round_down(self.quota_pages.get(host, self.capacity_pages) - held)
        if not allowed:
            return -errno.EDQUOT
        asked = min(nr_pages, allowed)
        self.wants[host] = [asked, now_ns + WANT_NS]
        pages = min(asked, self._round_down(self._room_pages(host, held)))
        if pages == asked:
            del self.wants[host]
        else:
            self.wants[host][0] -= pages
        if not pages:
            return -errno.ENOMEM
        self.partial_grants += pages < nr_pages
        self.promised.append([host, nid, pages])
        self.admitted_pages += pages
        return pages

    def ask_back(self, now_ns: int) -> list[tuple[str, int]]:
        """Who is to give back how many pages, so that those below their share can have it."""
        if self.give_back == "none" or not self.wants:
            return []
        entitled = self.entitled_pages()
        held = {host: self.held_pages(host) for host in self.members}
        owed = sum(max(0, entitled[host] - held[host]) for host in self.wants)
        kept_back = sum(
            max(0, self.reserved_pages.get(host, 0) - max(held[host], entitled[host]))
            for host in self.members
        )
        needed = owed + kept_back - self.free_pages - sum(self.asked_back.values())
        holders = [
            Holder(host, held[host], over, self.weights.get(host, 1), self.accesses[host])
            for host in self.members
            if (over := self.granted[host] - entitled[host] - self.asked_back[host]) > 0
            and now_ns >= self.left_alone_until_ns[host]
        ]
        asked: list[tuple[str, int]] = []
        for holder in give_back_order(self.give_back, holders, self.asked_last):
            pages = min(holder.over, self.round_up(max(0, needed)))
            if pages <= 0:
                break
            needed -= pages
            self.note_asked(holder.host, pages)
            asked.append((holder.host, pages))
            self.asked_last = holder.host
        return asked

    # -- what happened

    def note_asked(self, host: str, pages: int) -> None:
        """A host was asked, or forced, to give back."""
        self.asked_back[host] += pages
        self.reclaims += 1

    def answered(self, host: str, asked: int, released: int, lost: int, now_ns: int) -> None:
        """A host gave back what it could; the pages themselves were booked before."""
        if self.asked_back[host] < asked:
            raise ProtocolError(
                f"{host} answers for {asked} pages of {self.name}, more than it was asked for"
            )
        self.asked_back[host] -= asked
        self.reclaimed_pages += released
        self.kept_pages += max(0, asked - released)
        self.lost_pages += lost
        if released < asked:
            self.left_alone_until_ns[host] = now_ns + KEPT_NS

    def confirm(self, host: str, nid: int, pages: int, more_pages: int) -> None:
        """The device granted a piece of the oldest promise to this host and node; `more_pages` are to come."""
        position = self._position(host, nid)
        if int(self.promised[position][2]) != pages + more_pages:
            raise ProtocolError(f"{self.name} granted {pages} pages, not those promised")
        self.promised[position][2] = more_pages
        if not more_pages:
            del self.promised[position]
        self.confirmed_pages += pages
        self.granted[host] += pages
        self.peak_pages[host] = max(self.peak_pages[host], self.granted[host])
        self.peak_total_pages = max(self.peak_total_pages, sum(self.granted.values()))

    def fail(self, host: str, nid: int) -> None:
        """The device refused what was promised."""
        self.failed_pages += int(self.promised.pop(self._position(host, nid))[2])
        self.refused[host] += 1

    def release(self, host: str, pages: int) -> None:
        """A host gave pages back."""
        if self.granted.get(host, 0) < pages:
            raise ProtocolError(f"{host} gave back {pages} pages of {self.name}, more than it holds")
        self.granted[host] -= pages
        self.released_pages += pages

    def _position(self, host: str, nid: int) -> int:
        for position, (promised_host, promised_nid, _) in enumerate(self.promised):
            if (promised_host, promised_nid) == (host, nid):
                return position
        raise ProtocolError(f"{self.name} answered {host} node {nid}, to whom nothing was promised")

    # -- for results

    def summary(self) -> dict[str, Any]:
        """What hosts hold, were refused, and what sharing saved: the sum of the hosts' peaks, which devices of
        their own would have needed, against the peak of the sum.
        """
        apart = sum(self.peak_pages.values())
        return {
            "capacity_pages": self.capacity_pages,
            "granted_pages": dict(self.granted),
            "granted_since_boot_pages": self.confirmed_pages,
            "released_pages": self.released_pages,
            "refused": dict(self.refused),
            "entitled_pages": self.entitled_pages(),
            "unallocated_pages": self.free_pages,
            "partial_grants": self.partial_grants,
            "reclaims": self.reclaims,
            "reclaimed_pages": self.reclaimed_pages,
            "kept_pages": self.kept_pages,
            "lost_pages": self.lost_pages,
            "peak_pages": dict(self.peak_pages),
            "peak_total_pages": self.peak_total_pages,
            "saved_pages": apart - self.peak_total_pages,
        }

    def validate(self) -> None:
        """Raise InvariantError unless the sums agree with the pages counted on the way."""
        granted, promised = sum(self.granted.values()), self.promised_pages
        if granted != self.boot_pages + self.confirmed_pages - self.released_pages:
            raise InvariantError(f"{self.name}: {granted} pages granted, but the counters say otherwise")
        if promised != self.admitted_pages - self.confirmed_pages - self.failed_pages:
            raise InvariantError(f"{self.name}: {promised} pages promised, but the counters say otherwise")
        if min(self.granted.values(), default=0) < 0 or granted + promised > self.capacity_pages:
            raise InvariantError(f"{self.name}: {granted} + {promised} pages of {self.capacity_pages}")
        for host, quota in self.quota_pages.items():
            if self.granted[host] > quota:
                raise InvariantError(f"{self.name}: {host} holds {self.granted[host]} of its {quota} pages")
        unfilled = sum(max(0, pages - self.held_pages(h)) for h, pages in self.reserved_pages.items())
        if unfilled > self.free_pages:
            raise InvariantError(f"{self.name}: {unfilled} pages are guaranteed, {self.free_pages} are free")
        if min(self.asked_back.values(), default=0) < 0:
            raise InvariantError(f"{self.name}: more answers than questions")
        if sum(self.entitled_pages().values()) > self.capacity_pages:
            raise InvariantError(f"{self.name}: the shares are more than there is")

    _NUMBERS = (
        *("admitted_pages", "confirmed_pages", "failed_pages", "released_pages"),
        *("partial_grants", "reclaims", "reclaimed_pages", "kept_pages", "lost_pages"),
        *("peak_total_pages", "asked_last"),
    )
    _BY_HOST = ("granted", "refused", "asked_back", "left_alone_until_ns", "accesses", "peak_pages")

    def snapshot(self) -> dict[str, Any]:
        """The account as plain data."""
        numbers = {name: getattr(self, name) for name in self._NUMBERS}
        by_host = {name: dict(getattr(self, name)) for name in self._BY_HOST}
        return (
            numbers
            | by_host
            | {
                "promised": [list(row) for row in self.promised],
                "wants": {host: list(want) for host, want in sorted(self.wants.items())},
            }
        )

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Take over a snapshot."""
        for name in self._NUMBERS:
            setattr(self, name, snapshot[name])
        for name in self._BY_HOST:
            now = getattr(self, name)
            setattr(self, name, {host: int(snapshot[name][host]) for host in now})
        self.promised = [list(row) for row in snapshot["promised"]]
        self.wants = {host: [int(n) for n in want] for host, want in snapshot["wants"].items()}
