"""The scene of an activity on a machine in the midst of a run, its memory full of what the workloads put there.

The activities of the audit run on it as on a freshly booted one, by the same kernel paths, and are judged by the
same rule. What is there beside them is the workloads' memory: watermarks reached, devices' promises used up, pins
and buffers held. While an activity runs, which takes no virtual time, no workload does; afterwards the run goes on.

Left out: memory of a pooled device cannot come or go within an activity (the pool is not asked), so its nodes are
spared by rows that unplug; the OOM killer of an activity kills that activity's own processes only.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from privmem.cluster.audit.activities import NotRunnable
from privmem.cluster.audit.machine import RESIDENT_PAGES, AuditMachine, Scene
from privmem.nodeagent.host.host import Host
from privmem.nodeagent.host.kernel import Kernel
from privmem.nodeagent.host.layout import PG_ALLOCATED, PG_HELD
from privmem.nodeagent.host.oom import ADJ_MIN
from privmem.nodeagent.host.process import Process, Signalled
from privmem.nodeagent.host.story import Story
from privmem.scheduler.abi import Reason

#: Free pages that a private node needs beyond its low watermark for an application of its owner to settle there.
ROOM_PAGES = RESIDENT_PAGES + 32


class LoadedScene(Scene):
    """A host of a run, and the pages that were there when the activity began."""

    def __init__(
        self, machine: AuditMachine, host: Host, *, demotion: bool, balancing: int, unplugs: bool
    ) -> None:
        memory = host.memory
        self.machine = machine
        self.host = host
        first_pid = max((program.spec.pid for program in host.programs), default=0) + 1
        self.kernel = Kernel.over(memory, machine.nodes, first_pid)
        if memory.story is None:
            memory.story = Story(memory)
        self.private = {
            node.nid: replace(node, pages=memory.nodes[node.nid].managed_pages)
            for node in machine.private
            if self._takes_part(node.nid, unplugs)
        }
        self.home, self.away = machine.public[0], machine.public[1]
        self.residents = {}
        self.before = {}
        self.held_before = {}
        self.states_before = {}
        self.reckoned = {}
        self._found = (memory.demotion_enabled, memory.numa_balancing.mode)
        self._refused_ns = {nid: node.refused_until_ns for nid, node in memory.nodes.items()}
        for node in memory.nodes.values():
            node.refused_until_ns = 1 << 62
        self.kernel.kswapd(wake=True)  # as the run had it at the end of its slice
        self._switch(demotion, balancing)

    def of_device(self, nid: int) -> set[int]:
        """Besides mappings of the node's device: what its compressed RAM service keeps there, which in the latest
        version takes pages from reclaim as the node's owner.
        """
        found = super().of_device(nid)
        memory = self.kernel.memory
        if memory.cram.owns(nid):
            own = memory.frames.reason == int(Reason.OWNER)
            unheld = memory.frames.flags & np.uint16(PG_ALLOCATED | PG_HELD) == PG_ALLOCATED
            node = memory.nodes[nid]
            end = node.start_pfn + node.spec.span_pages
            mine = np.flatnonzero((own & unheld)[node.start_pfn : end]) + node.start_pfn
            found |= set(mine.tolist()) - self.before.get(nid, set())
        return found

    def settle_one(self, nid: int) -> None:
        """As on an idle machine; the OOM killer spares the application, whose end would not be a leak."""
        super().settle_one(nid)
        self.residents[nid][0].task.oom_score_adj = ADJ_MIN

    def moved_in(self, nid: int, nr_pages: int, aligned: bool = False) -> tuple[Process, int]:
        """As on an idle machine, if the node has room for it."""
        try:
            return super().moved_in(nid, nr_pages, aligned)
        except OSError as failure:
            raise NotRunnable(f"node {nid} has no room: {failure}") from failure
        except Signalled as end:
            raise NotRunnable(f"no room for a process in ordinary memory: {end.signal.name}") from end

    def _takes_part(self, nid: int, unplugs: bool) -> bool:
        node = self.host.memory.nodes[nid]
        room = node.free_pages - node.wmark.low_pages
        if node.spec.stores:
            room = min(room, node.store_room_pages)
        return room >= ROOM_PAGES and not (unplugs and node.spec.pooled)

    def _switch(self, demotion: bool, balancing: int) -> None:
        memory = self.kernel.memory
        memory.demotion_enabled = demotion
        memory.setup_tiers()
        self.kernel.set_numa_balancing(balancing)

    def end(self) -> None:
        """The knobs and the pool are as the run had them."""
        self._switch(*self._found)
        for nid, node in self.kernel.memory.nodes.items():
            node.refused_until_ns = self._refused_ns[nid]
