"""LRU lists and the reverse map, compiled: what reclaim does for every page that it looks at.

Follows mm/vmscan.c of Linux 6.1: `shrink_active_list`, `folio_check_references`, `isolate_lru_folios`. Lists
are doubly linked through the frame table's `next_`/`prev`; `head`, `tail` int32[lists], NIL when empty;
`size` int64[lists]. The head is the young end.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from privmem.nodeagent.host.layout import (
    LRU_ACTIVE_ANON,
    LRU_INACTIVE_ANON,
    LRU_UNEVICTABLE,
    NIL,
    PG_ACTIVE,
    PG_DIRTY,
    PG_FILE,
    PG_LRU,
    PG_REFERENCED,
    PG_UNEVICTABLE,
    PTE_ACCESSED,
    PTE_DIRTY,
    PTE_FLAGS,
    PTE_PFN_SHIFT,
    PTE_WRITABLE,
)

_ACCESSED = np.uint32(PTE_ACCESSED)
_NOT_ACCESSED = np.uint32(0xFFFFFFFF ^ PTE_ACCESSED)
_FLAGS = np.uint32(PTE_FLAGS)
_NOT_WRITABLE = np.uint32(0xFFFFFFFF ^ (PTE_WRITABLE | PTE_DIRTY))
_NOT_DIRTY = np.uint32(0xFFFFFFFF ^ PTE_DIRTY)
_DIRTY = np.uint32(PTE_DIRTY)
_MOVED_FLAGS = np.uint16(0xFFFF ^ PG_LRU)


@njit(cache=True)
def lru_add(lru, pfn, head, tail, size, next_, prev, flags):
    """Put a frame at the head of a list."""
    first = head[lru]
    next_[pfn] = first
    prev[pfn] = NIL
    if first == NIL:
        tail[lru] = pfn
    else:
        prev[first] = pfn
    head[lru] = pfn
    size[lru] += 1
    flags[pfn] |= np.uint16(PG_LRU)


@njit(cache=True)
def lru_del(lru, pfn, head, tail, size, next_, prev, flags):
    """Take a frame off the list that it is on."""
    after = next_[pfn]
    before = prev[pfn]
    if before == NIL:
        head[lru] = after
    else:
        next_[before] = after
    if after == NIL:
        tail[lru] = before
    else:
        prev[after] = before
    size[lru] -= 1
    flags[pfn] &= np.uint16(0xFFFF ^ PG_LRU)


@njit(cache=True)
def lru_of(base, flag):
    """List of a frame with flags `flag` on the node whose lists start at `base`."""
    if flag & np.uint16(PG_UNEVICTABLE):
        return base + LRU_UNEVICTABLE
    lru = base
    if flag & np.uint16(PG_FILE):
        lru += 2
    if flag & np.uint16(PG_ACTIVE):
        lru += 1
    return lru


@njit(cache=True)
def referenced(pfn, rmap, rmap_next, pte):
    """`folio_referenced`: how many mappings were accessed since the last look; clears their accessed bits."""
    count = 0
    slot = rmap[pfn]
    while slot != 0:
        if pte[slot] & _ACCESSED:
            pte[slot] &= _NOT_ACCESSED
            count += 1
        slot = rmap_next[slot]
    return count


@njit(cache=True)
def shrink_active(lru_active, nr, head, tail, size, next_, prev, flags, rmap, rmap_next, pte):
    """`shrink_active_list`: up to `nr` frames go from the tail of an active list to the head of its inactive
    one.
    """
    done = 0
    while done < nr and tail[lru_active] != NIL:
        pfn = np.int64(tail[lru_active])
        lru_del(lru_active, pfn, head, tail, size, next_, prev, flags)
        referenced(pfn, rmap, rmap_next, pte)
        flags[pfn] &= np.uint16(0xFFFF ^ PG_ACTIVE)
        lru_add(lru_active - 1, pfn, head, tail, size, next_, prev, flags)
        done += 1
    return done


@njit(cache=True)
def isolate_inactive(lru, nr_scan, out, nr_out, head, tail, size, next_, prev, flags, rmap, rmap_next, pte):
    """Look at up to `nr_scan` frames from the tail of an inactive list; take the cold ones off it into `out`.

    A frame whose mappings were accessed stays: on the inactive list the first time (PG_REFERENCED), on the
    active list the second time or when two mappings were accessed (`folio_check_references`). Stops when
    `out` holds `nr_out`. Returns (frames looked at, frames taken, frames activated).
    """
    looked = 0
    taken = 0
    activated = 0
    limit = min(nr_scan, size[lru])
    while looked < limit and taken < nr_out:
        pfn = np.int64(tail[lru])
        lru_del(lru, pfn, head, tail, size, next_, prev, flags)
        looked += 1
        count = referenced(pfn, rmap, rmap_next, pte)
        was_referenced = flags[pfn] & np.uint16(PG_REFERENCED)
        flags[pfn] &= np.uint16(0xFFFF ^ PG_REFERENCED)
        if count == 0:
            out[taken] = pfn
            taken += 1
        elif was_referenced or count > 1:
            flags[pfn] |= np.uint16(PG_REFERENCED | PG_ACTIVE)
            lru_add(lru + 1, pfn, head, tail, size, next_, prev, flags)
            activated += 1
        else:
            flags[pfn] |= np.uint16(PG_REFERENCED)
            lru_add(lru, pfn, head, tail, size, next_, prev, flags)
    return looked, taken, activated


@njit(cache=True)
def putback(pfns, nr, base, head, tail, size, next_, prev, flags):
    """`putback_lru_folio` for a batch that found no new place; the first of `pfns` ends nearest to the tail."""
    for i in range(nr):
        pfn = np.int64(pfns[i])
        lru_add(lru_of(base, flags[pfn]), pfn, head, tail, size, next_, prev, flags)


@njit(cache=True)
def collect_dirty(pfns, nr, flags_out, flags, rmap, rmap_next, pte):
    """flags_out[i] = 1 when a mapping of pfns[i] was written since the last look; clears the dirty bits."""
    for i in range(nr):
        dirty = 0
        if flags[pfns[i]] & np.uint16(PG_DIRTY):
            flags[pfns[i]] &= np.uint16(0xFFFF ^ PG_DIRTY)
            dirty = 1
        slot = rmap[pfns[i]]
        while slot != 0:
            if pte[slot] & _DIRTY:
                pte[slot] &= _NOT_DIRTY
                dirty = 1
            slot = rmap_next[slot]
        flags_out[i] = dirty


@njit(cache=True)
def move_frames(
    src, dst, nr, fenced, flags, rmap, rmap_next, pte, version, scan_ms, reason, origin, owner, obj, obj_index
):
    """`migrate_folio`: the mappings and the identity of src[i] become dst[i]'s; src[i] is left blank.

    With `fenced` the new entries are read-only, for a node that user stores must not reach. The new frame is
    on no list yet.
    """
    for i in range(nr):
        old = np.int64(src[i])
        new = np.int64(dst[i])
        slot = rmap[old]
        rmap[new] = slot
        rmap[old] = 0
        while slot != 0:
            entry = (pte[slot] & _FLAGS) | (np.uint32(new) << np.uint32(PTE_PFN_SHIFT))
            if fenced:
                entry &= _NOT_WRITABLE
            pte[slot] = entry
            slot = rmap_next[slot]
        flags[new] = flags[old] & _MOVED_FLAGS
        flags[old] = 0
        version[new] = version[old]
        scan_ms[new] = scan_ms[old]
        reason[new] = reason[old]
        origin[new] = origin[old]
        owner[new] = owner[old]
        obj[new] = obj[old]
        obj_index[new] = obj_index[old]


@njit(cache=True)
def sample_referenced(base, out, head, next_, flags, rmap, rmap_next, pte):
    """The anonymous frames of a node that were accessed in this interval and in the last one, into `out`.

    A frame accessed for the first time is marked PG_REFERENCED; one that was not accessed loses the mark.
    This is how a driver that owns a node finds hot pages by accessed bits. Returns the count; stops when
    `out` is full.
    """
    found = 0
    for lru in (base + LRU_ACTIVE_ANON, base + LRU_INACTIVE_ANON):
        pfn = np.int64(head[lru])
        while pfn != NIL and found < len(out):
            after = np.int64(next_[pfn])
            if referenced(pfn, rmap, rmap_next, pte) == 0:
                flags[pfn] &= np.uint16(0xFFFF ^ PG_REFERENCED)
            elif flags[pfn] & np.uint16(PG_REFERENCED):
                out[found] = pfn
                found += 1
            else:
                flags[pfn] |= np.uint16(PG_REFERENCED)
            pfn = after
    return found


@njit(cache=True)
def shrink_active_of(
    lru_active, nr, inside, group, head, tail, size, next_, prev, flags, rmap, rmap_next, pte
):
    """`shrink_active` of the frames whose group is one of `inside` (bool by group; `group` by frame)."""
    done = 0
    pfn = np.int64(tail[lru_active])
    while done < nr and pfn != NIL:
        before = np.int64(prev[pfn])
        if inside[group[pfn]]:
            lru_del(lru_active, pfn, head, tail, size, next_, prev, flags)
            referenced(pfn, rmap, rmap_next, pte)
            flags[pfn] &= np.uint16(0xFFFF ^ PG_ACTIVE)
            lru_add(lru_active - 1, pfn, head, tail, size, next_, prev, flags)
            done += 1
        pfn = before
    return done


@njit(cache=True)
def isolate_inactive_of(
    lru, nr_scan, inside, group, out, head, tail, size, next_, prev, flags, rmap, rmap_next, pte
):
    """`isolate_inactive` of the frames whose group is one of `inside`. Returns (frames of those groups looked at,
    frames taken, frames activated).
    """
    looked = 0
    taken = 0
    activated = 0
    steps = size[lru]
    pfn = np.int64(tail[lru])
    while steps > 0 and looked < nr_scan and pfn != NIL:
        before = np.int64(prev[pfn])
        steps -= 1
        if inside[group[pfn]]:
            lru_del(lru, pfn, head, tail, size, next_, prev, flags)
            looked += 1
            count = referenced(pfn, rmap, rmap_next, pte)
            was_referenced = flags[pfn] & np.uint16(PG_REFERENCED)
            flags[pfn] &= np.uint16(0xFFFF ^ PG_REFERENCED)
            if count == 0:
                out[taken] = pfn
                taken += 1
            elif was_referenced or count > 1:
                flags[pfn] |= np.uint16(PG_REFERENCED | PG_ACTIVE)
                lru_add(lru + 1, pfn, head, tail, size, next_, prev, flags)
                activated += 1
            else:
                flags[pfn] |= np.uint16(PG_REFERENCED)
                lru_add(lru, pfn, head, tail, size, next_, prev, flags)
        pfn = before
    return looked, taken, activated
