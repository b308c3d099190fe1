"""Numbers of the kernel's interface, and the few of ours that every participant shares.

Values are those of Linux 6.1 (`include/uapi/linux/mempolicy.h`, `include/linux/mmzone.h`) where the kernel
has the thing; errno numbers are Python's own `errno` module. Errno values are returned negative, as in the
kernel.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT

#: Largest buddy order: 4 MiB blocks of 1024 pages. Linux 6.1 `MAX_ORDER - 1`.
MAX_ORDER = 10
#: Order of a pageblock and of a transparent huge page: 2 MiB. Linux `pageblock_order` on x86-64.
PAGEBLOCK_ORDER = 9

#: A section is the unit in which a host's page frame numbers are dealt to nodes: 2**15 pages = 128 MiB, as
#: the kernel's `SECTION_SIZE_BITS` 27 on x86-64. Every node starts on a section boundary.
SECTION_SHIFT = 15
SECTION_PAGES = 1 << SECTION_SHIFT

#: Nodes a host can have. Node masks are Python ints; this bounds the tables that the compiled code indexes.
MAX_NUMNODES = 64


class Mpol(IntEnum):
    """Memory policy modes, `enum` in `include/uapi/linux/mempolicy.h`."""

    DEFAULT = 0
    PREFERRED = 1
    BIND = 2
    INTERLEAVE = 3
    LOCAL = 4
    PREFERRED_MANY = 5
    WEIGHTED_INTERLEAVE = 6  # since Linux 6.9


MPOL_F_STATIC_NODES = 1 << 15
MPOL_F_RELATIVE_NODES = 1 << 14
MPOL_MODE_FLAGS = MPOL_F_STATIC_NODES | MPOL_F_RELATIVE_NODES

MPOL_MF_STRICT = 1
MPOL_MF_MOVE = 2
MPOL_MF_MOVE_ALL = 4


class Reason(IntEnum):
    """Why somebody asks for a page. It picks the zonelist, and every page remembers it (DESIGN, section 1)."""

    FAULT = 1  # a user fault under the default policy
    POLICY = 2  # a user fault under an accepted memory policy
    PAGECACHE = 3  # filling the page cache
    DEMOTION = 4  # reclaim moves a cold page to a lower tier
    PROMOTION = 5  # a hot page, or a written page of compressed RAM, moves up
    USER_MOVE = 6  # move_pages, migrate_pages, mbind with a MOVE flag, cpuset migration
    OWNER = 7  # the node's own driver or service
    CONTIG = 8  # a contiguous range
    KERNEL = 9  # slab, page tables, per-node structures
    HOTPLUG = 10  # structures allocated while memory comes or goes
    SLAB = 11  # an object cache of one node: `kmalloc_node` adds `__GFP_THISNODE` by itself
    PAGETABLE = 12  # page tables of a task, under its policy
    HUGETLB = 13  # a pool of huge pages of one node: `__GFP_THISNODE` too
    SWAPIN = 14  # a page comes back from swap, under the policy of the faulting address
    COLLAPSE = 15  # khugepaged and MADV_COLLAPSE take one huge page for many small ones
    KSM = 16  # the one copy of equal pages
    NETWORK = 17  # message buffers: near the device if it has memory, else local


class Feature(IntFlag):
    """What core mm may do with a node. A public node needs none of these: it is open to everything.

    The low bits have the values of the feature series (F1). The high ones are services that only other
    versions have a bit for; a design grants those that it knows (`Design.grant`).
    """

    NONE = 0
    PUBLIC = 0x1
    RECLAIM = 0x2
    DEMOTION = 0x4
    USER_NUMA = 0x80  # policies, move_pages, migrate_pages, cpusets; `NP_OPS_MEMPOLICY` of the first version
    USER_WRITE = 0x100  # a user's store reaches the page in place; its absence is `NP_OPS_PROTECT_WRITE`
    ALL = 0x187
    MIGRATION = 0x1000  # generic migration may move its pages
    NUMA_BALANCING = 0x2000
    COMPACTION = 0x4000
    LONGTERM_PIN = 0x8000
    CONTIG_ALLOC = 0x10000  # contiguous ranges for the owner
    HOTUNPLUG = 0x20000  # its pages may be moved out when the memory goes offline
    KSM = 0x40000
    COLLAPSE = 0x80000  # MADV_COLLAPSE
    DAMON = 0x100000
    HUGETLB = 0x200000  # huge page pools


class NodeState(IntEnum):
    """Life of a node on one host; feature mask, claim and withdrawal are kept apart from it."""

    POSSIBLE = 0  # the id exists, no memory is online
    ONLINE = 1  # at least one page is online
