"""The interface of isolation designs: who reaches a private node, and what core mm may do there.

A design answers with tables and values, worked out from the host's topology; hosts carry them and never ask
by name. One module a design; none imports another (DESIGN: "nor one isolation design another").
"""

from __future__ import annotations

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


class Design(Protocol):
    """One isolation design, one variant of it. Implementations are immutable and hold no state of a host."""

    #: Name for the registry and `--design`; variants after a colon.
    name: str
    #: One line for reports.
    title: str

    def claim_error(self, features: Feature) -> int:
        """0, or the negative errno with which claiming a private node with this mask is refused."""

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

    def policy_nodes(self, topology: HostTopology) -> PolicyNodes:
        """Which nodes a memory policy may name, and what happens to the others."""

    def cpuset_nodes(self, topology: HostTopology) -> CpusetNodes:
        """Which nodes a cpuset may name."""

    def move_targets(self, topology: HostTopology) -> int:
        """Nodes that move_pages and migrate_pages may move to; another one is ENODEV."""

    def allows(self, service: Service, node: NodeTopology) -> bool:
        """Whether a service of core mm may work on a node; true for every public node."""
