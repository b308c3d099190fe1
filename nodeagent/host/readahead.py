"""Readahead of files: which pages come into the cache beside the one that is needed.

Models mm/readahead.c (`page_cache_sync_ra`, `page_cache_async_ra`, `ondemand_readahead`,
`force_page_cache_ra`, `page_cache_ra_unbounded`) and the readahead of faults in mm/filemap.c
(`do_sync_mmap_readahead`, `do_async_mmap_readahead`) of Linux 6.1, for a file system without large folios
(ext4). Sizes are in pages. All pages that are read ahead are there at once: the disk takes no time.

Readahead waits for no memory: where a page cannot be had it stops.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from privmem.nodeagent.host.page_alloc import NeedsExtent
from privmem.nodeagent.host.pagecache import MemObject, OpenFile

#: Faults that miss so much more often than they hit that nothing is read around any more (MMAP_LOTSAMISS).
MMAP_LOTSAMISS = 100
#: Largest request of the disk (`bdi->io_pages`: 1280 KiB where the device has no limit of its own).
IO_PAGES = 320
#: `force_page_cache_ra` reads 2 MiB at a time.
_CHUNK_PAGES = 512

#: Brings one page into the cache: its frame, or a negative errno.
Fill = Callable[[int], int]


def sync_readahead(holder: MemObject, file: OpenFile, index: int, nr_wanted: int, fill: Fill) -> None:
    """`page_cache_sync_ra`: a read of `nr_wanted` pages misses the cache at `index`."""
    if not file.ra_pages or file.random:
        force_readahead(holder, file, index, nr_wanted if file.ra_pages else 1, fill)
        return
    _ondemand(holder, file, index, nr_wanted, False, fill)


def async_readahead(holder: MemObject, file: OpenFile, index: int, nr_wanted: int, fill: Fill) -> None:
    """`page_cache_async_ra`: a reader has come to the page with the mark."""
    if file.ra_pages:
        holder.ahead.pop(index, None)
        _ondemand(holder, file, index, nr_wanted, True, fill)


def force_readahead(holder: MemObject, file: OpenFile, index: int, nr_pages: int, fill: Fill) -> None:
    """`force_page_cache_ra`: just these pages, as many as the disk takes at a time."""
    left = min(nr_pages, max(IO_PAGES, file.ra_pages))
    while left > 0:
        chunk = min(left, _CHUNK_PAGES)
        _read(holder, index, chunk, 0, fill)
        index, left = index + chunk, left - chunk


def mmap_miss(
    holder: MemObject, file: OpenFile, index: int, *, random: bool, sequential: bool, fill: Fill
) -> None:
    """`do_sync_mmap_readahead`: a fault misses the cache. The page itself may still be missing afterwards."""
    if random or not file.ra_pages:
        return
    if sequential:
        sync_readahead(holder, file, index, file.ra_pages, fill)
        return
    if file.mmap_miss < MMAP_LOTSAMISS * 10:
        file.mmap_miss += 1
    if file.mmap_miss > MMAP_LOTSAMISS:
        return
    file.start = max(0, index - file.ra_pages // 2)
    file.size, file.async_size = file.ra_pages, file.ra_pages // 4
    _read(holder, file.start, file.size, file.async_size, fill)


def mmap_hit(holder: MemObject, file: OpenFile, index: int, *, random: bool, fill: Fill) -> bool:
    """`do_async_mmap_readahead`: a fault finds its page. Whether it came to the mark, so that it is made
    again.
    """
    if random or not file.ra_pages:
        return False
    file.mmap_miss = max(0, file.mmap_miss - 1)
    if index not in holder.ahead:
        return False
    async_readahead(holder, file, index, file.ra_pages, fill)
    return True


def _ondemand(
    holder: MemObject, file: OpenFile, index: int, nr_wanted: int, at_mark: bool, fill: Fill
) -> None:
    """`ondemand_readahead`."""
    before = replace(file)
    most = file.ra_pages
    if nr_wanted > most and most < IO_PAGES:
        most = min(nr_wanted, IO_PAGES)
    if not _window(holder, file, index, nr_wanted, most, at_mark):
        if not at_mark:
            _read(holder, index, nr_wanted, 0, fill)
        return
    if index == file.start and file.size == file.async_size:
        # The read would come to its own mark at once: what that brings is merged into this.
        more = _next_size(file.size, most)
        if file.size + more <= most:
            file.async_size, file.size = more, file.size + more
        else:
            file.size, file.async_size = most, most >> 1
    done = _read(holder, file.start, file.size, file.async_size, fill)
    if not done and index not in holder.pages:  # the read is made again when there is memory
        file.start, file.size, file.async_size = before.start, before.size, before.async_size


def _window(holder: MemObject, file: OpenFile, index: int, nr_wanted: int, most: int, at_mark: bool) -> bool:
    """The window to read, into the file's state. False: there is none, the read is one of many small ones."""
    if index and index in (file.start + file.size - file.async_size, file.start + file.size):
        file.start += file.size
        # Never less than it was, as stable kernels have it (6.1.176 does).
        file.size = file.async_size = max(file.size, _next_size(file.size, most))
        return True
    if index and at_mark:
        start = _next_miss(holder, index + 1, most)
        if start - index > most:
            return False
        file.start = start
        file.size = file.async_size = _next_size(start - index + nr_wanted, most)
        return True
    sequential = file.next_read >= 0 and 0 <= index - file.next_read <= 1
    if index and nr_wanted <= most and not sequential:
        return _from_context(holder, file, index, nr_wanted, most)
    file.start, file.size = index, _first_size(nr_wanted, most)
    file.async_size = file.size - nr_wanted if file.size > nr_wanted else file.size
    return True


def _from_context(holder: MemObject, file: OpenFile, index: int, nr_wanted: int, most: int) -> bool:
    """`try_context_readahead`: the pages before this one are cached as a sequential reader would have left
    them.
    """
    history = index - 1 - _previous_miss(holder, index - 1, most)
    if history <= nr_wanted:
        return False
    if history >= index:
        history *= 2  # from the file's beginning on: a whole file is being read
    file.start, file.size, file.async_size = index, min(history + nr_wanted, most), 1
    return True


def _next_miss(holder: MemObject, index: int, most: int) -> int:
    """`page_cache_next_miss`."""
    for at in range(index, index + most):
        if at not in holder.pages:
            return at
    return index + most - 1


def _previous_miss(holder: MemObject, index: int, most: int) -> int:
    """`page_cache_prev_miss`."""
    for at in range(index, index - most, -1):
        if at not in holder.pages:
            return at
    return index - most + 1


def _first_size(nr_wanted: int, most: int) -> int:
    """`get_init_ra_size`."""
    size = 1 << (nr_wanted - 1).bit_length()
    if size <= most // 32:
        return size * 4
    return size * 2 if size <= most // 4 else most


def _next_size(size: int, most: int) -> int:
    """`get_next_ra_size`."""
    if size < most // 16:
        return 4 * size
    return 2 * size if size <= most // 2 else most


def _read(holder: MemObject, index: int, nr_pages: int, nr_ahead: int, fill: Fill) -> bool:
    """`do_page_cache_ra`: the pages of [index, index + nr_pages) that are in the file and not cached; the one
    before the last `nr_ahead` gets the mark, if it is among them. False when memory must be waited for.
    """
    nr_pages = min(nr_pages, holder.nr_pages - index)
    for at in range(nr_pages):
        if index + at in holder.pages:
            continue
        try:
            if fill(index + at) < 0:
                return True
        except NeedsExtent:
            return False
        if at == nr_pages - nr_ahead:
            holder.ahead[index + at] = None
    return True
