"""Memory that comes and goes: a driver claims a node, adds a range, puts it online, offline, and removes it.

Models `add_memory_driver_managed`, `online_pages`, `offline_pages` and `remove_memory` (mm/memory_hotplug.c,
Linux 6.1), and what the private-node series adds: `add_private_memory_driver_managed` claims the node first.
A node is private only while memory of a claim is online; its claim survives offline and goes with the last
range that is *removed* (F1). Zonelists, tiers and watermarks are made anew at each step. Left out: memory
blocks (a range goes online and offline as a whole), vmemmap on the memory itself, failures of notifiers.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from privmem.nodeagent.host import hugetlb, hugetlb_move, kmem
from privmem.nodeagent.host.cram import balloon
from privmem.nodeagent.host.high_order import HPAGE_PAGES
from privmem.nodeagent.host.layout import PG_ALLOCATED, PG_LRU, PG_UNINVITED
from privmem.nodeagent.host.memory import Memory, Node
from privmem.nodeagent.host.migrate import move_to_frames
from privmem.nodeagent.host.page_alloc import AllocContext, alloc_page, free_unused_page
from privmem.scheduler import nodemask
from privmem.scheduler.abi import MAX_NUMNODES, PAGE_SHIFT, PAGEBLOCK_ORDER, Feature, Reason
from privmem.scheduler.isolation import Service
from privmem.scheduler.isolation.claims import add_memory_error, cpu_error
from privmem.scheduler.isolation.design import Claim
from privmem.scheduler.topology import ZONE_MOVABLE, ZONE_NORMAL, HostTopology
from privmem.scheduler.zonelist import AllocRequest

#: States of a range, as the test drivers of the series write them to their `state` file.
UNPLUGGED = "unplugged"
OFFLINE = "offline"
ONLINE = "online"

PAGEBLOCK_PAGES = 1 << PAGEBLOCK_ORDER


@dataclass(slots=True)
class Range:
    """One range of a device's memory on a node: pages [start, start + nr_pages) of the node's span."""

    start: int
    nr_pages: int
    online: bool = False


class Hotplug:
    """Which node is claimed by whom, and the ranges that each has."""

    def __init__(self, memory: Memory, log: list[str] | None = None) -> None:
        self.memory = memory
        #: The kernel's log, which hears of memory that does not go offline.
        self.log = [] if log is None else log
        self.claims: dict[int, Claim] = {}
        self.ranges: dict[int, list[Range]] = {nid: [] for nid in memory.nodes}
        #: Memory groups that drivers registered: id -> node.
        self.groups: dict[int, int] = {}
        #: Nodes whose owner forbids that their resident pages are moved out when memory goes offline.
        self.keeps_residents: dict[int, bool] = {}
        #: Abstract distances that drivers asked for, until their claims go.
        self.adistance: dict[int, int] = {}
        self._boot_adistance = {n.nid: n.adistance for n in memory.topology.nodes}
        for nid, node in memory.nodes.items():
            if node.managed_pages:
                self.ranges[nid].append(Range(0, node.managed_pages, online=True))

    # -- claims

    def claim(self, nid: int, claim: Claim) -> int:
        """`node_features_register` and its forerunners: 0 or a negative errno. Changes no node state."""
        memory = self.memory
        if nid not in memory.nodes:
            return -errno.EINVAL
        design = memory.resolver.design
        error = design.claim_error(claim.features)
        error = error or cpu_error(design.label, nodemask.has(memory.topology.with_cpus, nid))
        if error:
            return error
        held = self.claims.get(nid)
        error = design.reclaim_error(held, bool(memory.nodes[nid].managed_pages), claim)
        if not error and (held is None or (held.owner == claim.owner and not held.features)):
            self.claims[nid] = claim
        return error

    def take_claim(self, nid: int, claim: Claim | None) -> None:
        """What a register, set_ops or unregister call of a driver left: the claim as it is now, or none."""
        if nid not in self.memory.nodes or self.claims.get(nid) == claim:
            return
        if claim is None:
            del self.claims[nid]
        else:
            self.claims[nid] = claim
        self._retake(nid, self.memory.topology.node(nid).zone)
        self._keep_residents(nid)

    def _keep_residents(self, nid: int) -> None:
        """Pages that came in by a right that the claim has no more stay where they are: as pages of the owner, who
        let them in, so that a recount does not take them for leaks.
        """
        resolver, frames, node = self.memory.resolver, self.memory.frames, self.memory.nodes[nid]
        if not node.private:
            return
        span = slice(node.start_pfn, node.start_pfn + node.spec.span_pages)
        used = (frames.flags[span] & np.uint16(PG_ALLOCATED | PG_UNINVITED)) == PG_ALLOCATED
        for value in np.unique(frames.reason[span][used]).tolist():
            asked = AllocRequest(nid, 1 << nid, Reason(value), this_node=True, private=True)
            if value != Reason.HUGETLB and not resolver.design.invited(asked, resolver.topology.node(nid)):
                frames.reason[span][used & (frames.reason[span] == value)] = int(Reason.OWNER)

    def claim_at_boot(self, nid: int, features: Feature) -> None:
        """`private_node=`: memory that firmware reported belongs to nobody's driver, and is private from now
        on.
        """
        self.claims[nid] = Claim("private_node=", features)
        self._retake(nid, self.memory.topology.node(nid).zone)

    def release(self, nid: int) -> int:
        """Give a claim back: -EBUSY while the node has memory online, 0 otherwise, also when there is none."""
        if self.memory.nodes[nid].managed_pages:
            return -errno.EBUSY
        self.claims.pop(nid, None)
        return 0

    # -- ranges

    def register_group(self, nid: int) -> int:
        """`memory_group_register_static`: the id of a new group of ranges of one node."""
        if nid not in self.memory.nodes:
            return -errno.EINVAL
        group = max(self.groups, default=-1) + 1
        self.groups[group] = nid
        return group

    def add_private_memory(
        self, nid: int, claim: Claim | None, start: int, nr_pages: int, group: int | None = None
    ) -> int:
        """`add_private_memory_driver_managed`: claim the node and add a range, offline; in a memory group of
        the node, if one is named (MHP_NID_IS_MGID). A failure leaves nothing behind.
        """
        known = group is None or self.groups.get(group) == nid
        error = add_memory_error(None if claim is None else claim.owner, known)
        if error or claim is None or nid not in self.memory.nodes:
            return error or -errno.EINVAL
        unclaimed = nid not in self.claims
        error = self.claim(nid, claim)
        if error:
            return error
        error = self._add_range(nid, start, nr_pages)
        if error and unclaimed:
            del self.claims[nid]
        return error

    def add_memory(self, nid: int, start: int, nr_pages: int) -> int:
        """`add_memory_driver_managed`: a range of ordinary memory, offline; not on a claimed node."""
        if nid not in self.memory.nodes:
            return -errno.EINVAL
        if nid in self.claims:
            return -errno.EBUSY
        return self._add_range(nid, start, nr_pages)

    def _add_range(self, nid: int, start: int, nr_pages: int) -> int:
        span = self.memory.nodes[nid].spec.span_pages
        if nr_pages <= 0 or start < 0 or start + nr_pages > span:
            return -errno.EINVAL
        if any(start < r.start + r.nr_pages and r.start < start + nr_pages for r in self.ranges[nid]):
            return -errno.EEXIST
        self.ranges[nid].append(Range(start, nr_pages))
        return 0

    def online(self, nid: int, zone: str = ZONE_MOVABLE) -> int:
        """`online_pages` for all ranges of a node: `online_movable` or, with ZONE_NORMAL, `online_kernel`.

        The node takes the zone with its first range; another zone later is EINVAL.
        """
        memory = self.memory
        node = memory.nodes[nid]
        ranges = self.ranges[nid]
        if zone not in (ZONE_MOVABLE, ZONE_NORMAL):
            return -errno.EINVAL
        if not ranges:
            return -errno.ENODEV
        if node.managed_pages and memory.topology.node(nid).zone != zone:
            return -errno.EINVAL
        if not node.managed_pages and kmem.node_structures(memory, nid, kswapd=False) < 0:
            return -errno.ENOMEM
        for part in ranges:
            if not part.online:
                memory.online(node, part.start, part.nr_pages)
                part.online = True
        self._retake(nid, zone)
        return 0

    def offline(self, nid: int, start: int | None = None) -> int:
        """`offline_pages` for all ranges of a node, or the one that begins at `start`: residents move out, or
        -EBUSY and all stays as it was.
        """
        for part in self.ranges[nid]:
            if part.online and start in (None, part.start):
                error = self._offline_range(nid, part)
                if error:
                    return error
        self._retake(nid, self.memory.topology.node(nid).zone)
        return 0

    def remove(self, nid: int, start: int | None = None) -> int:
        """`offline_and_remove_memory` of one range (by its start) or of all. The claim goes with the last
        range; while others remain it is kept, and -EBUSY says so (`offline_and_remove_private_memory`).
        """
        chosen = [r for r in self.ranges[nid] if start is None or r.start == start]
        if not chosen:
            return -errno.EINVAL
        for part in chosen:
            if part.online:
                error = self._offline_range(nid, part)
                if error:
                    self._retake(nid, self.memory.topology.node(nid).zone)
                    return error
            self.ranges[nid].remove(part)
        self._retake(nid, self.memory.topology.node(nid).zone)
        if self.ranges[nid]:
            return -errno.EBUSY if nid in self.claims else 0
        self.claims.pop(nid, None)
        self.adistance.pop(nid, None)
        kmem.give_back_all(self.memory, kmem.structures_of(nid))
        return 0

    def block_state_error(self, nid: int, online: bool, start: int | None = None) -> int:
        """What writing to `state` of memory blocks answers when none of them is in the state that is left:
        -EINVAL; -ENODEV when the node has no blocks.
        """
        chosen = [r for r in self.ranges[nid] if start in (None, r.start)]
        if not chosen:
            return -errno.EINVAL if self.ranges[nid] else -errno.ENODEV
        return 0 if any(r.online == online for r in chosen) else -errno.EINVAL

    def state(self, nid: int) -> str:
        """`online`, `offline` or `unplugged`."""
        if not self.ranges[nid]:
            return UNPLUGGED
        return ONLINE if any(r.online for r in self.ranges[nid]) else OFFLINE

    # -- inside

    def _retake(self, nid: int, zone: str) -> None:
        """`build_all_zonelists` and `node_states_set_node` after memory of a node came or went."""
        memory = self.memory
        claim = self.claims.get(nid)
        pages = memory.nodes[nid].managed_pages
        features = claim.features if claim else Feature.ALL
        old = memory.topology.node(nid)
        new = replace(
            old,
            span_pages=pages,
            private=claim is not None and pages > 0,
            features=features,
            zone=zone,
            adistance=self.adistance.get(nid, self._boot_adistance[nid]),
        )
        nodes = tuple(new if n.nid == nid else n for n in memory.topology.nodes)
        memory.take_topology(HostTopology(nodes, memory.topology.distances))

    def _offline_range(self, nid: int, part: Range) -> int:
        """Take the free pages away, move the others out, and the range is gone; or -EBUSY, and it is not."""
        memory = self.memory
        node = memory.nodes[nid]
        first = node.start_pfn + part.start
        pfns = np.arange(first, first + part.nr_pages, dtype=np.int32)
        free = hugetlb.holds_free(memory, first, part.nr_pages)
        free |= balloon.holds(memory, nid, first, part.nr_pages)
        residents = pfns[(memory.frames.flags[pfns] & PG_ALLOCATED != 0) & ~free]
        if len(residents):
            if self.keeps_residents.get(nid):
                return self._stuck(part, nid, residents.tolist(), "the owner keeps residents on its device")
            if not memory.resolver.allows(Service.HOTUNPLUG, nid):
                return self._stuck(
                    part, nid, residents.tolist(), "the design does not let hotplug move residents out"
                )
            unmovable = [pfn for pfn in residents.tolist() if not self._movable(pfn)]
            if unmovable:
                return self._stuck(part, nid, unmovable, "unmovable: a kernel page, or pinned")
            error = self._move_out(node, residents)
            if error:
                return self._failed(part, nid, "migration failure")
        error = hugetlb.dissolve_free_pages(memory, first, part.nr_pages)
        if error:
            return error
        balloon.leave_range(memory, nid, first, part.nr_pages)
        if not node.buddy.remove_range(first, part.nr_pages):
            return -errno.EBUSY
        node.managed_pages -= part.nr_pages
        part.online = False
        return 0

    def _movable(self, pfn: int) -> bool:
        if hugetlb_move.is_pool_page(self.memory, pfn):
            return hugetlb_move.may_isolate(self.memory, pfn - pfn % HPAGE_PAGES)
        return bool(self.memory.frames.flags[pfn] & PG_LRU)

    def _stuck(self, part: Range, nid: int, pfns: list[int], why: str) -> int:
        if self.memory.story is not None:
            for pfn in pfns:
                self.memory.story.stayed(pfn, f"offline is -EBUSY: {why}")
        return self._failed(part, nid, "unmovable page")

    def _failed(self, part: Range, nid: int, why: str) -> int:
        first = (self.memory.nodes[nid].start_pfn + part.start) << PAGE_SHIFT
        last = first + (part.nr_pages << PAGE_SHIFT) - 1
        self.log.append(f"memory offlining [mem {first:#010x}-{last:#010x}] failed due to {why} (node {nid})")
        return -errno.EBUSY

    def _move_out(self, node: Node, pfns: np.ndarray) -> int:
        """`do_migrate_range`: to any other node with memory of the ordinary list, nearest first."""
        memory = self.memory
        resolver = memory.resolver
        others = resolver.topology.memory & ~(1 << node.nid)
        request = AllocRequest(node.nid, others, Reason.HOTPLUG)
        resolution = resolver.resolve(request, None)
        zones = tuple(n for n in resolution.zones if n != node.nid)
        context = AllocContext(
            zones, Reason.HOTPLUG, uninvited=resolution.uninvited, request=request, may_reclaim=bool(zones)
        )
        for pfn in pfns.tolist():
            if not memory.frames.flags[pfn] & PG_ALLOCATED:
                continue  # reclaim for the others freed it
            if hugetlb_move.is_pool_page(memory, pfn):
                if pfn % HPAGE_PAGES == 0 and hugetlb_move.move(memory, pfn, zones, Reason.HOTPLUG) < 0:
                    return -errno.EBUSY
                continue
            memory.lru_del(pfn)
            new = alloc_page(memory, context) if zones else -errno.ENOMEM
            if new < 0:
                memory.lru_add(pfn)
                return -errno.EBUSY
            if memory.frames.nid_of(new) == node.nid:
                free_unused_page(memory, new)
                memory.lru_add(pfn)
                return -errno.EBUSY
            pair = np.array([pfn, new], dtype=np.int32)
            move_to_frames(memory, pair[:1], pair[1:], Reason.HOTPLUG)
        return 0

    # -- state

    def snapshot(self) -> dict[str, Any]:
        return {
            "claims": {nid: [c.owner, int(c.features)] for nid, c in sorted(self.claims.items())},
            "adistance": dict(sorted(self.adistance.items())),
            "groups": dict(sorted(self.groups.items())),
            "keeps_residents": dict(sorted(self.keeps_residents.items())),
            "ranges": {nid: [[r.start, r.nr_pages, r.online] for r in rs] for nid, rs in self.ranges.items()},
        }

    def restore(self, snapshot: dict[str, Any]) -> None:
        self.claims = {int(n): Claim(owner, Feature(f)) for n, (owner, f) in snapshot["claims"].items()}
        self.adistance = {int(n): int(a) for n, a in snapshot["adistance"].items()}
        self.groups = {int(g): int(n) for g, n in snapshot["groups"].items()}
        self.keeps_residents = {int(n): bool(k) for n, k in snapshot["keeps_residents"].items()}
        self.ranges = {int(n): [Range(*r) for r in rs] for n, rs in snapshot["ranges"].items()}


def possible_mask(memory: Memory) -> int:
    """`node_possible_map`: every node id that the machine can ever have."""
    return nodemask.of(nid for nid in memory.nodes if nid < MAX_NUMNODES)
