"""The buddy allocator: worked examples, misuse, planted damage, and the same answers without compilation.

Run as a script it prints the digest of `scenario`, for the comparison of compiled with plain Python.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from privmem.nodeagent.buddy import Buddy
from privmem.scheduler import plain
from privmem.scheduler.errors import InvariantError


def lists_of(buddy: Buddy) -> list[list[int]]:
    found: list[list[int]] = []
    for head in buddy.free_head:
        found.append([])
        while head != -1:
            found[-1].append(int(head))
            head = buddy.next_[head]
    return found


def zone(nr: int, nr_orders: int = 4, start: int = 0) -> Buddy:
    buddy = Buddy(start, start + nr, nr_orders=nr_orders)
    buddy.add_range(start, nr)
    return buddy


def scenario() -> str:
    """Some of everything, in a frame table that two zones share; the digest of all that came out.

    The table ends with the second zone, in the middle of a large block: plain Python sees a read behind it.
    """
    out: list[Any] = []
    links = [np.full(4000, -1, dtype=np.int32) for _ in range(2)]
    orders = np.full(4000, -1, dtype=np.int8)
    zones = [Buddy(0, 1500, *links, orders), Buddy(2048, 4000, *links, orders)]
    draw = 12345
    for buddy in zones:
        buddy.add_range(buddy.start, 1000)
        buddy.add_range(buddy.start + 1000, buddy.end - buddy.start - 1000)
        held: list[tuple[int, int]] = []
        for step in range(300):
            draw = draw * 1103515245 + 12345 & 0x7FFFFFFF
            order = (draw >> 16) % 5
            if step % 3 < 2:
                held.append((buddy.alloc(order), order))
            else:
                buddy.free(*held.pop((draw >> 8) % len(held)))
        frames = buddy.alloc_bulk(137)
        buddy.free_bulk(frames[10:90])
        buddy.free_bulk(frames[90:][::-1])
        out += [frames, [list(block) for block in held], buddy.remove_range(buddy.start + 1300, 77)]
        out += [buddy.count_free(buddy.start, 900), buddy.is_range_free(buddy.start + 1400, 30)]
        buddy.validate()
        out.append(buddy.lists_snapshot())
    return plain.digest([out, *links, orders])


def test_fresh_memory_is_taken_from_low_to_high():
    buddy = zone(21)
    assert lists_of(buddy) == [[20], [], [16], [0, 8]]
    assert buddy.free_blocks_by_order() == [1, 0, 1, 2]
    assert [buddy.alloc() for _ in range(6)] == [20, 16, 17, 18, 19, 0]


def test_a_split_leaves_the_upper_halves():
    buddy = zone(16)
    assert buddy.alloc(1) == 0
    assert lists_of(buddy) == [[], [2], [4], [8]]
    assert buddy.free_pages == 14


def test_a_freed_block_goes_to_the_front():
    buddy = zone(16)
    frames = buddy.alloc_bulk(16)
    buddy.free_bulk(frames[[0, 4, 8]])
    assert lists_of(buddy) == [[8, 4, 0], [], [], []]
    assert buddy.alloc() == 8


def test_a_block_that_may_soon_merge_goes_to_the_tail():
    """`buddy_merge_likely`: 0 waits for 1, and 2-3 is free, so the two could make 0-3."""
    buddy = zone(16)
    buddy.alloc_bulk(16)
    for frame in (8, 2, 3, 0):
        buddy.free(frame)
    assert lists_of(buddy) == [[8, 0], [2], [], []]
    assert buddy.alloc() == 8


def test_no_tail_for_the_two_largest_orders():
    buddy = zone(32)
    blocks = [buddy.alloc(2) for _ in range(8)]
    for block in (blocks[4], blocks[2], blocks[3], blocks[0]):
        buddy.free(block, 2)
    assert lists_of(buddy) == [[], [], [0, 16], [8]]


def test_freeing_all_merges_to_the_first_lists():
    buddy = zone(1000, 11, start=2048)
    before = buddy.free_blocks_by_order()
    frames = buddy.alloc_bulk(5000)
    assert frames.dtype == np.int32
    assert sorted(frames.tolist()) == list(range(2048, 3048))
    assert buddy.free_pages == 0
    assert buddy.alloc() == -1
    buddy.free_bulk(np.random.default_rng(1).permutation(frames))
    buddy.validate()
    assert (buddy.free_blocks_by_order(), buddy.free_pages) == (before, 1000)


def test_orders_that_cannot_be_had():
    buddy = zone(12)
    assert [buddy.alloc(4), buddy.alloc(3), buddy.alloc(3), buddy.alloc(2)] == [-1, 0, -1, 8]


def test_ranges_go_and_come():
    buddy = zone(32)
    assert buddy.remove_range(5, 13)
    assert lists_of(buddy) == [[4], [18], [20, 0], [24]]
    assert (buddy.count_free(0, 32), buddy.free_pages) == (19, 19)
    assert not buddy.remove_range(4, 2)
    assert not buddy.is_range_free(17, 2)
    assert buddy.is_range_free(18, 14)
    assert buddy.count_free(3, 16) == 3
    buddy.add_range(5, 13)
    assert [sorted(blocks) for blocks in lists_of(buddy)] == [[], [], [], [0, 8, 16, 24]]
    assert buddy.free_pages == 32


def test_fresh_memory_is_taken_after_what_was_free():
    buddy = Buddy(0, 64, nr_orders=4)
    buddy.add_range(32, 16)
    buddy.add_range(0, 16)
    assert [buddy.alloc(3) for _ in range(4)] == [32, 40, 0, 8]


@pytest.mark.parametrize("first", [0, 8, 9, 13])
def test_no_merge_over_frames_that_were_never_added(first: int):
    buddy = Buddy(0, 16, nr_orders=5)
    buddy.add_range(first, 16 - first)
    got = buddy.alloc_bulk(16)
    buddy.free_bulk(got)
    assert buddy.free_pages == 16 - first
    assert not buddy.is_range_free(0, 16) or first == 0
    buddy.validate()


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda b: b.free(96), "block 96 of order 0 is not of [32, 96)"),
        (lambda b: b.free(31), "block 31 of order 0 is not of [32, 96)"),
        (lambda b: b.free(33, 1), "block 33 of order 1 is not of [32, 96)"),
        (lambda b: b.free(32, 4), "a block of order 4 was freed"),
        (lambda b: b.free(32, -1), "a block of order -1 was freed"),
        (lambda b: b.free(48), "block 48 of order 0 is freed twice"),  # heads a free block
        (lambda b: b.free(53), "block 53 of order 0 is freed twice"),  # lies in one
        (lambda b: b.free(52, 1), "block 52 of order 1 is freed twice"),
        (lambda b: b.free(40, 3), "block 40 of order 3 is freed twice"),  # holds one
        (lambda b: b.free(44, 2), "block 44 of order 2 is freed twice"),
        (lambda b: b.alloc(-1), "a block of order -1 was asked for"),
        (lambda b: b.alloc_bulk(-1), "-1 frames were asked for"),
        (lambda b: b.add_range(40, 8), "some of the frames [40, 48) are free already"),
        (lambda b: b.add_range(53, 2), "some of the frames [53, 55) are free already"),
        (lambda b: b.add_range(95, 2), "frames [95, 97) are not of [32, 96)"),
        (lambda b: b.remove_range(31, 2), "frames [31, 33) are not of [32, 96)"),
        (lambda b: b.remove_range(40, -1), "frames [40, 39) are not of [32, 96)"),
        (lambda b: b.count_free(90, 7), "frames [90, 97) are not of [32, 96)"),
        (lambda b: b.free_bulk(np.array([53])), "frame 53, or one of the run that it begins, is freed twice"),
        (lambda b: b.free_bulk(np.array([96])), "frame 96 is not of [32, 96)"),
    ],
)
def test_misuse_is_refused_and_changes_nothing(call: Any, text: str):
    buddy = zone(64, 4, start=32)
    assert [buddy.alloc(3), buddy.alloc(3)] == [32, 40]
    buddy.free(47)
    before = plain.digest(buddy.snapshot())
    with pytest.raises(InvariantError) as raised:
        call(buddy)
    assert str(raised.value) == text
    assert plain.digest(buddy.snapshot()) == before


def test_a_bad_frame_in_a_batch_leaves_those_before_it_free():
    buddy = zone(16)
    buddy.alloc_bulk(16)
    with pytest.raises(InvariantError, match="frame 3, or one of the run that it begins, is freed twice"):
        buddy.free_bulk(np.array([1, 3, 9, 3, 5], dtype=np.int32))
    buddy.validate()
    assert lists_of(buddy) == [[9, 3, 1], [], [], []]
    assert buddy.free_pages == 3


def test_a_run_that_leaves_the_zone_is_refused_where_it_does():
    buddy = zone(21)
    buddy.alloc_bulk(21)
    with pytest.raises(InvariantError, match=r"frame 21 is not of \[0, 21\)"):
        buddy.free_bulk(np.arange(16, 24))
    buddy.validate()
    assert lists_of(buddy) == [[20], [], [16], []]


def test_a_run_with_a_free_frame_inside_is_refused():
    buddy = zone(16)
    frames = buddy.alloc_bulk(16)
    buddy.free(6)
    with pytest.raises(InvariantError, match="frame 0, or one of the run"):
        buddy.free_bulk(frames)
    buddy.validate()
    assert buddy.free_pages == 1


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda b: b.free_head.__setitem__(2, 3), "is out of bounds or not aligned"),
        (lambda b: b.next_.__setitem__(8, 32), "is out of bounds or not aligned"),
        (lambda b: b.block_order.__setitem__(16, -1), "has another order than its list"),
        (lambda b: b.prev.__setitem__(16, 24), "is linked wrongly"),
        (lambda b: b.prev.__setitem__(8, 16), "is linked wrongly"),  # the first's is not the last
        (lambda b: b.next_.__setitem__(16, 8), "is longer or shorter than counted"),  # a circle
        (lambda b: b.next_.__setitem__(16, -1), "is longer or shorter than counted"),
        (lambda b: b.nr_free.__setitem__(0, 1), "is longer or shorter than counted"),
        (lambda b: b.block_order.__setitem__(1, 0), "heads a free block that is on no list"),
        (lambda b: setattr(b, "free_pages", 31), "28 free, 31 counted"),
    ],
)
def test_damage_is_found(damage: Any, text: str):
    buddy = zone(32)
    buddy.free(buddy.alloc(3) + 4, 2)
    assert lists_of(buddy) == [[], [], [4], [8, 16, 24]]
    buddy.validate()
    damage(buddy)
    with pytest.raises(InvariantError, match=text):
        buddy.validate()


def test_overlapping_and_unmerged_blocks_are_found():
    buddy = zone(8)
    taken = buddy.alloc(2)
    for block, order, text in ((6, 0, "overlap"), (taken, 2, "not merged")):
        damaged = Buddy(0, 8, nr_orders=4)
        damaged.restore(buddy.snapshot())
        damaged.block_order[block] = order
        if order:
            damaged.prev[4], damaged.next_[4], damaged.next_[taken], damaged.prev[taken] = taken, taken, -1, 4
        else:
            damaged.free_head[0], damaged.next_[6], damaged.prev[6] = 6, -1, 6
        damaged.nr_free[order] += 1
        with pytest.raises(InvariantError, match=text):
            damaged.validate()


def test_a_restored_buddy_goes_on_alike():
    buddy = zone(64)
    frames = buddy.alloc_bulk(40)
    buddy.free_bulk(frames[::3])
    other = Buddy(0, 64, nr_orders=4)
    other.alloc_bulk(5)
    other.restore(plain.unpack(*plain.pack(buddy.snapshot())))
    other.validate()
    assert plain.digest(other.snapshot()) == plain.digest(buddy.snapshot())
    assert other.alloc_bulk(64).tolist() == buddy.alloc_bulk(64).tolist()


def test_equal_states_give_equal_snapshots():
    """Links that allocated frames keep from earlier lists do not show."""
    used, fresh = zone(16), zone(16)
    for block in [used.alloc(3), used.alloc(3)][::-1]:
        used.free_bulk(np.arange(block, block + 8)[::-1])
    assert lists_of(used) == lists_of(fresh)
    assert plain.digest(used.snapshot()) == plain.digest(fresh.snapshot())


def test_the_same_without_compilation():
    env = os.environ | {"NUMBA_DISABLE_JIT": "1"}
    plain_python = subprocess.run(
        [sys.executable, __file__], env=env, capture_output=True, text=True, check=True, timeout=60
    )
    assert plain_python.stdout.split() == ["False", scenario()]


if __name__ == "__main__":
    from privmem.nodeagent import _buddy_kernel

    print(hasattr(_buddy_kernel.alloc_block, "py_func"), scenario())
