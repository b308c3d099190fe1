"""Readahead of files: which pages come into the cache beside the one that is needed.

Models mm/readahead.c (`page_cache_sync_ra`, `page_cache_async_ra`, `ondemand_readahead`,
`force_page_cache_ra`, `page_cache_ra_unbounded`) and the readahead of faults in mm/filemap.c
(`do_sync_mmap_readahead`, `do_async_mmap_readahead`) of Linux 6.1, for a file system without large folios
(ext4). Sizes are in pages. All pages that are read ahead are there at once: the disk takes no time.

Readahead waits for no memory: where a page cannot be had it stops.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from privmem.nodeagent.host.page_alloc import NeedsExtent
from privmem.nodeagent.host.pagecache import MemObject, OpenFile
from privmem.scheduler.versions import LINUX_6_1, KernelVersion

#: Faults that miss so much more often than they hit that nothing is read around any more (MMAP_LOTSAMISS).
MMAP_LOTSAMISS = 100
#: Largest request of the disk (`bdi->io_pages`: 1280 KiB where the device has no limit of its own).
IO_PAGES = 320
#: `force_page_cache_ra` reads 2 MiB at a time.
_CHUNK_PAGES = 512

#: Brings one page into the cache: its frame, or a negative errno.
Fill = Callable[[int], int]


@dataclass(frozen=True, slots=True)
class ReadaheadControl:
    """`struct readahead_control`: who reads what."""

    holder: MemObject
    file: OpenFile
    fill: Fill
    linux: KernelVersion = LINUX_6_1


def sync_readahead(ractl: ReadaheadControl, index: int, nr_wanted: int) -> None:
    """`page_cache_sync_ra`: a read of `nr_wanted` pages misses the cache at `index`."""
    if not ractl.file.ra_pages or ractl.file.random:
        force_readahead(ractl, index, nr_wanted if ractl.file.ra_pages else 1)
    else:
        _ondemand(ractl, index, nr_wanted, False)


def async_readahead(ractl: ReadaheadControl, index: int, nr_wanted: int) -> None:
    """`page_cache_async_ra`: a reader has come to the page with the mark."""
    if ractl.file.ra_pages:
        ractl.holder.ahead.pop(index, None)
        _ondemand(ractl, index, nr_wanted, True)


def force_readahead(ractl: ReadaheadControl, index: int, nr_pages: int) -> None:
    """`force_page_cache_ra`: just these pages, as many as the disk takes at a time."""
    left = min(nr_pages, max(IO_PAGES, ractl.file.ra_pages))
    while left > 0:
        chunk = min(left, _CHUNK_PAGES)
        _read(ractl, index, chunk, 0)
        index, left = index + chunk, left - chunk


def mmap_miss(ractl: ReadaheadControl, index: int, *, random: bool, sequential: bool) -> None:
    """`do_sync_mmap_readahead`: a fault misses the cache. The page itself may still be missing afterwards."""
    file = ractl.file
    if random or not file.ra_pages:
        return
    if sequential:
        sync_readahead(ractl, index, file.ra_pages)
        return
    if file.mmap_miss < MMAP_LOTSAMISS * 10:
        file.mmap_miss += 1
    if file.mmap_miss > MMAP_LOTSAMISS:
        return
    file.start = max(0, index - file.ra_pages // 2)
    file.size, file.async_size = file.ra_pages, file.ra_pages // 4
    _read(ractl, file.start, file.size, file.async_size)


def mmap_hit(ractl: ReadaheadControl, index: int, *, random: bool) -> bool:
    """`do_async_mmap_readahead`: a fault finds its page. Whether it came to the mark, so that it is made
    again.
    """
    file = ractl.file
    if random or not file.ra_pages:
        return False
    file.mmap_miss = max(0, file.mmap_miss - 1)
    if index not in ractl.holder.ahead:
        return False
    async_readahead(ractl, index, file.ra_pages)
    return True


def _ondemand(ractl: ReadaheadControl, index: int, nr_wanted: int, at_mark: bool) -> None:
    """`ondemand_readahead`."""
    file = ractl.file
    before = replace(file)
    most = file.ra_pages
    if nr_wanted > most and most < IO_PAGES:
        most = min(nr_wanted, IO_PAGES)
    if ractl.linux.readahead_in_two:
        found = (
            _at_mark(ractl, index, nr_wanted, most) if at_mark else _at_miss(ractl, index, nr_wanted, most)
        )
    else:
        found = _window(ractl, index, nr_wanted, most, at_mark)
    if not found:
        if not at_mark:
            _read(ractl, index, nr_wanted, 0)
        return
    done = _read(ractl, file.start, file.size, file.async_size)
    if not done and index not in ractl.holder.pages:  # the read is made again when there is memory
        file.start, file.size, file.async_size = before.start, before.size, before.async_size


def _window(ractl: ReadaheadControl, index: int, nr_wanted: int, most: int, at_mark: bool) -> bool:
    """The window to read, into the file's state. False: there is none, the read is one of many small ones."""
    file = ractl.file
    if index and (at_mark or index in (file.start + file.size - file.async_size, file.start + file.size)):
        found = _at_mark(ractl, index, nr_wanted, most)
    else:
        found = _at_miss(ractl, index, nr_wanted, most)
    if found and index == file.start and file.size == file.async_size:
        # The read would come to its own mark at once: what that brings is merged into this.
        more = _next_size(file.size, most)
        if file.size + more <= most:
            file.async_size, file.size = more, file.size + more
        else:
            file.size, file.async_size = most, most >> 1
    return found


def _at_mark(ractl: ReadaheadControl, index: int, nr_wanted: int, most: int) -> bool:
    """A reader is where the last window wanted it to be, or at the mark of somebody else's."""
    file = ractl.file
    expected = [file.start + file.size - file.async_size]
    if not ractl.linux.readahead_in_two:
        expected.append(file.start + file.size)
    if index in expected:
        file.start += file.size
        # Never less than it was, as stable kernels have it (6.1.176 does).
        file.size = file.async_size = max(file.size, _next_size(file.size, most))
        return True
    start = _next_miss(ractl, index + 1, most)
    if start - index > most:
        return False
    file.start = start
    file.size = file.async_size = _next_size(start - index + nr_wanted, most)
    return True


def _at_miss(ractl: ReadaheadControl, index: int, nr_wanted: int, most: int) -> bool:
    """The start of a file, a read larger than any window, or one that follows the last; otherwise by context."""
    file = ractl.file
    sequential = file.next_read >= 0 and 0 <= index - file.next_read <= 1
    if index and nr_wanted <= most and not sequential:
        return _from_context(ractl.holder, file, index, nr_wanted, most)
    file.start, file.size = index, _first_size(nr_wanted, most)
    if file.size > nr_wanted:
        file.async_size = file.size - nr_wanted
    else:
        file.async_size = file.size >> 1 if ractl.linux.readahead_in_two else file.size
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


def _next_miss(ractl: ReadaheadControl, index: int, most: int) -> int:
    """`page_cache_next_miss`. Where all are cached, 6.1 names the last one, as if it were missing."""
    for at in range(index, index + most):
        if at not in ractl.holder.pages:
            return at
    return index + most - (not ractl.linux.no_miss_is_outside)


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


def _read(ractl: ReadaheadControl, index: int, nr_pages: int, nr_ahead: int) -> bool:
    """`do_page_cache_ra`: the pages of [index, index + nr_pages) that are in the file and not cached; the one
    before the last `nr_ahead` gets the mark, if it is among them. False when memory must be waited for.
    """
    holder = ractl.holder
    nr_pages = min(nr_pages, holder.nr_pages - index)
    for at in range(nr_pages):
        if index + at in holder.pages:
            continue
        try:
            if ractl.fill(index + at) < 0:
                return True
        except NeedsExtent:
            return False
        if at == nr_pages - nr_ahead:
            holder.ahead[index + at] = None
    return True
