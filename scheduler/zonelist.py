"""Zonelists: for each node, the order in which nodes are tried, and requests that walk them.

Models `build_zonelists`, `build_thisnode_zonelists` and `find_next_best_node` of `mm/page_alloc.c`, Linux
6.1, and the separate ZONELIST_PRIVATE of the private-node series. A node has one zone here, so a zonelist
is a tuple of node ids. Which list a request walks is the isolation design's decision (isolation/), never
this module's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import IntEnum

from privmem.scheduler import nodemask
from privmem.scheduler.abi import Reason
from privmem.scheduler.topology import HostTopology

Zonelist = tuple[int, ...]


class ZonelistKind(IntEnum):
    """`ZONELIST_FALLBACK`, `ZONELIST_NOFALLBACK` (what `__GFP_THISNODE` walks) and the series'
    `ZONELIST_PRIVATE`.
    """

    FALLBACK = 0
    NOFALLBACK = 1
    PRIVATE = 2


@dataclass(frozen=True, slots=True)
class AllocRequest:
    """What the allocator is asked for (`struct alloc_context`), before a list is chosen."""

    #: Where the walk starts: the preferred node.
    nid: int
    #: Nodes that may serve the request; None: any that the list has.
    nodemask: int | None = None
    reason: Reason = Reason.FAULT
    #: `__GFP_THISNODE`.
    this_node: bool = False
    #: Page that may be moved later (`GFP_HIGHUSER_MOVABLE`); others cannot come from a movable zone.
    movable: bool = True
    #: The caller asks for private memory by name: `__GFP_PRIVATE` where the design has the flag, the choice of
    #: the private list where it has one, the task's marker in the experiment without either.
    private: bool = False
    #: MPOL_PREFERRED_MANY: when all nodes of the mask are full, try again without it
    #: (`alloc_pages_preferred_many`).
    retry_unmasked: bool = False

    def unmasked(self) -> AllocRequest:
        """The second try of a request with `retry_unmasked`."""
        return replace(self, nodemask=None, retry_unmasked=False)


@dataclass(frozen=True, slots=True)
class Zonelists:
    """All lists of a host, by kind and node id; a node without an entry has the empty list."""

    fallback: dict[int, Zonelist]
    nofallback: dict[int, Zonelist]
    private: dict[int, Zonelist]

    def of(self, kind: ZonelistKind, nid: int) -> Zonelist:
        """`node_zonelist`."""
        table = (self.fallback, self.nofallback, self.private)[kind]
        return table.get(nid, ())


def node_orders(topology: HostTopology, starts: Iterable[int], members: int) -> dict[int, Zonelist]:
    """`build_zonelists` for each node of `starts` in turn: the nodes of `members`, nearest first.

    The start comes first when it is a member. Others follow by `HostTopology.proximity`, then by node load:
    the first node of each group of equal distance gets one more load, so that the next node's list begins
    with another (6.1).
    """
    load = dict.fromkeys(topology.nids, 0)
    orders: dict[int, Zonelist] = {}
    for start in starts:
        order: list[int] = []
        left = members
        previous = start
        while left:
            if nodemask.has(left, start):
                best = start
            else:
                best = min(nodemask.nodes(left), key=lambda n: (topology.proximity(start, n), load[n], n))
            if topology.distance(start, best) != topology.distance(start, previous):
                load[best] += 1
            order.append(best)
            left &= ~(1 << best)
            previous = best
        orders[start] = tuple(order)
    return orders


def first_zones(zonelist: Zonelist, nodes: int | None) -> Zonelist:
    """`for_each_zone_zonelist_nodemask`: the entries of the list that the mask allows, in the list's order."""
    if nodes is None:
        return zonelist
    return tuple(nid for nid in zonelist if nodes >> nid & 1)


def candidates(
    topology: HostTopology, zonelist: Zonelist, request: AllocRequest, mems_allowed: int | None = None
) -> Zonelist:
    """The nodes that `get_page_from_freelist` would try for a request, in order.

    `mems_allowed` is the task's cpuset (ALLOC_CPUSET); None for requests that no cpuset governs (demotion,
    interrupt). With `this_node` only the preferred node is left, whatever the list holds.
    """
    nids = first_zones(zonelist, request.nodemask)
    if request.this_node:
        nids = tuple(nid for nid in nids if nid == request.nid)
    if not request.movable:
        nids = first_zones(nids, topology.normal_zone)
    if mems_allowed is not None:
        nids = first_zones(nids, mems_allowed)
    return nids
