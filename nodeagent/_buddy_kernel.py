"""The binary buddy allocator, compiled: free lists of power-of-two blocks over arrays that the caller owns.

Follows `__rmqueue_smallest`, `expand`, `__free_one_page` with `buddy_merge_likely`, and `__free_pages_memory`
of mm/page_alloc.c and mm/memblock.c, Linux 6.1. Left out: migrate types, per-CPU lists, guard pages, list
shuffling. What Linux keeps in `struct page` lies in arrays over frame numbers, shared by all zones of a host:

    next_, prev   int32[nr_frames]   links at the head frame of a free block; any other frame's are the LRU's
    block_order   int8[nr_frames]    order of the free block that starts here, -1 elsewhere
    free_head     int32[nr_orders]   first block of each list of one zone, -1 when it is empty
    nr_free       int64[nr_orders]   blocks on each list

Frame numbers are absolute. A zone is [start, end), `start` aligned to its largest block, `end` anywhere. A
list ends with -1 in `next_`; `prev` of its first block is its last one, so that both ends are at hand as with
the kernel's `list_head`. A frame that is not in a free block is allocated or was never added: the buddy
cannot tell the two apart and touches neither, so it never merges over a hole.

Freeing checks what it is given: a block that overlaps free memory is refused, and nothing changes.
"""

from __future__ import annotations

import numpy as np
from numba import njit

NIL = -1


@njit(cache=True)
def push_front(block, order, free_head, nr_free, next_, prev, block_order):
    """`add_to_free_list`: the block is the next to be taken."""
    first = free_head[order]
    next_[block] = first
    if first == NIL:
        prev[block] = block
    else:
        prev[block] = prev[first]
        prev[first] = block
    free_head[order] = block
    nr_free[order] += 1
    block_order[block] = order


@njit(cache=True)
def push_tail(block, order, free_head, nr_free, next_, prev, block_order):
    """`add_to_free_list_tail`: the block is the last to be taken."""
    first = free_head[order]
    next_[block] = NIL
    if first == NIL:
        prev[block] = block
        free_head[order] = block
    else:
        last = prev[first]
        next_[last] = block
        prev[block] = last
        prev[first] = block
    nr_free[order] += 1
    block_order[block] = order


@njit(cache=True)
def unlink(block, order, free_head, nr_free, next_, prev, block_order):
    """`del_page_from_free_list`."""
    first = free_head[order]
    after = next_[block]
    before = prev[block]
    if block == first:
        free_head[order] = after
    else:
        next_[before] = after
    if after != NIL:
        prev[after] = before
    elif block != first:
        prev[first] = before
    nr_free[order] -= 1
    block_order[block] = NIL


@njit(cache=True)
def alloc_block(order, free_head, nr_free, next_, prev, block_order):
    """`__rmqueue_smallest`: a block of 2**order frames off the smallest that is large enough, split; or -1."""
    found = order
    while found < len(free_head) and free_head[found] == NIL:
        found += 1
    if found >= len(free_head):
        return np.int64(NIL)
    block = np.int64(free_head[found])
    unlink(block, found, free_head, nr_free, next_, prev, block_order)
    while found > order:
        found -= 1
        push_front(block + (np.int64(1) << found), found, free_head, nr_free, next_, prev, block_order)
    return block


@njit(cache=True)
def free_block(block, order, start, end, to_tail, free_head, nr_free, next_, prev, block_order):
    """`__free_one_page`: merge with free buddies inside [start, end) and put the result on its list.

    It goes to the front, but to the tail when the next larger buddy is free (the block is likely to merge
    soon) or with `to_tail` (`FPI_TO_TAIL`: fresh memory). False, and no change, when a frame of it is free.
    """
    block = np.int64(block)
    order = np.int64(order)
    largest = len(free_head) - 1
    for frame in range(block, block + (np.int64(1) << order)):
        if block_order[frame] != NIL:
            return False
    unmerged = order
    while order < largest:
        buddy = ((block - start) ^ (np.int64(1) << order)) + start
        if buddy + (np.int64(1) << order) > end or block_order[buddy] != order:
            # Inside a larger free block no buddy heads a block of this order: one that has merged is not.
            if order == unmerged and _inside_larger(block, order, start, len(free_head), block_order):
                return False
            break
        unlink(buddy, order, free_head, nr_free, next_, prev, block_order)
        block = min(block, buddy)
        order += 1
    if to_tail or (order < largest - 1 and _merge_likely(block, order, start, end, block_order)):
        push_tail(block, order, free_head, nr_free, next_, prev, block_order)
    else:
        push_front(block, order, free_head, nr_free, next_, prev, block_order)
    return True


@njit(cache=True)
def _inside_larger(block, order, start, nr_orders, block_order):
    """Whether a free block of a higher order covers this one."""
    for larger in range(order + 1, nr_orders):
        if block_order[(((block - start) >> larger) << larger) + start] == larger:
            return True
    return False


@njit(cache=True)
def _merge_likely(block, order, start, end, block_order):
    """`buddy_merge_likely`: the buddy of the pair that this block would make is free."""
    pair = ((block - start) >> (order + 1)) ^ 1
    buddy = (pair << (order + 1)) + start
    return buddy + (np.int64(2) << order) <= end and block_order[buddy] == order + 1


@njit(cache=True)
def alloc_bulk(nr, out, free_head, nr_free, next_, prev, block_order):
    """Order-0 frames into out[:nr]: the same ones, in the same order, and the same lists afterwards as `nr`
    single allocations give. Returns how many there were.

    A block is only split when all smaller lists are empty, and single allocations then hand out its frames
    from low to high. So whole blocks can be handed out unsplit, and of the last one what stands over goes
    back.
    """
    done = np.int64(0)
    while done < nr:
        order = 0
        while order < len(free_head) and free_head[order] == NIL:
            order += 1
        if order == len(free_head):
            break
        block = np.int64(free_head[order])
        unlink(block, order, free_head, nr_free, next_, prev, block_order)
        size = np.int64(1) << order
        taken = min(size, nr - done)
        for i in range(taken):
            out[done + i] = block + i
        done += taken
        _put_back(block + taken, size - taken, block, free_head, nr_free, next_, prev, block_order)
    return done


@njit(cache=True)
def free_bulk(frames, nr, start, end, free_head, nr_free, next_, prev, block_order):
    """Order-0 frames back, with the lists as if freed one by one. Returns `nr`, or the position of a frame
    that is not in the zone or already free (those before it have been freed).

    Aligned runs of ascending frames are freed as one block: their frames would merge among themselves before
    they could merge with others.
    """
    largest = len(free_head) - 1
    at = np.int64(0)
    while at < nr:
        first = np.int64(frames[at])
        if first < start or first >= end:
            return at
        order = np.int64(0)
        size = np.int64(1)
        while (
            order < largest
            and (first - start) & size == 0
            and at + 2 * size <= nr
            and first + 2 * size <= end
            and _ascends(frames, at + size, size, first + size)
        ):
            order += 1
            size *= 2
        if not free_block(first, order, start, end, False, free_head, nr_free, next_, prev, block_order):
            return at
        at += size
    return at


@njit(cache=True)
def _ascends(frames, at, nr, first):
    """Whether frames[at:at + nr] are first, first + 1, ..."""
    if frames[at + nr - 1] != first + nr - 1:
        return False
    i = np.int64(0)
    while i < nr and frames[at + i] == first + i:
        i += 1
    return i == nr


@njit(cache=True)
def add_range(first, nr, start, end, free_head, nr_free, next_, prev, block_order):
    """`__free_pages_memory`, `online_pages_range`: frames become free, as the largest aligned blocks, from
    low to high, each at the tail of its list. False, and no change, when one of them is free already.
    """
    if count_free(first, nr, start, len(free_head), block_order):
        return False
    largest = len(free_head) - 1
    at = np.int64(first)
    last = at + nr
    while at < last:
        order = _order_at(at - start, last - at, largest)
        free_block(at, order, start, end, True, free_head, nr_free, next_, prev, block_order)
        at += np.int64(1) << order
    return True


@njit(cache=True)
def _order_at(offset, nr, largest):
    """Order of the largest aligned block that starts at `offset` and has at most `nr` frames."""
    order = np.int64(0)
    while order < largest and (offset >> order) & 1 == 0 and np.int64(2) << order <= nr:
        order += 1
    return order


@njit(cache=True)
def block_of(frame, start, nr_orders, block_order):
    """Head of the free block that holds a frame of the zone, or -1 when the frame is not free."""
    for order in range(nr_orders):
        head = (((np.int64(frame) - start) >> order) << order) + start
        if block_order[head] == order:
            return head
    return np.int64(NIL)


@njit(cache=True)
def count_free(first, nr, start, nr_orders, block_order):
    """How many frames of [first, first + nr) are free."""
    count = np.int64(0)
    at = np.int64(first)
    last = at + nr
    while at < last:
        # Only the first frame can be in the middle of a block.
        head = block_of(at, start, nr_orders, block_order) if at == first else at
        if head == NIL or block_order[head] == NIL:
            at += 1
            continue
        after = min(head + (np.int64(1) << np.int64(block_order[head])), last)
        count += after - at
        at = after
    return count


@njit(cache=True)
def remove_range(first, nr, start, free_head, nr_free, next_, prev, block_order):
    """Take [first, first + nr) off the lists, as `__offline_isolated_pages` does, if all of it is free; False,
    and no change, otherwise. What stands over of the blocks at its ends stays free.
    """
    nr_orders = len(free_head)
    if count_free(first, nr, start, nr_orders, block_order) != nr:
        return False
    at = np.int64(first)
    last = at + nr
    while at < last:
        head = block_of(at, start, nr_orders, block_order)
        order = np.int64(block_order[head])
        after = head + (np.int64(1) << order)
        unlink(head, order, free_head, nr_free, next_, prev, block_order)
        _put_back(head, at - head, start, free_head, nr_free, next_, prev, block_order)
        if after > last:
            _put_back(last, after - last, start, free_head, nr_free, next_, prev, block_order)
        at = after
    return True


@njit(cache=True)
def _put_back(first, nr, start, free_head, nr_free, next_, prev, block_order):
    """One end of a broken block, as the largest aligned blocks. None of them can merge: each one's buddy lies,
    at least in part, in what was taken.
    """
    at = np.int64(first)
    last = at + nr
    while at < last:
        order = _order_at(at - start, last - at, np.int64(62))
        push_front(at, order, free_head, nr_free, next_, prev, block_order)
        at += np.int64(1) << order


@njit(cache=True)
def check(start, end, free_head, nr_free, next_, prev, block_order):
    """0, or which invariant does not hold: 1 bounds or alignment, 2 order, 3 links, 4 count, 5 overlap,
    6 stray head, 7 free buddies that are not merged.
    """
    listed = np.int64(0)
    for order in range(len(free_head)):
        size = np.int64(1) << order
        count = np.int64(0)
        first = np.int64(free_head[order])
        before = np.int64(NIL)
        block = first
        while block != NIL:
            if block < start or block + size > end or (block - start) & (size - 1):
                return 1
            if block_order[block] != order:
                return 2
            if count >= nr_free[order]:
                return 4
            if block != first and prev[block] != before:
                return 3
            count += 1
            before = block
            block = np.int64(next_[block])
        if count != nr_free[order]:
            return 4
        if first != NIL and prev[first] != before:
            return 3
        listed += count
    return _check_heads(listed, start, end, len(free_head), block_order)


@njit(cache=True)
def _check_heads(listed, start, end, nr_orders, block_order):
    """What `check` finds in one walk over the frames, given that `listed` heads are on the lists."""
    free_until = np.int64(start)
    heads = np.int64(0)
    for frame in range(start, end):
        order = np.int64(block_order[frame])
        if order == NIL:
            continue
        heads += 1
        if heads > listed:
            return 6
        if frame < free_until:
            return 5
        size = np.int64(1) << order
        free_until = frame + size
        buddy = ((frame - start) ^ size) + start
        if order < nr_orders - 1 and buddy + size <= end and block_order[buddy] == order:
            return 7
    return 0
