"""Versions of Linux whose rules differ where this project follows more than one.
 6.1 is the default everywhere. A newer version is chosen by name (`linux: "6.12"`), and turns on what it
brought: each property below is one rule, and says where it was seen.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class KernelVersion:
    """A version of Linux, as in `6.12`."""

    major: int
    minor: int

    @staticmethod
    def parse(text: str) -> KernelVersion:
        """From `6.12` or `6.12.117`; what follows the second number does not matter. Raises ValueError."""
        parts = text.split(".")
        numbers = parts[:2]
        if len(numbers) != 2 or not all(part.isascii() and part.isdecimal() for part in numbers):
            raise ValueError(f"{text!r} is not a version of Linux such as 6.1")
        version = KernelVersion(int(numbers[0]), int(numbers[1]))
        if version < LINUX_6_1:
            raise ValueError(f"Linux {version} is older than 6.1, the oldest whose rules are here")
        return version

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"

    @property
    def weighted_interleave(self) -> bool:
        """MPOL_WEIGHTED_INTERLEAVE exists: Linux 6.9, mm/mempolicy.c."""
        return self >= KernelVersion(6, 9)

    @property
    def folio_mempolicy(self) -> bool:
        """What came with `alloc_pages_mpol` (Linux 6.7, mm/mempolicy.c): interleaving by offset takes the
        whole page number, where 6.1 takes its low 32 bits; pages that mbind moves take turns as at a fault,
        where 6.1 forgets the inode number of shared memory; a page that cannot be isolated counts as one that
        could not move.
        """
        return self >= KernelVersion(6, 7)

    @property
    def folio_batch_pages(self) -> int:
        """`PAGEVEC_SIZE`, pages that a batch of a CPU gathers: 31 since Linux 6.9, include/linux/pagevec.h."""
        return 31 if self >= KernelVersion(6, 9) else 15

    @property
    def follows_protnone(self) -> bool:
        """move_pages looks into pages without the right to access them (PROT_NONE, and those that NUMA
        balancing has taken), where 6.1 says ENOENT (FOLL_HONOR_NUMA_FAULT: Linux 6.6, mm/gup.c).
        """
        return self >= KernelVersion(6, 6)

    @property
    def readahead_in_two(self) -> bool:
        """Readahead has one rule for a read that misses the cache and one for a reader that comes to the
        mark, where 6.1 has one for both (`page_cache_sync_ra`, `page_cache_async_ra`: Linux 6.11,
        mm/readahead.c).
        """
        return self >= KernelVersion(6, 11)

    @property
    def no_miss_is_outside(self) -> bool:
        """A search for the next page that is not cached says, where it finds none, one beyond what it looked
        at; 6.1 says the last one that it looked at, so that readahead goes on from a cached page
        (`page_cache_next_miss`, mm/filemap.c; seen in 6.12.117, a stable kernel with a later fix).
        """
        return self >= KernelVersion(6, 12)

    @property
    def reads_count_whole(self) -> bool:
        """Whether a read that misses in its midst follows the last one is asked of the read before it; 6.1
        asks of the pages that it has just copied, so that it always does (`filemap_read` keeps `prev_pos`
        until its end, mm/filemap.c; seen in 6.12.117).
        """
        return self >= KernelVersion(6, 12)

    @property
    def file_faults_by_vma(self) -> bool:
        """Faults of mapped files hold the lock of their VMA only, so that one which readahead makes anew does
        not count as a hard one (Linux 6.7, mm/memory.c, mm/filemap.c).
        """
        return self >= KernelVersion(6, 7)

    @property
    def absent_is_enoent(self) -> bool:
        """move_pages says ENOENT of a page that is not there in private anonymous memory, where 6.1 says
        EFAULT (`do_pages_stat_array` since it walks folios: Linux 6.12, mm/migrate.c).
        """
        return self >= KernelVersion(6, 12)


LINUX_6_1 = KernelVersion(6, 1)
