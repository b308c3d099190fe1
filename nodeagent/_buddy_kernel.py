"""The binary buddy allocator, compiled: free lists of power-of-two blocks over arrays that the caller owns.

Follows `__rmqueue_smallest`, `expand` and `__free_one_page` of mm/page_alloc.c, Linux 6.1. Frame numbers are
absolute; a zone is [start, end) with `start` aligned to its largest block. Free lists are doubly linked
through `next_` and `prev` (int32) at the head frame of each block, `block_order` (int8) holds the block's
order there and -1 elsewhere; `free_head` (int32) and `nr_free` (int64) have one entry an order. A freed block
goes to the front of its list and is taken from there. Left out: migrate types, per-CPU lists, list shuffling,
the tail placement of blocks that may soon merge (`buddy_merge_likely`).
"""

from __future__ import annotations

import numpy as np
from numba import njit

NIL = -1


@njit(cache=True)
def push(block, order, free_head, nr_free, next_, prev, block_order):
    """Put a block at the front of its order's list."""
    first = free_head[order]
    next_[block] = first
    prev[block] = NIL
    if first != NIL:
        prev[first] = block
    free_head[order] = block
    nr_free[order] += 1
    block_order[block] = order


@njit(cache=True)
def unlink(block, order, free_head, nr_free, next_, prev, block_order):
    """Take a block off its list."""
    after = next_[block]
    before = prev[block]
    if before == NIL:
        free_head[order] = after
    else:
        next_[before] = after
    if after != NIL:
        prev[after] = before
    nr_free[order] -= 1
    block_order[block] = NIL


@njit(cache=True)
def alloc_block(order, free_head, nr_free, next_, prev, block_order):
    """A block of 2**order frames: the smallest free one that is large enough, split. -1 when there is none."""
    found = order
    while found < len(free_head) and free_head[found] == NIL:
        found += 1
    if found >= len(free_head):
        return np.int64(NIL)
    block = np.int64(free_head[found])
    unlink(block, found, free_head, nr_free, next_, prev, block_order)
    while found > order:
        found -= 1
        push(block + (np.int64(1) << found), found, free_head, nr_free, next_, prev, block_order)
    return block


@njit(cache=True)
def free_block(block, order, start, end, free_head, nr_free, next_, prev, block_order):
    """Give a block back and merge it with its buddies as far as they are free and inside [start, end)."""
    block = np.int64(block)
    order = np.int64(order)
    largest = len(free_head) - 1
    while order < largest:
        buddy = ((block - start) ^ (np.int64(1) << order)) + start
        if buddy < start or buddy + (np.int64(1) << order) > end or block_order[buddy] != order:
            break
        unlink(buddy, order, free_head, nr_free, next_, prev, block_order)
        block = min(block, buddy)
        order += 1
    push(block, order, free_head, nr_free, next_, prev, block_order)


@njit(cache=True)
def alloc_bulk(nr, out, free_head, nr_free, next_, prev, block_order):
    """Order-0 frames into out[:nr], the same ones in the same order as `nr` single allocations; returns how
    many.
    """
    done = 0
    while done < nr:
        order = 0
        while order < len(free_head) and free_head[order] == NIL:
            order += 1
        if order == len(free_head):
            break
        if (np.int64(1) << order) > nr - done:
            block = alloc_block(0, free_head, nr_free, next_, prev, block_order)
            out[done] = block
            done += 1
            continue
        block = np.int64(free_head[order])
        unlink(block, order, free_head, nr_free, next_, prev, block_order)
        for i in range(np.int64(1) << order):
            out[done + i] = block + i
        done += np.int64(1) << order
    return done


@njit(cache=True)
def free_bulk(frames, nr, start, end, free_head, nr_free, next_, prev, block_order):
    """Order-0 frames back, one after the other."""
    for i in range(nr):
        free_block(frames[i], 0, start, end, free_head, nr_free, next_, prev, block_order)


@njit(cache=True)
def add_range(first, nr, start, end, free_head, nr_free, next_, prev, block_order):
    """Frames [first, first + nr) become free: as the largest aligned blocks, from low to high."""
    at = np.int64(first)
    last = np.int64(first) + nr
    largest = len(free_head) - 1
    while at < last:
        order = 0
        while (
            order < largest
            and (at - start) & (np.int64(1) << order) == 0
            and at + (np.int64(2) << order) <= last
        ):
            order += 1
        free_block(at, order, start, end, free_head, nr_free, next_, prev, block_order)
        at += np.int64(1) << order


@njit(cache=True)
def block_of(frame, start, nr_orders, block_order):
    """Head of the free block that holds a frame, or -1 when the frame is not free."""
    for order in range(nr_orders):
        head = (((np.int64(frame) - start) >> order) << order) + start
        if block_order[head] == order:
            return head
    return np.int64(NIL)


@njit(cache=True)
def is_range_free(first, nr, start, nr_orders, block_order):
    """Whether every frame of [first, first + nr) is free."""
    at = np.int64(first)
    while at < first + nr:
        head = block_of(at, start, nr_orders, block_order)
        if head == NIL:
            return False
        at = head + (np.int64(1) << np.int64(block_order[head]))
    return True


@njit(cache=True)
def remove_range(first, nr, start, end, free_head, nr_free, next_, prev, block_order):
    """Take [first, first + nr) out of the free lists if all of it is free; what stands over at its ends stays
    free.
    """
    nr_orders = len(free_head)
    if not is_range_free(first, nr, start, nr_orders, block_order):
        return False
    at = np.int64(first)
    last = np.int64(first) + nr
    while at < last:
        head = block_of(at, start, nr_orders, block_order)
        order = np.int64(block_order[head])
        size = np.int64(1) << order
        unlink(head, order, free_head, nr_free, next_, prev, block_order)
        if head < first:
            _put_back(head, first - head, start, free_head, nr_free, next_, prev, block_order)
        if head + size > last:
            _put_back(last, head + size - last, start, free_head, nr_free, next_, prev, block_order)
        at = head + size
    return True


@njit(cache=True)
def _put_back(first, nr, start, free_head, nr_free, next_, prev, block_order):
    """The rest of a broken block, as aligned blocks; it cannot merge, for its neighbours are in use or gone."""
    at = np.int64(first)
    last = np.int64(first) + nr
    while at < last:
        order = 0
        while (at - start) & (np.int64(1) << order) == 0 and at + (np.int64(2) << order) <= last:
            order += 1
        push(at, order, free_head, nr_free, next_, prev, block_order)
        at += np.int64(1) << order


@njit(cache=True)
def check(start, end, free_head, nr_free, next_, prev, block_order):
    """0, or which invariant does not hold: 1 bounds or alignment, 2 order, 3 links, 4 count, 5 overlap, 6
    stray head.
    """
    covered = np.zeros(end - start, dtype=np.uint8)
    heads = np.int64(0)
    for order in range(len(free_head)):
        size = np.int64(1) << order
        count = np.int64(0)
        before = np.int64(NIL)
        block = np.int64(free_head[order])
        while block != NIL:
            if block < start or block + size > end or (block - start) & (size - 1):
                return 1
            if block_order[block] != order:
                return 2
            if prev[block] != before or count > nr_free[order]:
                return 3
            for i in range(block - start, block - start + size):
                if covered[i]:
                    return 5
                covered[i] = 1
            count += 1
            before = block
            block = np.int64(next_[block])
        if count != nr_free[order]:
            return 4
        heads += count
    for frame in range(start, end):
        if block_order[frame] != NIL:
            heads -= 1
    return 6 if heads else 0
