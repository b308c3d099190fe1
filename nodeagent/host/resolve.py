"""From a request to candidate zones: the host's copy of the scheduler's tables, asked with its pure rules.

A host resolves its own faults: no message is sent for an ordinary allocation (DESIGN, section 1).
"""

from __future__ import annotations

from privmem.nodeagent.host.memory import Memory
from privmem.scheduler import nodemask
from privmem.scheduler.isolation import Service, get_design
from privmem.scheduler.tiers import TierTable, build_tiers
from privmem.scheduler.topology import HostTopology
from privmem.scheduler.zonelist import AllocRequest


class Resolver:
    """Zonelists, policy nodes and tiers of one host under one isolation design."""

    def __init__(self, topology: HostTopology, design: str) -> None:
        self.topology = topology
        self.design = get_design(design)
        self.lists = self.design.zonelists(topology)
        self.policy_nodes = self.design.policy_nodes(topology)
        self.cpuset_nodes = self.design.cpuset_nodes(topology)
        self._known: dict[tuple[AllocRequest, int | None], tuple[int, ...]] = {}

    def candidates(self, request: AllocRequest, mems_allowed: int | None) -> tuple[int, ...]:
        """Nodes to try, in order; empty when the request reaches none."""
        key = (request, mems_allowed)
        if key not in self._known:
            self._known[key] = self.design.candidates(self.topology, self.lists, request, mems_allowed)
        return self._known[key]

    def install_tiers(self, memory: Memory) -> TierTable:
        """Work out who demotes where: the nearest nodes of the next tier, then the rest of the lower tiers by
        distance.
        """
        topology = self.topology
        terminal = nodemask.of(nid for nid, node in memory.nodes.items() if node.spec.compressed)
        table = build_tiers(topology, demotion=memory.demotion_enabled, terminal=terminal)
        for nid in memory.nodes:
            if not self.design.allows(Service.DEMOTION_SOURCE, topology.node(nid)):
                continue
            preferred = table.targets.get(nid, ())
            others = [n for n in nodemask.nodes(table.allowed.get(nid, 0)) if n not in preferred]
            # Linux lets the zonelist of the preferred target decide among the rest; faster tiers come first
            # there because firmware reports them nearer. Here the tier says so itself.
            others.sort(key=lambda n: (topology.node(n).adistance, topology.distance(nid, n), n))
            memory.demotion_targets[nid] = tuple(
                n
                for n in (*preferred, *others)
                if self.design.allows(Service.DEMOTION_TARGET, topology.node(n))
            )
        memory.top_tier = frozenset(nodemask.nodes(table.toptier))
        return table
