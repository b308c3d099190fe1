"""What compressed pages take in Linux's zsmalloc, the allocator behind zram.

Models `init_zs_size_classes`, `get_pages_per_zspage` and `can_merge` (mm/zsmalloc.c) of Linux 6.1, and the rule
of zram that a page which ends in a class of whole pages is kept raw. An object is rounded up to its size class;
objects of a class lie side by side in zspages of one to four pages. `used_bytes` is `mem_used_total` of a zram
that was only written to: every zspage of a class is full but the last. It is what the granules of our device can
be held against. Left out: fragmentation after frees, and compaction.
"""

from __future__ import annotations

import numpy as np

from privmem.scheduler.abi import PAGE_SIZE

#: `ZS_MIN_ALLOC_SIZE`, `ZS_SIZE_CLASS_DELTA` and `ZS_MAX_PAGES_PER_ZSPAGE` with pages of 4 KiB.
_MIN_BYTES, _STEP_BYTES, _ZSPAGE_PAGES_MAX = 32, 16, 4
#: `ZS_HANDLE_SIZE`: in front of every object that is not a whole page.
_HANDLE_BYTES = 8


def _pages_per_zspage(class_bytes: int) -> int:
    """The number of pages of which the class uses the greatest share, in whole percent; the smallest such."""
    used = [
        (nr * PAGE_SIZE - nr * PAGE_SIZE % class_bytes) * 100 // (nr * PAGE_SIZE)
        for nr in range(1, _ZSPAGE_PAGES_MAX + 1)
    ]
    return used.index(max(used)) + 1


def size_classes() -> list[tuple[int, int, int]]:
    """(bytes, pages of a zspage, objects of a zspage) by number of the class. Neighbours whose zspages hold equally
    many objects in equally many pages are one class, that of the largest.
    """
    classes: list[tuple[int, int, int]] = []
    for class_bytes in range(PAGE_SIZE, _MIN_BYTES - 1, -_STEP_BYTES):
        pages = _pages_per_zspage(class_bytes)
        shape = (pages, pages * PAGE_SIZE // class_bytes)
        merges = bool(classes) and classes[-1][1:] == shape
        classes.append(classes[-1] if merges else (class_bytes, *shape))
    return classes[::-1]


_CLASSES = size_classes()
#: `huge_class_size`: zram keeps a page that compresses to this or more raw.
HUGE_BYTES = max(c[0] for c in _CLASSES if c[1] != 1 and c[2] != 1) - (_HANDLE_BYTES - 1)


def kept_bytes(compressed: np.ndarray) -> np.ndarray:
    """`compr_data_size`, page by page: what zram keeps of pages that a codec makes this long (0: same-filled)."""
    return np.where(compressed >= HUGE_BYTES, PAGE_SIZE, compressed)


def used_bytes(compressed: np.ndarray) -> int:
    """`mem_used_total` of these pages."""
    kept = kept_bytes(compressed[compressed > 0])
    number = -(-np.maximum(kept + _HANDLE_BYTES - _MIN_BYTES, 0) // _STEP_BYTES)
    objects: dict[tuple[int, int, int], int] = {}
    for at, nr in enumerate(np.bincount(np.minimum(number, len(_CLASSES) - 1)).tolist()):
        objects[_CLASSES[at]] = objects.get(_CLASSES[at], 0) + nr
    return sum(-(-nr // shape[2]) * shape[1] * PAGE_SIZE for shape, nr in objects.items())
