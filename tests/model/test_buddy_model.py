"""The buddy against a model that keeps its free lists as Python lists and reads as the kernel's source does.

The zone lies between two others in one frame table. Frames that are not free carry random links, as if they
were on LRU lists: an allocator that follows or writes one of them is found out.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from privmem.nodeagent.buddy import Buddy

ORDERS = 5
START = 3 << ORDERS
TABLE = 8 << ORDERS
JUNK = 7777


class ModelBuddy:
    """`free[order]` lists the blocks of an order in the order in which they are taken."""

    def __init__(self, start: int, end: int, nr_orders: int) -> None:
        self.start, self.end = start, end
        self.free: list[list[int]] = [[] for _ in range(nr_orders)]

    def frames(self) -> set[int]:
        return {
            f for order, blocks in enumerate(self.free) for b in blocks for f in range(b, b + (1 << order))
        }

    def alloc(self, order: int) -> int:
        for larger in range(order, len(self.free)):
            if self.free[larger]:
                block = self.free[larger].pop(0)
                for split in reversed(range(order, larger)):
                    self.free[split].insert(0, block + (1 << split))
                return block
        return -1

    def _buddy(self, block: int, order: int) -> int:
        buddy = self.start + ((block - self.start) ^ (1 << order))
        return buddy if order < len(self.free) and buddy in self.free[order] else -1

    def release(self, block: int, order: int, to_tail: bool = False) -> None:
        largest = len(self.free) - 1
        while order < largest and (buddy := self._buddy(block, order)) >= 0:
            self.free[order].remove(buddy)
            block, order = min(block, buddy), order + 1
        pair = block - ((block - self.start) & (1 << order))
        if to_tail or (order < largest - 1 and self._buddy(pair, order + 1) >= 0):
            self.free[order].append(block)
        else:
            self.free[order].insert(0, block)

    def pieces(self, first: int, nr: int) -> list[tuple[int, int]]:
        """[first, first + nr) as the largest aligned blocks, from low to high."""
        found = []
        while nr:
            order = max(
                k for k in range(len(self.free)) if (first - self.start) % (1 << k) == 0 and 1 << k <= nr
            )
            found.append((first, order))
            first, nr = first + (1 << order), nr - (1 << order)
        return found

    def add_range(self, first: int, nr: int) -> None:
        for block, order in self.pieces(first, nr):
            self.release(block, order, to_tail=True)

    def remove_range(self, first: int, nr: int) -> bool:
        last = first + nr
        if not set(range(first, last)) <= self.frames():
            return False
        held = {(b, k) for k, blocks in enumerate(self.free) for b in blocks}
        for block, order in sorted(held):
            after = block + (1 << order)
            if block < last and first < after:
                self.free[order].remove(block)
                for piece, k in self.pieces(block, first - block) if block < first else []:
                    self.free[k].insert(0, piece)
                for piece, k in self.pieces(last, after - last) if after > last else []:
                    self.free[k].insert(0, piece)
        return True


def lists_of(buddy: Buddy) -> list[list[int]]:
    """Every free list, by following the links."""
    found: list[list[int]] = []
    for head in buddy.free_head:
        found.append([])
        while head != -1:
            found[-1].append(int(head))
            head = buddy.next_[head]
    return found


class BuddyMachine(RuleBasedStateMachine):
    @initialize(nr=st.integers(1, 3 << ORDERS), hole=st.integers(0, 40))
    def set_up(self, nr: int, hole: int) -> None:
        """A zone of `nr` frames whose first `hole` are offline, between free neighbours."""
        self.table = [np.full(TABLE, JUNK, dtype=np.int32) for _ in range(2)]
        order = np.full(TABLE, -1, dtype=np.int8)
        end = START + nr
        self.below = Buddy(0, START, *self.table, order, ORDERS)
        self.above = Buddy(TABLE - (1 << ORDERS), TABLE, *self.table, order, ORDERS)
        for neighbour in (self.below, self.above):
            neighbour.add_range(neighbour.start, neighbour.end - neighbour.start)
        self.neighbours = [lists_of(self.below), lists_of(self.above)]
        self.buddy = Buddy(START, end, *self.table, order, ORDERS)
        self.model = ModelBuddy(START, end, ORDERS)
        self.held: list[tuple[int, int]] = []
        self.offline: list[tuple[int, int]] = []
        self.marked: set[int] = set()
        hole = min(hole, nr)
        if hole:
            self.offline.append((START, hole))
        self.buddy.add_range(START + hole, nr - hole)
        self.model.add_range(START + hole, nr - hole)

    @rule(order=st.integers(0, ORDERS))
    def alloc(self, order: int) -> None:
        block = self.buddy.alloc(order)
        assert block == self.model.alloc(order)
        if block >= 0:
            self.held.append((block, order))

    @rule(nr=st.integers(0, 70))
    def alloc_bulk(self, nr: int) -> None:
        got = self.buddy.alloc_bulk(nr).tolist()
        wanted = [self.model.alloc(0) for _ in range(nr)]
        assert got == [f for f in wanted if f >= 0]
        self.held += [(frame, 0) for frame in got]

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        block, order = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        self.buddy.free(block, order)
        self.model.release(block, order)

    @precondition(lambda self: any(order == 0 for _, order in self.held))
    @rule(data=st.data(), how=st.sampled_from(["as drawn", "ascending", "descending"]))
    def free_bulk(self, data: st.DataObject, how: str) -> None:
        singles = [frame for frame, order in self.held if order == 0]
        chosen = data.draw(st.lists(st.sampled_from(singles), unique=True))
        if how != "as drawn":
            # Long runs need most of the frames; leave out the drawn ones instead.
            chosen = sorted(set(singles) - set(chosen), reverse=how == "descending")
        self.buddy.free_bulk(np.array(chosen, dtype=np.int32))
        for frame in chosen:
            self.model.release(frame, 0)
        self.held = [(f, k) for f, k in self.held if k or f not in chosen]

    @rule(data=st.data())
    def remove_range(self, data: st.DataObject) -> None:
        first = data.draw(st.integers(START, self.buddy.end - 1))
        nr = data.draw(st.integers(1, self.buddy.end - first))
        assert self.buddy.is_range_free(first, nr) == (set(range(first, first + nr)) <= self.model.frames())
        removed = self.buddy.remove_range(first, nr)
        assert removed == self.model.remove_range(first, nr)
        if removed:
            self.offline.append((first, nr))

    @precondition(lambda self: self.offline)
    @rule(data=st.data())
    def add_range(self, data: st.DataObject) -> None:
        first, nr = self.offline.pop(data.draw(st.integers(0, len(self.offline) - 1)))
        self.buddy.add_range(first, nr)
        self.model.add_range(first, nr)

    @invariant()
    def same_lists(self) -> None:
        self.buddy.validate()
        assert lists_of(self.buddy) == self.model.free
        assert self.buddy.free_blocks_by_order() == [len(blocks) for blocks in self.model.free]

    @invariant()
    def every_frame_once(self) -> None:
        """Free, held or offline: no overlap, no loss."""
        held = [f for block, order in self.held for f in range(block, block + (1 << order))]
        gone = [f for first, nr in self.offline for f in range(first, first + nr)]
        free = self.model.frames()
        assert sorted([*free, *held, *gone]) == list(range(START, self.buddy.end))
        assert self.buddy.free_pages == len(free)

    @invariant()
    def others_untouched(self) -> None:
        """Links of frames that are not free are not ours to read or write, nor are the neighbours' lists."""
        blocks = [(block, 1 << order) for block, order in self.held] + self.offline
        here = {f for first, nr in blocks for f in range(first, first + nr)}
        still, links = sorted(here & self.marked), np.array(self.table)
        assert (links[:, still] == JUNK).all()
        for array in self.table:
            array[sorted(here)] = JUNK
        self.marked = here
        assert [lists_of(self.below), lists_of(self.above)] == self.neighbours

    def teardown(self) -> None:
        """Everything freed merges to what a fresh zone has."""
        if not hasattr(self, "buddy"):
            return
        for block, order in self.held:
            self.buddy.free(block, order)
        for first, nr in self.offline:
            self.buddy.add_range(first, nr)
        self.buddy.validate()
        fresh = Buddy(START, self.buddy.end, nr_orders=ORDERS)
        fresh.add_range(START, self.buddy.end - START)
        assert [sorted(blocks) for blocks in lists_of(self.buddy)] == lists_of(fresh)


TestBuddyMachine = BuddyMachine.TestCase
TestBuddyMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


@settings(max_examples=60, deadline=None)
@given(
    nr=st.integers(1, 5000),
    taken=st.lists(st.integers(0, 900), max_size=8),
    seed=st.integers(0, 1000),
)
def test_bulk_is_many_singles(nr: int, taken: list[int], seed: int) -> None:
    """At the real number of orders: bulk calls hand out and leave what single calls do, whatever the history."""
    bulk, single = Buddy(0, nr), Buddy(0, nr)
    shuffle = np.random.default_rng(seed)
    for buddy in (bulk, single):
        buddy.add_range(0, nr)
    for count in taken:
        got = bulk.alloc_bulk(count)
        assert got.tolist() == [f for f in (single.alloc() for _ in range(count)) if f >= 0]
        back = shuffle.permutation(got)[: count // 2] if count % 2 else got[: count // 2]
        bulk.free_bulk(back)
        for frame in back.tolist():
            single.free(frame)
        left, right = bulk.snapshot(), single.snapshot()
        assert same(left, right)
    bulk.validate()


def same(left: dict[str, Any], right: dict[str, Any]) -> bool:
    return left.keys() == right.keys() and all(np.array_equal(left[key], right[key]) for key in left)
