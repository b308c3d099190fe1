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


class Feature(IntFlag):
    """What core mm may do with a node; F1 values of the feature series (semantics: feature bits).

    A public node has all of them. A private node has none that it did not opt in to.
    """

    NONE = 0
    PUBLIC = 0x1
    RECLAIM = 0x2
    DEMOTION = 0x4
    USER_NUMA = 0x80
    USER_WRITE = 0x100
    ALL = 0x187


class NodeState(IntEnum):
    """Life of a node on one host; feature mask, claim and withdrawal are kept apart from it."""

    POSSIBLE = 0  # the id exists, no memory is online
    ONLINE = 1  # at least one page is online
