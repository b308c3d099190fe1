"""System calls of open files: read, write, fsync, posix_fadvise, ftruncate, and mincore.

Models `generic_file_read_iter`, `generic_perform_write`, `generic_fadvise`, `truncate_pagecache`,
`kiocb_invalidate_pages` and `do_mincore` of Linux 6.1 on a file system like ext4 with 4 KiB pages. Lengths
are in pages. A buffered write of a whole page reads nothing and leaves the page dirty; it becomes clean with
fsync, sync or reclaim. Left out: parts of pages, throttling of writers (`balance_dirty_pages`), the dirty
limit of a node (`__GFP_WRITE`), holes, write-back by itself after a while.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable

import numpy as np

from privmem.nodeagent.host import readahead
from privmem.nodeagent.host.cram import fence
from privmem.nodeagent.host.fault import remove_mapping, unmap_range
from privmem.nodeagent.host.filemap import fill, invalidate, read_cached, release, write_back
from privmem.nodeagent.host.layout import PG_DIRTY, PTE_PRESENT
from privmem.nodeagent.host.memory import Memory
from privmem.nodeagent.host.mm import VMA_ANON, Vma
from privmem.nodeagent.host.pagecache import FILE, SHMEM, MemObject, OpenFile
from privmem.nodeagent.host.task import Task

POSIX_FADV_NORMAL = 0
POSIX_FADV_RANDOM = 1
POSIX_FADV_SEQUENTIAL = 2
POSIX_FADV_WILLNEED = 3
POSIX_FADV_DONTNEED = 4
POSIX_FADV_NOREUSE = 5


def read(memory: Memory, task: Task, file: OpenFile, start: int, nr_pages: int) -> int:
    """`pread` of `nr_pages` from page `start` on: how many were read, -EBADF, or -ENOMEM when the first page
    finds no memory. O_DIRECT reads what was written so far, and leaves the page cache as it is.
    """
    if not file.can_read:
        return -errno.EBADF
    holder = memory.page_cache.of(file.object_id)
    if not file.direct:
        return read_cached(memory, task, file, start, nr_pages)
    write_back(memory, holder, start, start + nr_pages)
    return max(0, min(nr_pages, holder.nr_pages - start))


def write(memory: Memory, task: Task, file: OpenFile, start: int, nr_pages: int) -> int:
    """`pwrite` of whole pages; the file grows as needed. How many pages were written, -EBADF, or -ENOMEM when
    the first one finds no memory.
    """
    if not file.can_write:
        return -errno.EBADF
    holder = memory.page_cache.of(file.object_id)
    if file.direct:
        write_back(memory, holder, start, start + nr_pages)
        invalidate_mapped(memory, holder, start, start + nr_pages)
        for index in range(start, start + nr_pages):
            holder.on_disk[index] = holder.on_disk.get(index, 0) + 1 & 0xFFFF
        holder.nr_pages = max(holder.nr_pages, start + nr_pages)
        return nr_pages
    for index in range(start, start + nr_pages):
        error = _write_page(memory, task, holder, index)
        if error:
            return index - start or error
        holder.nr_pages = max(holder.nr_pages, index + 1)
    return nr_pages


def _write_page(memory: Memory, task: Task, holder: MemObject, index: int) -> int:
    """`ext4_da_write_begin` and `_end`. A page on a write-fenced node moves off it first, or, where the service
    drops what nobody maps (`drops_on_write`), makes room for a new one.
    """
    pfn = holder.pages[index] if index in holder.pages else fill(memory, task, holder, index)
    if pfn >= 0 and memory.nodes[memory.frames.nid_of(pfn)].fenced:
        if memory.cram.drops_on_write and not memory.frames.rmap[pfn] and pfn not in memory.high_order.pins:
            memory.lru_batches.drain_all()
            release(memory, holder, index)
            pfn = fill(memory, task, holder, index)
        else:
            pfn = fence.promote(memory, pfn, task.promotion_context())
    if pfn < 0:
        return pfn
    memory.frames.flags[pfn] |= np.uint16(PG_DIRTY)
    return 0


def splice(memory: Memory, task: Task, file: OpenFile, start: int, nr_pages: int) -> int:
    """`splice` of a file's pages into a pipe, which may give them away for good: those of a write-fenced node
    move off it first. How many, or a negative errno.
    """
    done = read(memory, task, file, start, nr_pages)
    holder = memory.page_cache.of(file.object_id)
    for index in range(start, start + max(done, 0)):
        pfn = holder.pages.get(index, -1)
        if pfn >= 0 and memory.nodes[memory.frames.nid_of(pfn)].fenced:
            pfn = fence.promote(memory, pfn, task.promotion_context())
            if pfn < 0:
                return index - start or pfn
    return done


def fsync(memory: Memory, file: OpenFile) -> int:
    """`fsync`: 0; all pages of the file are clean."""
    holder = memory.page_cache.of(file.object_id)
    write_back(memory, holder, 0, holder.nr_pages)
    return 0


def fadvise(memory: Memory, task: Task, file: OpenFile, start: int, nr_pages: int, advice: int) -> int:
    """`posix_fadvise` of pages [start, start + nr_pages), to the end of the file for 0: 0 or -EINVAL."""
    holder = memory.page_cache.of(file.object_id)
    usual = memory.page_cache.readahead_pages
    end = start + nr_pages if nr_pages else max(start, holder.nr_pages)
    if advice == POSIX_FADV_NORMAL:
        file.ra_pages, file.random = usual, False
    elif advice == POSIX_FADV_RANDOM:
        file.random = True
    elif advice == POSIX_FADV_SEQUENTIAL:
        file.ra_pages, file.random = 2 * usual, False
    elif advice == POSIX_FADV_WILLNEED:
        will_need(memory, task, file, start, end)
    elif advice == POSIX_FADV_DONTNEED:
        write_back(memory, holder, start, end)
        memory.lru_batches.drain_all()
        invalidate(memory, holder, start, end)
    elif advice != POSIX_FADV_NOREUSE:
        return -errno.EINVAL
    return 0


def will_need(memory: Memory, task: Task, file: OpenFile, start: int, end: int) -> None:
    """POSIX_FADV_WILLNEED, and MADV_WILLNEED of a mapped file: as many pages as the disk takes at a time."""
    holder = memory.page_cache.of(file.object_id)
    ractl = readahead.ReadaheadControl(holder, file, lambda at: fill(memory, task, holder, at))
    readahead.force_readahead(ractl, start, end - start)


def invalidate_mapped(memory: Memory, holder: MemObject, start: int, end: int) -> None:
    """`invalidate_inode_pages2_range`: clean pages of [start, end) go, and with them their mappings; a page
    that is pinned stays.
    """
    for index in sorted(i for i in holder.pages if start <= i < end):
        pfn = holder.pages[index]
        if pfn in memory.high_order.pins:
            continue
        _unmap_all(memory, pfn)
        release(memory, holder, index)


def _unmap_all(memory: Memory, pfn: int) -> None:
    """`unmap_mapping_folio`."""
    while memory.frames.rmap[pfn]:
        remove_mapping(memory, int(memory.frames.rmap[pfn]))


def truncate(memory: Memory, tasks: Iterable[Task], file: OpenFile, nr_pages: int) -> int:
    """`ftruncate` to so many pages: 0, or -EINVAL for a file that is not open for writing. What is mapped
    beyond the new end goes in all `tasks`, private copies too (`unmap_mapping_range`).
    """
    if not file.can_write or nr_pages < 0:
        return -errno.EINVAL
    holder = memory.page_cache.of(file.object_id)
    for task in tasks:
        for vma in task.mm.vmas:
            if vma.object_id == holder.object_id and vma.index + vma.nr_pages > nr_pages:
                cut = max(vma.start, vma.start + nr_pages - vma.index)
                unmap_range(memory, vma.cut(cut, vma.end), task.cpu)
    for index in sorted(i for i in holder.pages if i >= nr_pages):
        pfn = holder.pages[index]
        _unmap_all(memory, pfn)
        release(memory, holder, index)
    holder.nr_pages = nr_pages
    holder.on_disk = {index: version for index, version in holder.on_disk.items() if index < nr_pages}
    memory.literal.truncated(holder.object_id, nr_pages)
    return 0


def mincore(memory: Memory, task: Task, start: int, nr_pages: int) -> tuple[int, list[int]]:
    """`mincore`: (0, whether each page is in memory), or -ENOMEM with an empty list for a hole. In a mapping
    of a file or of shared memory a page counts that is cached, whoever uses it.
    """
    found: list[int] = []
    for part in task.mm.in_range(start, start + nr_pages):
        if part.start != start + len(found):
            break
        found += _in_core(memory, part)
    return (0, found) if len(found) == nr_pages else (-errno.ENOMEM, [])


def _in_core(memory: Memory, part: Vma) -> list[int]:
    entries = memory.page_table.pte[part.slot : part.slot + part.nr_pages]
    cached: dict[int, int] = {}
    if part.kind != VMA_ANON and memory.page_cache.of(part.object_id).kind in (FILE, SHMEM):
        cached = memory.page_cache.of(part.object_id).pages
    here = (entries & np.uint32(PTE_PRESENT)) != 0
    return [int(bool(here[at]) or part.index + at in cached) for at in range(part.nr_pages)]
