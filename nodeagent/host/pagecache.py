"""Objects that several mappings can share, and the pages cached for them: files, and shared anonymous memory.

Models `struct address_space` with its `i_pages`, and `struct shared_policy`, the tree of policies that a
shared-memory object keeps for ranges of itself (mm/mempolicy.c `mpol_set_shared_policy`,
`mpol_shared_policy_lookup`; Linux 6.1), and `struct file` with its `f_ra`. Filling, faulting and dropping
pages is in filemap.py, what comes ahead in readahead.py, system calls of files in file_io.py. Left out: holes
of files.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import astuple, dataclass, field
from typing import Any

from privmem.scheduler.errors import InvariantError
from privmem.scheduler.mempolicy import Mempolicy

#: Kinds of objects.
FILE = "file"
SHMEM = "shmem"
HUGETLB = "hugetlb"  # behind a MAP_HUGETLB mapping; see hugetlb_map.py
DEVICE = "device"  # memory of an open device file: pages of one node, by its owner's call

#: `SHMEM_INO_BATCH`: inode numbers that a CPU reserves at a time.
INO_BATCH = 1024

PolicyRange = tuple[int, int, Mempolicy]  # first page, one past the last, policy


@dataclass(slots=True)
class MemObject:
    """One file or shared-memory object."""

    object_id: int  # from 1 on; 0 in a VMA stands for none
    kind: str
    name: str
    nr_pages: int
    #: Inode number. Interleaving over shared memory begins at another node for each inode
    #: (`shmem_pseudo_vma_init`).
    ino: int
    #: With DEVICE: the node of the device; -1 otherwise.
    nid: int = -1
    #: Content of page i is (source, i), see `nodeagent/content.py`; 0 is zero pages.
    source: int = 0
    #: Pages of VMAs that map it, over all address spaces; shared memory goes with the last one.
    vma_pages: int = 0
    #: With FILE: id of the open file that those use who do not open it themselves.
    file_id: int = 0
    #: Cached pages: index -> page frame.
    pages: dict[int, int] = field(default_factory=dict)
    #: Cached pages with the mark PG_readahead: the next pages are read when somebody comes here.
    ahead: dict[int, None] = field(default_factory=dict)
    #: With SHMEM: pages on swap: index -> slot of the swap area.
    swapped: dict[int, int] = field(default_factory=dict)
    #: With FILE: what reclaim remembers of pages that it dropped (shadow entries): index -> node, its age then.
    shadows: dict[int, tuple[int, int]] = field(default_factory=dict)
    #: With FILE: versions of written pages on the disk (nodeagent/content.py): index -> version, 0 if none.
    on_disk: dict[int, int] = field(default_factory=dict)
    #: Shared policies, ascending, without overlap. Shared memory only: a file has none (vm_ops without
    #: set_policy).
    policies: list[PolicyRange] = field(default_factory=list)

    def policy_at(self, index: int) -> Mempolicy | None:
        """`mpol_shared_policy_lookup`."""
        at = bisect_right(self.policies, index, key=lambda r: r[0]) - 1
        if at >= 0 and index < self.policies[at][1]:
            return self.policies[at][2]
        return None

    def set_policy(self, start: int, end: int, policy: Mempolicy | None) -> None:
        """`mpol_set_shared_policy`: pages [start, end) get this policy, None takes away what was there."""
        kept: list[PolicyRange] = []
        for low, high, old in self.policies:
            if low < start:
                kept.append((low, min(high, start), old))
            if high > end:
                kept.append((max(low, end), high, old))
        if policy is not None:
            kept.append((start, end, policy))
        self.policies = sorted(kept, key=lambda r: r[0])

    def snapshot(self) -> list[Any]:
        """Plain form, inverse of `PageCache.restore`'s reading."""
        policies = [[low, high, policy.to_spec()] for low, high, policy in self.policies]
        pages = [[index, self.pages[index]] for index in sorted(self.pages)]
        numbers = [
            self.object_id,
            self.kind,
            self.name,
            self.nr_pages,
            self.ino,
            self.nid,
            self.source,
            self.vma_pages,
            self.file_id,
        ]
        swapped = [[index, self.swapped[index]] for index in sorted(self.swapped)]
        shadows = [[index, *self.shadows[index]] for index in sorted(self.shadows)]
        on_disk = [[index, self.on_disk[index]] for index in sorted(self.on_disk)]
        return [*numbers, pages, policies, sorted(self.ahead), swapped, shadows, on_disk]


@dataclass(slots=True)
class OpenFile:
    """`struct file` with its `file_ra_state`, in pages. One per open(2); several processes can share it."""

    file_id: int
    object_id: int
    can_read: bool = True
    can_write: bool = True
    #: O_DIRECT: read and write pass by the page cache.
    direct: bool = False
    #: FMODE_RANDOM: posix_fadvise said that reads come in no order.
    random: bool = False
    #: `f_pos`: where read and write without an offset go on.
    position: int = 0
    #: Longest readahead, 0 for none.
    ra_pages: int = 0
    #: The window that was read last: first page, pages, and how many of them are ahead of the reader's need.
    start: int = 0
    size: int = 0
    async_size: int = 0
    #: Faults that missed the cache, less those that hit.
    mmap_miss: int = 0
    #: Page after the one in which the last read ended (`prev_pos`); -1 before the first.
    next_read: int = -1
    #: Pages of VMAs that map it; the file goes when it is closed and nobody maps it.
    vma_pages: int = 0
    closed: bool = False


class PageCache:
    """All objects of a host, by id."""

    def __init__(self, readahead_pages: int = 0) -> None:
        self.objects: dict[int, MemObject] = {}
        self.next_id = 1
        #: `ra_pages` of the disk (`read_ahead_kb`).
        self.readahead_pages = readahead_pages
        self.open_files: dict[int, OpenFile] = {}
        self.next_file = 1
        #: Inode numbers of shared memory: each CPU takes a batch of them (`shmem_reserve_inode`).
        self.next_batch = 0
        self.next_ino: dict[int, int] = {}

    def create_file(self, name: str, nr_pages: int, source: int = 0) -> MemObject:
        """A file, with none of its pages cached."""
        new = self._insert(MemObject(self.next_id, FILE, name, nr_pages, 0, source=source))
        new.file_id = self.open(new).file_id
        return new

    def open(
        self, holder: MemObject, can_read: bool = True, can_write: bool = True, direct: bool = False
    ) -> OpenFile:
        """`do_dentry_open` of a file."""
        ra_pages = self.readahead_pages
        new = OpenFile(self.next_file, holder.object_id, can_read, can_write, direct, ra_pages=ra_pages)
        self.open_files[new.file_id] = new
        self.next_file += 1
        return new

    def opened(self, holder: MemObject) -> OpenFile:
        """The open file that those use who did not open the file themselves."""
        return self.open_files[holder.file_id]

    def close(self, file: OpenFile) -> None:
        """`close(2)`, and what `fput` does when nobody maps the file any more."""
        file.closed = True
        self.unmapped(file, 0)

    def unmapped(self, file: OpenFile, nr_pages: int) -> None:
        """VMAs with so many pages of the open file are gone."""
        file.vma_pages -= nr_pages
        if file.closed and not file.vma_pages:
            del self.open_files[file.file_id]

    def create_shmem(self, name: str, nr_pages: int, cpu: int) -> MemObject:
        """A shared-memory object, made by a task on this CPU."""
        ino = self.next_ino.get(cpu, 0)
        if ino % INO_BATCH == 0:
            ino = self.next_batch or 1  # inode number 0 is none
            self.next_batch += INO_BATCH
        self.next_ino[cpu] = ino + 1
        return self._insert(MemObject(self.next_id, SHMEM, name, nr_pages, ino))

    def create_hugetlb(self, name: str, nr_pages: int) -> MemObject:
        """What a MAP_HUGETLB mapping maps; its shared pages are entered one base page at a time."""
        return self._insert(MemObject(self.next_id, HUGETLB, name, nr_pages, 0))

    def create_device(self, name: str, nr_pages: int, nid: int) -> MemObject:
        """What an open device file maps: memory of the device's node."""
        return self._insert(MemObject(self.next_id, DEVICE, name, nr_pages, 0, nid))

    def _insert(self, new: MemObject) -> MemObject:
        self.objects[new.object_id] = new
        self.next_id += 1
        return new

    def of(self, object_id: int) -> MemObject:
        """The object with this id. Raises KeyError."""
        return self.objects[object_id]

    def files(self) -> list[MemObject]:
        """All files, by id."""
        return [self.objects[i] for i in sorted(self.objects) if self.objects[i].kind == FILE]

    def forget(self, object_id: int) -> None:
        """Remove an object that has no cached page left."""
        gone = self.objects.pop(object_id)
        if gone.pages or gone.swapped:
            raise InvariantError(f"object {object_id} still has cached pages")

    def moved(self, object_id: int, index: int, old_pfn: int, new_pfn: int) -> None:
        """`folio_migrate_mapping`: the page is in another frame now."""
        pages = self.objects[object_id].pages
        if pages.get(index) != old_pfn:
            raise InvariantError(f"page {index} of object {object_id} is not in frame {old_pfn}")
        pages[index] = new_pfn

    def snapshot(self) -> dict[str, Any]:
        """Plain form."""
        objects = [self.objects[i].snapshot() for i in sorted(self.objects)]
        return {
            "next_id": self.next_id,
            "next_batch": self.next_batch,
            "open_files": [list(astuple(self.open_files[i])) for i in sorted(self.open_files)],
            "next_file": self.next_file,
            "next_ino": [[cpu, self.next_ino[cpu]] for cpu in sorted(self.next_ino)],
            "objects": objects,
        }

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Take over a snapshot."""
        self.next_id = snapshot["next_id"]
        self.next_batch = snapshot["next_batch"]
        self.next_ino = {int(cpu): int(ino) for cpu, ino in snapshot["next_ino"]}
        self.open_files = {row[0]: OpenFile(*row) for row in snapshot["open_files"]}
        self.next_file = snapshot["next_file"]
        self.objects = {}
        for *numbers, pages, policies, ahead, swapped, shadows, on_disk in snapshot["objects"]:
            known = MemObject(*numbers)
            known.ahead = dict.fromkeys(ahead)
            known.swapped = {int(index): int(slot) for index, slot in swapped}
            known.shadows = {int(index): (int(nid), int(age)) for index, nid, age in shadows}
            known.pages = {int(index): int(pfn) for index, pfn in pages}
            known.on_disk = {int(index): int(version) for index, version in on_disk}
            known.policies = [(low, high, Mempolicy.from_spec(spec)) for low, high, spec in policies]
            self.objects[known.object_id] = known
