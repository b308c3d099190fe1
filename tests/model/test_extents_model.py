"""Extents against a naive model: a list with the host of each page."""

from __future__ import annotations

import errno

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from privmem.nodeagent.device.extents import ExtentAllocator
from privmem.scheduler import plain

HOSTS = st.sampled_from(["host/a", "host/b", "host/c"])


class ExtentMachine(RuleBasedStateMachine):
    @initialize(capacity=st.integers(1, 600), shift=st.integers(0, 5))
    def set_up(self, capacity: int, shift: int) -> None:
        self.unit = 1 << shift
        self.capacity = max(capacity, self.unit)
        self.usable = self.capacity // self.unit * self.unit
        self.extents = ExtentAllocator(self.capacity, self.unit)
        self.page_host: list[str | None] = [None] * self.capacity
        self.held: list[tuple[str, int, int]] = []

    def fits(self, nr_pages: int) -> list[int]:
        """Every aligned start at which a run of this size is free."""
        starts = range(0, self.usable - nr_pages + 1, nr_pages)
        return [s for s in starts if not any(self.page_host[s : s + nr_pages])]

    def note(self, host: str | None, start: int, nr_pages: int) -> None:
        self.page_host[start : start + nr_pages] = [host] * nr_pages

    @rule(host=HOSTS, nr_pages=st.integers(1, 700))
    def grant(self, host: str, nr_pages: int) -> None:
        rounded = self.unit
        while rounded < nr_pages:
            rounded *= 2
        could = self.fits(rounded)
        answer = self.extents.grant(host, nr_pages)
        if not could:
            assert answer == -errno.ENOMEM
            return
        assert not isinstance(answer, int)
        start, granted = answer
        assert granted == rounded
        assert start in could
        self.note(host, start, granted)
        self.held.append((host, start, granted))

    @rule(host=HOSTS)
    def grant_all(self, host: str) -> None:
        answer = self.extents.grant_all(host)
        if any(self.page_host):
            assert answer == -errno.EBUSY
            return
        assert answer == (0, self.usable)
        self.note(host, 0, self.usable)
        self.held.append((host, 0, self.usable))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        host, start, nr_pages = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        assert self.extents.release(host, start, nr_pages) == 0
        self.note(None, start, nr_pages)

    @rule(host=HOSTS, nr_pages=st.integers(1, 700))
    def grant_pieces(self, host: str, nr_pages: int) -> None:
        rounded = -(-nr_pages // self.unit) * self.unit
        answer = self.extents.grant_pieces(host, nr_pages)
        if rounded > self.page_host[: self.usable].count(None):
            assert answer == -errno.ENOMEM
            return
        assert not isinstance(answer, int)
        assert sum(pages for _, pages in answer) == rounded
        for start, pages in answer:
            assert not any(self.page_host[start : start + pages])
            self.note(host, start, pages)
            self.held.append((host, start, pages))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release_a_part(self, data: st.DataObject) -> None:
        """Whole units out of the midst of a piece; what is left on either side stays held."""
        host, start, nr_pages = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        first = data.draw(st.integers(0, nr_pages // self.unit - 1)) * self.unit
        count = data.draw(st.integers(1, (nr_pages - first) // self.unit)) * self.unit
        assert self.extents.release(host, start + first, count) == 0
        self.note(None, start + first, count)
        rest = ((start, first), (start + first + count, nr_pages - first - count))
        self.held += [(host, at, pages) for at, pages in rest if pages]

    @rule(host=HOSTS, start=st.integers(-1, 600), nr_pages=st.integers(0, 600))
    def release_what_is_not_held(self, host: str, start: int, nr_pages: int) -> None:
        whole = nr_pages > 0 and start % self.unit == nr_pages % self.unit == 0
        inside = any(h == host and s <= start and start + nr_pages <= s + nr for h, s, nr in self.held)
        if not (whole and inside):
            assert self.extents.release(host, start, nr_pages) == -errno.EINVAL

    @rule()
    def restart(self) -> None:
        """Go on from a snapshot."""
        snapshot = self.extents.snapshot()
        self.extents = ExtentAllocator(self.capacity, self.unit)
        self.extents.restore(plain.unpack(*plain.pack(snapshot)))
        assert plain.digest(self.extents.snapshot()) == plain.digest(snapshot)

    @rule(host=HOSTS, pages=st.lists(st.integers(-1, 600), max_size=3))
    def owns(self, host: str, pages: list[int]) -> None:
        wanted = all(0 <= page < self.usable and self.page_host[page] == host for page in pages)
        assert self.extents.owns(host, np.array(pages, dtype=np.int32)) == wanted

    @invariant()
    def agrees(self) -> None:
        self.extents.validate()
        assert [self.extents.owner_of(page) for page in range(self.capacity)] == self.page_host
        assert self.extents.extents() == sorted((s, nr, host) for host, s, nr in self.held)
        counted = [(host, self.page_host.count(host)) for host in ("host/a", "host/b", "host/c")]
        assert list(self.extents.granted_pages().items()) == [(host, nr) for host, nr in counted if nr]
        assert self.extents.free_pages == self.page_host[: self.usable].count(None)

    def teardown(self) -> None:
        """Everything given back merges to what a fresh device has."""
        if not hasattr(self, "extents"):
            return
        for host, start, nr_pages in self.held:
            assert self.extents.release(host, start, nr_pages) == 0
        fresh = ExtentAllocator(self.capacity, self.unit)
        assert self.extents.buddy.free_blocks_by_order() == fresh.buddy.free_blocks_by_order()


TestExtentMachine = ExtentMachine.TestCase
TestExtentMachine.settings = settings(max_examples=50, stateful_step_count=25, deadline=None)
