"""Registering a compressed node: claim it, add its memory, put it online; and all of that back.

Models `cram_register` and `cram_unregister` of F3, which the F1 service follows here with the features that
it wants. The write fence is the absence of Feature.USER_WRITE in a mask. The first generation registers a
node that is private already, and is in pressure.py.
"""

from __future__ import annotations

import errno

from privmem.nodeagent.host.cram import balloon
from privmem.nodeagent.host.cram.gate import apply_gate
from privmem.nodeagent.host.cram.service import CramNode, Generation
from privmem.nodeagent.host.hotplug import Hotplug
from privmem.nodeagent.host.memory import Memory
from privmem.scheduler.abi import Feature
from privmem.scheduler.isolation.design import Claim
from privmem.scheduler.tiers import ADISTANCE_DAX

#: What a mask must have, and what it may have besides.
_WANTED = {
    Generation.V4: Feature.RECLAIM | Feature.DEMOTION | Feature.MIGRATION | Feature.NUMA_BALANCING,
    Generation.F1: Feature.RECLAIM | Feature.DEMOTION,
    Generation.F3: Feature.RECLAIM,
}
_ALLOWED = {Generation.F1: Feature.NONE, Generation.F3: Feature.COMPACTION}


def usual_features(generation: Generation) -> Feature:
    """The mask of a compressed node when nobody says otherwise."""
    return _WANTED[generation]


def cram_register(
    plug: Hotplug, nid: int, ranges: list[tuple[int, int]], features: Feature, owner: str, nominal: int = 1000
) -> int:
    """0 or a negative errno, after which all is as it was."""
    memory = plug.memory
    service = memory.cram
    wanted = usual_features(service.generation)
    allowed = wanted | _ALLOWED.get(service.generation, Feature.NONE)
    if nid not in memory.nodes or not ranges or any(start < 0 or pages <= 0 for start, pages in ranges):
        return -errno.EINVAL
    if features & wanted != wanted or features & ~allowed:
        return -errno.EINVAL
    if service.unloading or service.owns(nid):
        return -errno.EBUSY
    added: list[tuple[int, int]] = []
    error = 0
    claim = Claim(owner, features)
    for start, pages in ranges:
        error = plug.add_private_memory(nid, claim, start, pages)
        if error:
            break
        added.append((start, pages))
    if not error:
        service.nodes[nid] = CramNode(
            nid, owner, features, list(ranges), nominal_ratio=nominal, real_ratio=nominal
        )
        if not memory.nodes[nid].spec.compressed:
            plug.adistance.setdefault(nid, ADISTANCE_DAX)
        error = plug.online(nid)
    if error:
        service.nodes.pop(nid, None)
        for start, _ in added:
            plug.remove(nid, start)
    return error


def cram_unregister(plug: Hotplug, nid: int, ranges: list[tuple[int, int]] | None = None) -> int:
    """0; -EINVAL for a bad node or other ranges than the registered ones; -ENODEV; -EBUSY with the node as
    usable as before. `ranges`: None for those that were registered.
    """
    memory = plug.memory
    if nid not in memory.nodes:
        return -errno.EINVAL
    cram = memory.cram.nodes.get(nid)
    if cram is None:
        return -errno.ENODEV
    if ranges is not None and sorted(ranges) != sorted(cram.ranges):
        return -errno.EINVAL
    cram.gate.migration_blocked = True
    apply_gate(memory, cram)
    error = plug.remove(nid)
    cram.gate.migration_blocked = False
    if error:
        apply_gate(memory, cram)
        if not memory.nodes[nid].managed_pages or any(not part.online for part in plug.ranges[nid]):
            plug.online(nid)
        balloon.converge(memory, cram)
        return error
    del memory.cram.nodes[nid]
    memory.nodes[nid].no_alloc_owner = ""
    memory.setup_tiers()
    return 0


def adopt_devices(memory: Memory) -> None:
    """The compressed nodes of a host in a run, which its configuration claimed and put online. Those whose device
    reports (`NodeSpec.service`, control.py) are registered as they are, with whatever features: the run may want to
    see what becomes of a node without write control. Of the others, whose space is leased (messages.PagesStored) so
    that they never need a balloon, F3 takes the fenced ones, for nothing else may place pages there.
    """
    service = memory.cram
    named = [node.spec.service for node in memory.nodes.values() if node.spec.service]
    if named:
        service.generation = Generation(named[0])
    for nid, node in memory.nodes.items():
        place = memory.topology.node(nid)
        leased = (
            service.generation is Generation.F3 and node.spec.compressed and place.private and node.fenced
        )
        if not node.spec.service and not leased:
            continue
        ranges = [(0, node.spec.span_pages)]
        cram = CramNode(nid, node.spec.device, place.features, ranges)
        if node.spec.service:
            cram.nominal_ratio = cram.real_ratio = node.spec.nominal_ratio
            cram.controlled = True
        service.nodes[nid] = cram
    if named:
        memory.setup_tiers()
