"""Zone watermarks: how many free pages each kind of allocation leaves, and when kswapd wakes and sleeps.

Models `calculate_min_free_kbytes` and `__setup_per_zone_wmarks` of `mm/page_alloc.c`, Linux 6.1, in
integers. Zones of kind movable get a fixed minimum and do not count as low memory: that part is as of Linux
6.6 (6.1 without highmem treats them as normal zones). Left out: watermark boost, lowmem_reserve, highatomic
reserve.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt

from privmem.scheduler.abi import PAGE_SHIFT, PAGE_SIZE

#: `watermark_scale_factor` sysctl default, in fractions of 10000 of a zone.
WATERMARK_SCALE_FACTOR = 10
_SCALE_UNIT = 10000
#: Bounds of the computed min_free_kbytes, `calculate_min_free_kbytes`.
_MIN_FREE_KBYTES_LEAST = 128
_MIN_FREE_KBYTES_MOST = 262144
#: Bounds of a movable zone's minimum: SWAP_CLUSTER_MAX and 128 pages.
_MOVABLE_MIN_LEAST = 32
_MOVABLE_MIN_MOST = 128
_MOVABLE_SHARE = 1024


@dataclass(frozen=True, slots=True)
class Watermarks:
    """`enum zone_watermarks`, in pages."""

    min_pages: int
    low_pages: int
    high_pages: int
    promo_pages: int


def min_free_kbytes(lowmem_pages: int) -> int:
    """`calculate_min_free_kbytes`: 4 * sqrt(low memory in KiB), bounded."""
    lowmem_kbytes = lowmem_pages * (PAGE_SIZE >> 10)
    return max(_MIN_FREE_KBYTES_LEAST, min(isqrt(lowmem_kbytes * 16), _MIN_FREE_KBYTES_MOST))


def zone_watermarks(
    managed_pages: int,
    lowmem_pages: int,
    movable: bool,
    scale_factor: int = WATERMARK_SCALE_FACTOR,
    min_free_kb: int | None = None,
) -> Watermarks:
    """Watermarks of one zone. `lowmem_pages`: managed pages of all zones of the host that are not movable.

    Beyond the kernel: the minimum is at most a quarter of the zone and each gap an eighth, so that zones of
    a few hundred pages, which no kernel boots with, still have pages to hand out.
    """
    if min_free_kb is None:
        min_free_kb = min_free_kbytes(lowmem_pages)
    pages_min = min_free_kb >> (PAGE_SHIFT - 10)
    share = pages_min * managed_pages // lowmem_pages if lowmem_pages else 0
    if movable:
        least = max(_MOVABLE_MIN_LEAST, min(managed_pages // _MOVABLE_SHARE, _MOVABLE_MIN_MOST))
    else:
        least = share
    gap = max(share >> 2, managed_pages * scale_factor // _SCALE_UNIT)
    least = min(least, managed_pages // 4)
    gap = min(gap, managed_pages // 8)
    return Watermarks(least, least + gap, least + 2 * gap, least + 3 * gap)


def host_watermarks(
    managed_pages: dict[int, int],
    movable: int,
    scale_factor: int = WATERMARK_SCALE_FACTOR,
    min_free_kb: int | None = None,
) -> dict[int, Watermarks]:
    """Watermarks of every node: `managed_pages` by node id, `movable` the mask of nodes whose zone is
    movable.
    """
    lowmem_pages = sum(pages for nid, pages in managed_pages.items() if not movable >> nid & 1)
    return {
        nid: zone_watermarks(pages, lowmem_pages, bool(movable >> nid & 1), scale_factor, min_free_kb)
        for nid, pages in managed_pages.items()
    }
