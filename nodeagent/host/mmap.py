"""mmap with its flags and rights, and where a mapping goes when the caller names no place.

Models `do_mmap` and `get_unmapped_area` (mm/mmap.c) of Linux 6.1. A kernel-chosen address is the lowest gap
above `MMAP_BASE` that is wide enough: Linux goes from the top downwards and randomizes, which decides nothing
here. MAP_NORESERVE changes nothing, for memory is overcommitted without limit. Left out: huge pages
(hugetlb_map.py), files of devices (drivers/), MAP_GROWSDOWN, MAP_SYNC, limits.
"""

from __future__ import annotations

import errno
from dataclasses import replace

from privmem.nodeagent.host import syscalls
from privmem.nodeagent.host.memory import Memory
from privmem.nodeagent.host.mlock import lock_vma
from privmem.nodeagent.host.mm import Mm
from privmem.nodeagent.host.mprotect import PROT_EXEC, PROT_READ, PROT_WRITE
from privmem.nodeagent.host.pagecache import OpenFile
from privmem.nodeagent.host.populate import mm_populate
from privmem.nodeagent.host.task import Task

MAP_SHARED = 0x01
MAP_PRIVATE = 0x02
MAP_SHARED_VALIDATE = 0x03
_MAP_TYPE = 0x0F
MAP_FIXED = 0x10
MAP_ANONYMOUS = 0x20
MAP_LOCKED = 0x2000
MAP_NORESERVE = 0x4000
MAP_POPULATE = 0x8000
MAP_NONBLOCK = 0x10000
MAP_STACK = 0x20000
MAP_FIXED_NOREPLACE = 0x100000

#: Flags that MAP_SHARED_VALIDATE knows (`LEGACY_MAP_MASK`, and those of later date that any file has).
_VALIDATED = 0x1FF7F | MAP_STACK | MAP_FIXED_NOREPLACE

#: Page from which on the kernel looks for a gap, and one past the last page of an address space.
MMAP_BASE = 0x7000_0000_0000 >> 12
TASK_PAGES = 0x7FFF_FFFF_F000 >> 12


def mmap(
    memory: Memory,
    task: Task,
    addr: int,
    nr_pages: int,
    prot: int,
    flags: int,
    file: OpenFile | None = None,
    index: int = 0,
) -> int:
    """Map `nr_pages` pages, anonymous or from page `index` of an open file. The first page's number, or an
    errno.

    `addr` is a page number: taken as it is with MAP_FIXED, a wish otherwise; 0 for none.
    """
    if nr_pages <= 0:
        return -errno.EINVAL
    if nr_pages > TASK_PAGES:
        return -errno.ENOMEM
    fixed = bool(flags & (MAP_FIXED | MAP_FIXED_NOREPLACE))
    start = addr if fixed else wished_address(task.mm, addr, nr_pages)
    if start < 0 or start + nr_pages > TASK_PAGES:
        return -errno.ENOMEM
    if flags & MAP_FIXED_NOREPLACE and task.mm.in_range(start, start + nr_pages):
        return -errno.EEXIST
    shared = flags & _MAP_TYPE in (MAP_SHARED, MAP_SHARED_VALIDATE)
    error = _type_error(flags, file) or (_file_error(file, shared, prot, flags) if file else 0)
    if not error:
        error = _map(memory, task, start, nr_pages, shared, file, index)
    if error:
        return error
    _set_rights(memory, task, start, nr_pages, prot, shared and file is not None and not file.can_write)
    _lock_and_populate(memory, task, start, nr_pages, flags)
    return start


def wished_address(mm: Mm, addr: int, nr_pages: int) -> int:
    """`arch_get_unmapped_area`: the wish, if there is room and it is no low address; else the kernel's
    choice.
    """
    if addr >= 16 and addr + nr_pages <= TASK_PAGES and not mm.in_range(addr, addr + nr_pages):
        return addr
    return free_address(mm, nr_pages)


def free_address(mm: Mm, nr_pages: int) -> int:
    """First page of the lowest gap above the base that is wide enough."""
    vpn = MMAP_BASE
    for vma in mm.vmas:
        if vma.start < vpn + nr_pages and vma.end > vpn:
            vpn = vma.end
    return vpn


def _type_error(flags: int, file: OpenFile | None) -> int:
    if flags & _MAP_TYPE not in (MAP_SHARED, MAP_PRIVATE, MAP_SHARED_VALIDATE):
        return -errno.EINVAL
    if flags & _MAP_TYPE == MAP_SHARED_VALIDATE:
        if file is None:
            return -errno.EINVAL
        if flags & ~_VALIDATED:
            return -errno.EOPNOTSUPP
    return 0


def _file_error(file: OpenFile, shared: bool, prot: int, flags: int) -> int:
    """A shared mapping is written into the file, so that it must be open for that; every mapping reads it."""
    if shared and prot & PROT_WRITE and not file.can_write:
        return -errno.EACCES
    return 0 if file.can_read else -errno.EACCES


def _map(
    memory: Memory, task: Task, start: int, nr_pages: int, shared: bool, file: OpenFile | None, index: int
) -> int:
    if file is not None:
        return syscalls.mmap_file(memory, task, start, nr_pages, file, not shared, index)
    if shared:
        return syscalls.mmap_shared(memory, task, start, nr_pages)
    return syscalls.mmap_anon(memory, task, start, nr_pages)


def _set_rights(
    memory: Memory, task: Task, start: int, nr_pages: int, prot: int, read_only_file: bool
) -> None:
    (vma,) = task.mm.in_range(start, start + nr_pages)
    changed = replace(
        vma,
        readable=bool(prot & (PROT_READ | PROT_EXEC)),
        writable=bool(prot & PROT_WRITE),
        may_write=not read_only_file,
    )
    task.mm.replace_range(start, start + nr_pages, [changed])


def _lock_and_populate(memory: Memory, task: Task, start: int, nr_pages: int, flags: int) -> None:
    """VM_LOCKED comes from MAP_LOCKED or mlockall(MCL_FUTURE). Pages that cannot be had do not matter to
    mmap.
    """
    future = task.mm.lock_future
    if flags & MAP_LOCKED or future:
        for part in task.mm.in_range(start, start + nr_pages):
            lock_vma(memory, task, part, True, future == 2)
    if flags & MAP_LOCKED or future or flags & (MAP_POPULATE | MAP_NONBLOCK) == MAP_POPULATE:
        mm_populate(memory, task, start, nr_pages, ignore_errors=True)
