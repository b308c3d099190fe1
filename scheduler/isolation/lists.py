"""Zonelists of the isolation designs, and what their requests name. No design owns this; all build on it.

Models `build_zonelists` and `build_thisnode_zonelists` as the private-node series changes them: general
nodes always have their Linux lists, made over general nodes only; what a private node has is the design's
choice. Walking a list is `zonelist.candidates`, the same for all.
"""

from __future__ import annotations

from privmem.scheduler import nodemask
from privmem.scheduler.topology import HostTopology
from privmem.scheduler.zonelist import (
    AllocRequest,
    Zonelist,
    ZonelistKind,
    Zonelists,
    candidates,
    node_orders,
)


def closed(topology: HostTopology) -> Zonelists:
    """Lists in which no private node occurs at all, not even in its own: `ZONELIST_NOFALLBACK` of a private
    node is empty, its `ZONELIST_FALLBACK` holds the general nodes by distance.
    """
    return Zonelists(
        fallback=node_orders(topology, topology.nids, topology.public),
        nofallback={nid: (nid,) for nid in nodemask.nodes(topology.public)},
        private={},
    )


def union(topology: HostTopology) -> dict[int, Zonelist]:
    """A private list over every node with memory, general and private, by distance from each node."""
    return node_orders(topology, topology.nids, topology.memory)


def alone(topology: HostTopology) -> dict[int, Zonelist]:
    """A list for each private node that holds only this node."""
    return {nid: (nid,) for nid in nodemask.nodes(topology.private)}


def walk(
    topology: HostTopology, lists: Zonelists, kind: ZonelistKind, request: AllocRequest, mems: int | None
) -> Zonelist:
    """The entries of the chosen list that mask, THISNODE, zone and cpuset leave."""
    return candidates(topology, lists.of(kind, request.nid), request, mems)


def ordinary_kind(request: AllocRequest) -> ZonelistKind:
    """`gfp_zonelist` of Linux: THISNODE takes the list without fallback."""
    return ZonelistKind.NOFALLBACK if request.this_node else ZonelistKind.FALLBACK


def names(request: AllocRequest, nid: int) -> bool:
    """Whether a request names a node: in its mask, or as the preferred node when it has no mask."""
    if request.nodemask is not None:
        return nodemask.has(request.nodemask, nid)
    return request.nid == nid


def named_private(topology: HostTopology, request: AllocRequest) -> int:
    """The private nodes that a request names."""
    meant = 1 << request.nid if request.nodemask is None or request.this_node else request.nodemask
    return meant & topology.private


def node_text(nids: Zonelist) -> str:
    """A list for a sentence: `nodes 0 1`, `node 2`, `no node`."""
    if not nids:
        return "no node"
    return f"node{'s' if len(nids) > 1 else ''} {' '.join(str(nid) for nid in nids)}"


def absent(topology: HostTopology, request: AllocRequest, reached: Zonelist, why: str) -> str:
    """The end of a sentence: which named private nodes are out of reach, and why; empty when none is."""
    out = tuple(n for n in nodemask.nodes(named_private(topology, request)) if n not in reached)
    return f"; private {node_text(out)} out of reach: {why}" if out else ""
