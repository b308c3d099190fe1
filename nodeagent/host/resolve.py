"""From a request to candidate zones: the host's copy of the scheduler's tables, asked with its pure rules.

A host resolves its own faults: no message is sent for an ordinary allocation (DESIGN, section 1). The tables
are made anew whenever a node comes or goes (`build_all_zonelists`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from privmem.scheduler import nodemask
from privmem.scheduler.isolation import Service, get_design
from privmem.scheduler.tiers import TierTable, build_tiers
from privmem.scheduler.topology import HostTopology
from privmem.scheduler.versions import LINUX_6_1, KernelVersion
from privmem.scheduler.zonelist import AllocRequest


@dataclass(frozen=True, slots=True)
class Resolution:
    """What a request came to."""

    #: Nodes to try, in order; empty when the request reaches none.
    zones: tuple[int, ...]
    #: Private nodes among them on which a page for this request is a leak (`Design.invited`).
    uninvited: int


class Resolver:
    """Zonelists, policy nodes and tiers of one host under one isolation design."""

    def __init__(self, topology: HostTopology, design: str, linux: KernelVersion = LINUX_6_1) -> None:
        self.design = get_design(design)
        #: Whose rules are followed where versions differ.
        self.linux = linux
        #: /sys/kernel/mm/mempolicy/weighted_interleave: node -> weight, of those that have one.
        self.weights: dict[int, int] = {}
        self._resolved: dict[tuple[AllocRequest, int | None], Resolution] = {}
        self._allowed: dict[tuple[Service, int], bool] = {}
        self.rebuild(topology)

    def rebuild(self, topology: HostTopology) -> None:
        """Take over a topology and work out all tables again."""
        self.topology = topology
        self.lists = self.design.zonelists(topology)
        rules = self.design.policy_nodes(topology)
        self.policy_nodes = replace(rules, weighted=self.linux.weighted_interleave)
        self.cpuset_nodes = self.design.cpuset_nodes(topology)
        self._resolved.clear()
        self._allowed.clear()

    def resolve(self, request: AllocRequest, mems_allowed: int | None) -> Resolution:
        """The nodes that a request may try, and where it has no business."""
        key = (request, mems_allowed)
        if key not in self._resolved:
            zones = self.design.candidates(self.topology, self.lists, request, mems_allowed)
            private = [nid for nid in zones if nodemask.has(self.topology.private, nid)]
            uninvited = [n for n in private if not self.design.invited(request, self.topology.node(n))]
            self._resolved[key] = Resolution(zones, nodemask.of(uninvited))
        return self._resolved[key]

    def candidates(self, request: AllocRequest, mems_allowed: int | None) -> tuple[int, ...]:
        """Nodes to try, in order; empty when the request reaches none."""
        return self.resolve(request, mems_allowed).zones

    def allows(self, service: Service, nid: int) -> bool:
        """Whether a service of core mm may work on a node (`Design.allows`); true for public nodes."""
        key = (service, nid)
        if key not in self._allowed:
            self._allowed[key] = self.design.allows(service, self.topology.node(nid))
        return self._allowed[key]

    def tiers(self, demotion_enabled: bool, terminal: int) -> TierTable:
        """The memory tiers; nodes of `terminal` have no demotion target."""
        nodes = nodemask.of(n for n in nodemask.nodes(self.topology.memory) if self.allows(Service.TIER, n))
        return build_tiers(self.topology, nodes, demotion=demotion_enabled, terminal=terminal)

    def demotion_targets(self, table: TierTable, nid: int) -> tuple[int, ...]:
        """Who takes a node's cold pages: the nearest nodes of the next tier, then the rest of the lower tiers by
        distance; none for a node that is no source.
        """
        if not self.allows(Service.DEMOTION_SOURCE, nid):
            return ()
        topology = self.topology
        preferred = table.targets.get(nid, ())
        others = [n for n in nodemask.nodes(table.allowed.get(nid, 0)) if n not in preferred]
        # Linux lets the zonelist of the preferred target decide among the rest; faster tiers come first
        # there because firmware reports them nearer. Here the tier says so itself.
        others.sort(key=lambda n: (topology.node(n).adistance, topology.distance(nid, n), n))
        return tuple(n for n in (*preferred, *others) if self.allows(Service.DEMOTION_TARGET, n))
