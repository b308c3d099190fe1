"""madvise about how a mapping will be read: MADV_NORMAL, RANDOM, SEQUENTIAL, and WILLNEED of mapped files.

Models `madvise_vma_behavior` and `madvise_willneed` of Linux 6.1. Calls return 0, or -ENOMEM after all the
work when part of the range is not mapped. WILLNEED of anonymous and shared memory is about swap (madvise.py).
"""

from __future__ import annotations

import errno
from dataclasses import replace

from privmem.nodeagent.host import huge_split, hugetlb_map
from privmem.nodeagent.host.file_io import will_need
from privmem.nodeagent.host.memory import Memory
from privmem.nodeagent.host.mm import Vma
from privmem.nodeagent.host.task import Task

MADV_NORMAL = 0
MADV_RANDOM = 1
MADV_SEQUENTIAL = 2
MADV_WILLNEED = 3


def madvise_order(memory: Memory, task: Task, start: int, nr_pages: int, advice: int) -> int:
    """MADV_NORMAL, MADV_RANDOM, MADV_SEQUENTIAL: what faults read ahead from now on."""
    parts = task.mm.in_range(start, start + nr_pages)
    for part in parts:
        if hugetlb_map.cuts_a_page(memory, task, part.start, part.end):
            return -errno.EINVAL
        huge_split.split(memory, part.slot, part.nr_pages)
        changed = replace(part, random=advice == MADV_RANDOM, sequential=advice == MADV_SEQUENTIAL)
        task.mm.replace_range(part.start, part.end, [changed])
    return _hole_error(parts, nr_pages)


def madvise_willneed_files(memory: Memory, task: Task, start: int, nr_pages: int) -> int:
    """MADV_WILLNEED: pages of mapped files are read, as by posix_fadvise."""
    parts = task.mm.in_range(start, start + nr_pages)
    for part in parts:
        if part.file_id:
            file = memory.page_cache.open_files[part.file_id]
            will_need(memory, task, file, part.index, part.index + part.nr_pages)
    return _hole_error(parts, nr_pages)


def _hole_error(parts: list[Vma], nr_pages: int) -> int:
    return 0 if sum(part.nr_pages for part in parts) == nr_pages else -errno.ENOMEM
