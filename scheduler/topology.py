"""A host's nodes and their distances, as immutable tables.

Models what the kernel knows after boot: `node_to_cpumask_map`, `numa_distance` (SLIT), which nodes have
memory and in which zone. One zone a node: `normal`, or `movable` for memory that takes no kernel
allocations (hotplugged device memory). What changes while a host runs (free pages, online extents) is not
here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from privmem.scheduler import nodemask
from privmem.scheduler.abi import MAX_NUMNODES, Feature
from privmem.scheduler.errors import InvariantError

ZONE_NORMAL = "normal"
ZONE_MOVABLE = "movable"

#: Distance of a node to itself, `LOCAL_DISTANCE` of `include/linux/topology.h`; also the unit of the ACPI
#: SLIT.
LOCAL_DISTANCE = 10


@dataclass(frozen=True, slots=True)
class NodeTopology:
    """One node of a host."""

    nid: int
    cpus: tuple[int, ...] = ()
    private: bool = False
    #: What core mm may do with the node: all of it for a public node, what it opted in to for a private one.
    features: Feature = Feature.ALL
    zone: str = ZONE_NORMAL
    #: Abstract distance, `MEMTIER_ADISTANCE_*`: smaller is faster (see tiers.py).
    adistance: int = 576
    #: Address of the device that backs the node.
    device: str = ""
    #: Most pages that the node can ever have; 0 for a node without memory.
    span_pages: int = 0

    def to_spec(self) -> dict[str, Any]:
        """Plain form, inverse of `from_spec`."""
        return {
            "nid": self.nid,
            "cpus": list(self.cpus),
            "private": self.private,
            "features": int(self.features),
            "zone": self.zone,
            "adistance": self.adistance,
            "device": self.device,
            "span_pages": self.span_pages,
        }

    @staticmethod
    def from_spec(spec: dict[str, Any]) -> NodeTopology:
        """From a plain dict with the field names as keys; all but `nid` may be missing."""
        private = bool(spec.get("private", False))
        features = Feature(spec.get("features", Feature.NONE if private else Feature.ALL))
        return NodeTopology(
            nid=int(spec["nid"]),
            cpus=tuple(spec.get("cpus", ())),
            private=private,
            features=features,
            zone=spec.get("zone", ZONE_MOVABLE if private else ZONE_NORMAL),
            adistance=int(spec.get("adistance", 576)),
            device=spec.get("device", ""),
            span_pages=int(spec.get("span_pages", 0)),
        )


class HostTopology:
    """All nodes of a host, ascending by id, and the distance matrix. Immutable; masks are worked out once.

    `memory`       nodes that can have memory (N_MEMORY in the additive designs)
    `private`      nodes among them that are private; `public` the others
    `with_cpus`    N_CPU
    `normal_zone`  nodes whose zone takes kernel allocations (N_HIGH_MEMORY of `apply_policy_zone`)
    """

    def __init__(self, nodes: tuple[NodeTopology, ...], distances: tuple[tuple[int, ...], ...]) -> None:
        """`distances[i][j]`: from the i-th node of `nodes` to the j-th, in ascending id order."""
        self.nodes = nodes
        self.distances = distances
        self._check()
        self.nids = tuple(node.nid for node in nodes)
        self.online = nodemask.of(self.nids)
        self.memory = nodemask.of(node.nid for node in nodes if node.span_pages > 0)
        self.private = self.memory & nodemask.of(node.nid for node in nodes if node.private)
        self.public = self.memory & ~self.private
        self.with_cpus = nodemask.of(node.nid for node in nodes if node.cpus)
        self.normal_zone = self.memory & nodemask.of(n.nid for n in nodes if n.zone == ZONE_NORMAL)
        self._position = {nid: position for position, nid in enumerate(self.nids)}
        self._node_of_cpu = {cpu: node.nid for node in nodes for cpu in node.cpus}

    def _check(self) -> None:
        nids = [node.nid for node in self.nodes]
        if not nids or sorted(set(nids)) != nids or nids[0] < 0 or nids[-1] >= MAX_NUMNODES:
            raise InvariantError(f"node ids {nids} are not distinct, ascending and below {MAX_NUMNODES}")
        cpus = [cpu for node in self.nodes for cpu in node.cpus]
        if len(set(cpus)) != len(cpus):
            raise InvariantError("a CPU belongs to two nodes")
        if len(self.distances) != len(nids) or any(len(row) != len(nids) for row in self.distances):
            raise InvariantError(f"the distance matrix is not {len(nids)} by {len(nids)}")
        for node in self.nodes:
            if node.zone not in (ZONE_NORMAL, ZONE_MOVABLE):
                raise InvariantError(f"node {node.nid} has the unknown zone {node.zone!r}")
            if node.private and node.features & Feature.PUBLIC:
                raise InvariantError(f"private node {node.nid} has the feature PUBLIC")

    @staticmethod
    def from_spec(spec: dict[str, Any]) -> HostTopology:
        """From plain data: `{"nodes": [node specs], "distances": [[int]]}`."""
        nodes = sorted((NodeTopology.from_spec(s) for s in spec["nodes"]), key=lambda n: n.nid)
        return HostTopology(tuple(nodes), tuple(tuple(int(d) for d in row) for row in spec["distances"]))

    def to_spec(self) -> dict[str, Any]:
        """Plain form, inverse of `from_spec`."""
        return {
            "nodes": [node.to_spec() for node in self.nodes],
            "distances": [list(row) for row in self.distances],
        }

    def node(self, nid: int) -> NodeTopology:
        """The node with this id. Raises KeyError."""
        return self.nodes[self._position[nid]]

    def distance(self, from_nid: int, to_nid: int) -> int:
        """`node_distance`."""
        return self.distances[self._position[from_nid]][self._position[to_nid]]

    def node_of_cpu(self, cpu: int) -> int:
        """`cpu_to_node`. Raises KeyError for a CPU that does not exist."""
        return self._node_of_cpu[cpu]

    @property
    def cpus(self) -> tuple[int, ...]:
        """All CPUs, ascending."""
        return tuple(sorted(self._node_of_cpu))

    @property
    def cpu_nodes(self) -> tuple[int, ...]:
        """Ids of the nodes that have CPUs, ascending."""
        return tuple(nodemask.nodes(self.with_cpus))

    def with_feature(self, feature: Feature) -> int:
        """Memory nodes that have all of these features; a public node has them all."""
        granted = nodemask.of(n.nid for n in self.nodes if n.features & feature == feature)
        return self.memory & (granted | self.public)

    def proximity(self, from_nid: int, to_nid: int) -> int:
        """Distance with the two penalties of `find_next_best_node` (Linux 6.1), node load apart.

        One more for a node with a lower id than ours ("prefer the next node"), one more for a node with CPUs
        (PENALTY_FOR_NODE_WITH_CPUS).
        """
        penalty = int(to_nid < from_nid) + int(nodemask.has(self.with_cpus, to_nid))
        return self.distance(from_nid, to_nid) + penalty

    def nodes_by_distance(self, nid: int) -> tuple[int, ...]:
        """All memory nodes as seen from `nid`: itself first, then by `proximity`, the lower id first among
        equals.

        The order of one `find_next_best_node` walk on a machine whose other lists are not built yet;
        zonelist.py has the order with node load, which depends on all nodes.
        """
        others = [n for n in nodemask.nodes(self.memory) if n != nid]
        ranked = sorted(others, key=lambda n: (self.proximity(nid, n), n))
        return (nid, *ranked) if nodemask.has(self.memory, nid) else tuple(ranked)
