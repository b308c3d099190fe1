"""mremap: a mapping grows, shrinks, or goes to another address with its pages.

Models `mremap`, `vma_to_resize`, `move_vma` and `mremap_to` (mm/mremap.c) of Linux 6.1. The pages keep their
frames and, for interleaving, the page numbers that they had (`vm_pgoff`). Left out: hugetlb mappings
(-EINVAL), limits.
"""

from __future__ import annotations

import errno
from dataclasses import replace

from privmem.nodeagent.host import huge_split, hugetlb_map, syscalls
from privmem.nodeagent.host.high_order import HPAGE_PAGES
from privmem.nodeagent.host.memory import Memory
from privmem.nodeagent.host.mm import VMA_ANON, VMA_OBJECT, Vma
from privmem.nodeagent.host.mmap import TASK_PAGES, free_address
from privmem.nodeagent.host.populate import mm_populate
from privmem.nodeagent.host.task import Task

MREMAP_MAYMOVE = 1
MREMAP_FIXED = 2
MREMAP_DONTUNMAP = 4


def mremap(
    memory: Memory, task: Task, addr: int, old_pages: int, new_pages: int, flags: int = 0, new_addr: int = 0
) -> int:
    """The first page's number after the change, or a negative errno. Addresses are page numbers."""
    if flags & ~(MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP) or new_pages <= 0:
        return -errno.EINVAL
    if flags & (MREMAP_FIXED | MREMAP_DONTUNMAP) and not flags & MREMAP_MAYMOVE:
        return -errno.EINVAL
    if flags & MREMAP_DONTUNMAP and old_pages != new_pages:
        return -errno.EINVAL
    vma = task.mm.find(addr)
    if vma is None:
        return -errno.EFAULT
    if hugetlb_map.is_hugetlb(memory, vma):
        return -errno.EINVAL
    if flags & (MREMAP_FIXED | MREMAP_DONTUNMAP):
        return _to(memory, task, addr, old_pages, new_pages, flags, new_addr)
    if old_pages >= new_pages:
        if old_pages > new_pages:
            syscalls.munmap(memory, task, addr + new_pages, old_pages - new_pages)
        return addr
    last = task.mm.pieces(vma)[-1]
    error = _resize_error(last, addr, old_pages, new_pages)
    if error:
        return error
    if old_pages and addr + old_pages == last.end and _is_free(task, last.end, new_pages - old_pages):
        _append(memory, task, last.cut(max(addr, last.start), last.end), last.end, new_pages - old_pages)
        return addr
    if not flags & MREMAP_MAYMOVE:
        return -errno.ENOMEM
    return _move(memory, task, addr, old_pages, new_pages, free_address(task.mm, new_pages), False)


def _to(
    memory: Memory, task: Task, addr: int, old_pages: int, new_pages: int, flags: int, new_addr: int
) -> int:
    """`mremap_to`: to a given place, or (MREMAP_DONTUNMAP alone) to one that the kernel finds."""
    if new_pages > TASK_PAGES or new_addr > TASK_PAGES - new_pages:
        return -errno.EINVAL
    if addr + old_pages > new_addr and new_addr + new_pages > addr:
        return -errno.EINVAL
    if flags & MREMAP_FIXED:
        error = syscalls.munmap(memory, task, new_addr, new_pages)
        if error:
            return error
    if old_pages > new_pages:
        error = syscalls.munmap(memory, task, addr + new_pages, old_pages - new_pages)
        if error:
            return error
        old_pages = new_pages
    vma = task.mm.find(addr)
    if vma is None:  # it was where the new place is
        return -errno.EFAULT
    error = _resize_error(task.mm.pieces(vma)[-1], addr, old_pages, new_pages)
    if error:
        return error
    if not flags & MREMAP_FIXED:
        new_addr = free_address(task.mm, new_pages)
    return _move(memory, task, addr, old_pages, new_pages, new_addr, bool(flags & MREMAP_DONTUNMAP))


def _resize_error(vma: Vma, addr: int, old_pages: int, new_pages: int) -> int:
    """`vma_to_resize`: one VMA only, of which this is the last piece; an empty old range means a second mapping of
    the same, which must be shared.
    """
    if old_pages == 0 and vma.private:
        return -errno.EINVAL
    if addr + old_pages > vma.end:
        return -errno.EFAULT
    if vma.device_nid >= 0 and old_pages != new_pages:
        return -errno.EFAULT
    return 0 if new_pages <= TASK_PAGES else -errno.ENOMEM


def _is_free(task: Task, start: int, nr_pages: int) -> bool:
    return start + nr_pages <= TASK_PAGES and not task.mm.in_range(start, start + nr_pages)


def _append(memory: Memory, task: Task, last: Vma, start: int, nr_pages: int) -> None:
    """More pages of what `last` maps, from page `start` on, which is free."""
    index = last.index + last.nr_pages if last.kind == VMA_OBJECT else last.index
    source = memory.page_cache.of(last.object_id).source if last.kind == VMA_OBJECT else 0
    slot = memory.page_table.take(nr_pages, task.mm.mm_id, start, source, index)
    more = replace(last, start=start, end=start + nr_pages, slot=slot, index=index)
    syscalls.count_mapping(memory, more, nr_pages)
    if more.locked:
        memory.locked_slots.add(more.slot, nr_pages)
    task.mm.replace_range(start, start + nr_pages, [more])
    if more.locked:
        mm_populate(memory, task, start, nr_pages, ignore_errors=True)


def _move(
    memory: Memory, task: Task, addr: int, old_pages: int, new_pages: int, new_addr: int, keep: bool
) -> int:
    """`move_vma`: the pages with their slots change their address; `keep` leaves an empty mapping behind."""
    if old_pages == 0:
        return _map_again(memory, task, addr, new_pages, new_addr)
    parts = task.mm.in_range(addr, addr + old_pages)
    there = [_bring(memory, part, new_addr + part.start - addr) for part in parts]
    task.mm.replace_range(addr, addr + old_pages, [])
    if keep:
        for part in parts:
            left = replace(part, locked=False, on_fault=False)
            left = replace(left, slot=memory.page_table.take(part.nr_pages, task.mm.mm_id, part.start))
            syscalls.count_mapping(memory, left, part.nr_pages)
            task.mm.replace_range(part.start, part.end, [left])
    task.mm.replace_range(new_addr, new_addr + old_pages, there)
    if new_pages > old_pages:
        _append(memory, task, there[-1], new_addr + old_pages, new_pages - old_pages)
    return new_addr


def _bring(memory: Memory, part: Vma, new_addr: int) -> Vma:
    """`move_page_tables` of what has its slots in one place. Anonymous memory keeps its page numbers from the first
    private page on (`copy_vma`).
    """
    huge_split.split(memory, part.slot, part.nr_pages)
    if (new_addr - part.start) % HPAGE_PAGES:  # huge mappings need their borders
        for first in list(memory.high_order.huge_maps.overlapping(part.slot, part.nr_pages)):
            huge_split.split(memory, first)
    memory.page_table.move(part.slot, part.nr_pages, new_addr)
    if memory.story is not None:
        memory.story.remapped(part.slot, part.nr_pages)
    moved = part.moved + part.start - new_addr if part.kind == VMA_ANON and part.anon_vma else 0
    return replace(part, start=new_addr, end=new_addr + part.nr_pages, moved=moved)


def _map_again(memory: Memory, task: Task, addr: int, new_pages: int, new_addr: int) -> int:
    vma = task.mm.find(addr)
    assert vma is not None  # `mremap` found it
    index = vma.index + addr - vma.start
    source = memory.page_cache.of(vma.object_id).source
    slot = memory.page_table.take(new_pages, task.mm.mm_id, new_addr, source, index)
    again = replace(vma, start=new_addr, end=new_addr + new_pages, slot=slot, index=index, locked=False)
    syscalls.count_mapping(memory, again, new_pages)
    task.mm.replace_range(again.start, again.end, [again])
    return new_addr
