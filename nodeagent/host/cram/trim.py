"""Telling the device to forget pages: the driver's trim callback, and zeros where it fails.

The callback answers 0, -EAGAIN with a result for each page (the ones that failed are tried again, eight
times), or -EBUSY. In F3 a chunk is trimmed as a whole or overwritten with zeros as a whole; in F1 only the
pages that failed are.
"""

from __future__ import annotations

import errno

from privmem.nodeagent.host.cram.service import CramNode, Generation

#: How often pages that failed are tried again.
TRIM_RETRIES = 8


def trim(cram: CramNode, nr_pages: int, generation: Generation) -> int:
    """A chunk that the balloon took. How many of its pages were overwritten with zeros instead."""
    left = nr_pages
    for _ in range(1 + TRIM_RETRIES):
        answer, left = _call(cram, left)
        if not left or answer == -errno.EBUSY:
            break
    if left and generation is Generation.F3:
        left = nr_pages
    cram.trimmed_pages += nr_pages - left
    cram.zeroed_pages += left
    return left


def _call(cram: CramNode, nr_pages: int) -> tuple[int, int]:
    """The driver's callback: its answer, and how many pages it did not trim."""
    if cram.trim_failures <= 0:
        return 0, 0
    cram.trim_failures -= 1
    if cram.trim_error == -errno.EAGAIN:
        return cram.trim_error, min(cram.trim_bad_pages, nr_pages)
    return cram.trim_error, nr_pages if cram.trim_error else 0
