"""The interface of isolation designs: who reaches a private node, and what core mm may do there.

A design answers with tables and values, worked out from the host's topology; hosts carry them and never ask
by name. One module a design; none imports another (DESIGN: "nor one isolation design another").
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from privmem.scheduler.abi import Feature
from privmem.scheduler.cpuset import CpusetNodes
from privmem.scheduler.mempolicy import PolicyNodes
from privmem.scheduler.topology import HostTopology, NodeTopology
from privmem.scheduler.zonelist import AllocRequest, Zonelist, ZonelistKind, Zonelists


class Service(IntEnum):
    """What a part of core mm does with the pages of a node; a design says whether a private node takes
    part.
    """

    RECLAIM = 1  # kswapd and direct reclaim work on the node
    DEMOTION_TARGET = 2  # reclaim moves cold pages of other nodes here
    DEMOTION_SOURCE = 3  # reclaim moves cold pages of this node to a lower tier
    NUMA_BALANCING = 4  # access rights are taken to see who uses the pages
    USER_MOVE = 5  # move_pages, migrate_pages and mbind move its pages; queries see where they are
    USER_WRITE = 6  # a user's store reaches the page in place; without it the node is write-fenced
    COMPACTION = 7  # kcompactd, direct compaction, and the node's `compact` file
    LONGTERM_PIN = 8  # FOLL_LONGTERM pins succeed in place
    PIN_MIGRATE = 9  # a page that may not be pinned in place may be moved off the node first
    HUGETLB = 10  # pools of huge pages may take pages here
    KSM = 11  # equal pages are merged
    KHUGEPAGED = 12  # the daemon collapses small pages into a huge one
    COLLAPSE = 13  # MADV_COLLAPSE does so at once
    DAMON = 14  # DAMON's actions work on its pages
    HOTUNPLUG = 15  # resident pages are moved out when the memory goes offline
    OOM_MEMORY = 16  # the node's memory counts in the OOM killer's total
    DISPLACE = 17  # a contiguous range may move its residents away
    MADVISE = 18  # MADV_COLD and MADV_PAGEOUT work on its pages
    MLOCK = 19  # mlock takes the pages off the reclaimable lists
    TIER = 20  # the node belongs to a memory tier
    MAPPED_FILE = 21  # a fault in a mapped file brings its page here when the mapping's policy says so


@dataclass(frozen=True, slots=True)
class Claim:
    """A driver's claim on a node: who, and with which features."""

    owner: str
    features: Feature = Feature.NONE


class Design(Protocol):
    """One isolation design, one variant of it. Implementations are immutable and hold no state of a host.

    Where a rule is asked for "private" here, it is never asked for a public node: those are open.
    """

    #: Name for the registry and `--design`; variants after a colon.
    name: str
    #: The series' version that it models, as its documents call it: `v4`, `nofb`, `caps-c`, `F1`, ...
    label: str
    #: One line for reports.
    title: str
    #: Whether policies forget a private node whose memory goes offline, so that its id can be reused.
    scrubs_policies: bool

    # -- claiming a node

    def grant(self, wish: Feature) -> Feature:
        """What this design makes of a wish: its own bits of it, and those that they imply. A service for which
        the design has no bit is not granted; claim_error says whether what is left fits together.
        """

    def claim_error(self, features: Feature) -> int:
        """0, or the negative errno with which claiming a private node with this mask is refused."""

    def reclaim_error(self, held: Claim | None, has_memory: bool, claim: Claim) -> int:
        """0, or the negative errno of a claim on a node that `held` has claimed already, or that has memory.

        0 for a claim that joins or repeats the one held, as the design allows it.
        """

    # -- the allocator

    def zonelists(self, topology: HostTopology) -> Zonelists:
        """All lists of the host."""

    def kind(self, topology: HostTopology, request: AllocRequest) -> ZonelistKind:
        """The list that a request walks: chosen by its reason and, for policies, its mask; never by the
        node id alone.
        """

    def candidates(
        self, topology: HostTopology, lists: Zonelists, request: AllocRequest, mems_allowed: int | None
    ) -> Zonelist:
        """Nodes to try in order; empty when the request reaches none."""

    def rule(self, topology: HostTopology, request: AllocRequest) -> str:
        """One sentence for `why`: which rule chose the list for this request, and what it kept out."""

    def invited(self, request: AllocRequest, node: NodeTopology) -> bool:
        """Whether a page for this request belongs on this private node: its owner asked, or the user named a
        node that opted in, or the node opted in to the service. A page that `candidates` lets there without
        being invited is a leak.
        """

    # -- policies, cpusets, moving

    def policy_nodes(self, topology: HostTopology) -> PolicyNodes:
        """Which nodes a memory policy may name, and what happens to the others."""

    def cpuset_nodes(self, topology: HostTopology) -> CpusetNodes:
        """Which nodes a cpuset may name."""

    def move_targets(self, topology: HostTopology) -> int:
        """Nodes that move_pages and migrate_pages may move to; another one is ENODEV."""

    # -- services

    def allows(self, service: Service, node: NodeTopology) -> bool:
        """Whether a service of core mm may work on a node; true for every public node."""

    # -- what sysfs shows

    def node_states(self, topology: HostTopology) -> dict[str, int]:
        """Files of /sys/devices/system/node under this design (`has_memory`, `has_private_memory`, ...)
        besides possible, online and has_cpu: file name -> node mask.
        """
