"""Watching a run: what lies on private nodes at the end of each epoch, who put it there, whether he was invited.

Invited is judged as in the audit of single activities, apart from the designs: by what the actor named and what the
node's driver wished for in the configuration. Frames are looked at, with the reason and the owner that each page
remembers; pages that come and go within one epoch are missed here (`pgleak` counts those too, by the design's own
word).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from privmem.nodeagent.host.host import Host
from privmem.nodeagent.host.layout import PG_ALLOCATED, PTE_PFN_SHIFT, PTE_PRESENT
from privmem.nodeagent.host.memory import Node
from privmem.nodeagent.host.program import Program
from privmem.scheduler import nodemask
from privmem.scheduler.abi import SECTION_SHIFT, Feature, Reason

#: Wishes of which a node needs one for a page of this reason, whoever it is for.
_BY_WISH: dict[Reason, Feature] = {
    Reason.DEMOTION: Feature.DEMOTION,
    Reason.USER_MOVE: Feature.USER_NUMA | Feature.MIGRATION,
}
#: Reasons of a task whose policy must name the node.
_BY_POLICY = (Reason.POLICY, Reason.SWAPIN, Reason.PAGETABLE)
#: Workloads whose driver owns a node, and the reason with which it asks.
_OWNERS = {Reason.OWNER: "gpu", Reason.NETWORK: "messages"}


@dataclass(slots=True)
class Seen:
    """Pages of one kind of actor on one private node, over all epochs and hosts."""

    host: str
    nid: int
    reason: str
    #: Program, or holder of kernel memory.
    who: str
    invited: int = 0
    uninvited: int = 0
    #: Pages that moved off the node to another one though neither its driver nor its wishes had to do with it.
    left: int = 0

    def plain(self) -> dict[str, Any]:
        """For --json."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(slots=True)
class Watch:
    """Looks at hosts of a run, epoch by epoch. `wishes`: of the private nodes of every host."""

    wishes: dict[int, Feature]
    seen: dict[tuple[str, int, str, str], Seen] = field(default_factory=dict)
    #: Epochs looked at, and frames of private nodes found in use.
    epochs: int = 0
    frames: int = 0
    #: (host, node) -> (frame, reason, owner) of its pages at the end of the epoch before.
    _before: dict[tuple[str, int], set[tuple[int, int, int]]] = field(default_factory=dict)
    _places: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)

    @property
    def leaks(self) -> int:
        """Pages that landed or left uninvited."""
        return sum(row.uninvited + row.left for row in self.seen.values())

    def look(self, hosts: list[Host]) -> None:
        """At the end of an epoch."""
        self.epochs += 1
        for host in hosts:
            for nid in sorted(self.wishes):
                self._landed(host, host.memory.nodes[nid])
            for program in host.programs:
                self._moved_off(host, program)

    def _landed(self, host: Host, node: Node) -> None:
        frames = host.memory.frames
        flags = frames.flags[node.start_pfn : node.start_pfn + node.spec.span_pages]
        used = np.flatnonzero(flags & np.uint16(PG_ALLOCATED)) + node.start_pfn
        self.frames += len(used)
        columns = (used.tolist(), frames.reason[used].tolist(), frames.owner[used].tolist())
        now = set(zip(*columns, strict=True))
        for pfn, reason, owner in sorted(now - self._before.get((host.name, node.nid), set())):
            program = _program_of(host, owner)
            who = host.memory.kernel_pages.holders.get(pfn, program.spec.name if program else "the kernel")
            row = self._row(host, node.nid, Reason(reason).name.lower(), who)
            if self._invited(host, node.nid, Reason(reason), program, who):
                row.invited += 1
            else:
                row.uninvited += 1
        self._before[host.name, node.nid] = now

    def _row(self, host: Host, nid: int, reason: str, who: str) -> Seen:
        return self.seen.setdefault((host.name, nid, reason, who), Seen(host.name, nid, reason, who))

    def _invited(self, host: Host, nid: int, reason: Reason, program: Program | None, who: str) -> bool:
        if reason in _BY_WISH:
            return bool(self.wishes[nid] & _BY_WISH[reason])
        if reason in _BY_POLICY:
            policy = program.task.policy if program else None
            named = policy is not None and nodemask.has(policy.nodes, nid)
            return named and Feature.USER_NUMA in self.wishes[nid]
        service = host.memory.cram.owns(nid) or host.memory.nodes[nid].spec.owner_demotes
        if reason is Reason.OWNER and service:
            return True  # whose node it is: it takes cold pages by requests of its own
        kind = _OWNERS.get(reason)
        return kind is not None and any(
            calls["nid"] == nid
            and calls["kind"] == kind
            and who.removeprefix("messages of ") == other.spec.name
            for other in host.programs
            if (calls := other.spec.calls) is not None
        )

    def _moved_off(self, host: Host, program: Program) -> None:
        """Pages of a program that were on a private node and are elsewhere now, though nobody with the right to
        moved them: its driver, or the services that the node wished for.
        """
        memory = host.memory
        entries = memory.page_table.pte[program.slot : program.slot + program.stream.nr_pages]
        present = entries & np.uint32(PTE_PRESENT) != 0
        pfns = np.where(present, entries >> np.uint32(PTE_PFN_SHIFT), 0)
        nids = np.where(present, memory.frames.node_of_section[pfns >> SECTION_SHIFT], -1)
        before = self._places.get((host.name, program.spec.name))
        self._places[host.name, program.spec.name] = nids
        if before is None:
            return
        moving = Feature.RECLAIM | Feature.DEMOTION | Feature.USER_NUMA | Feature.NUMA_BALANCING
        for nid in self._private_of(before):
            driven = (program.spec.calls or {}).get("nid") == nid
            off = int(np.count_nonzero((before == nid) & (nids >= 0) & (nids != nid)))
            if off and not driven and not self.wishes[nid] & moving:
                self._row(host, nid, "moved off", program.spec.name).left += off

    def _private_of(self, nids: np.ndarray) -> Iterator[int]:
        return (nid for nid in np.unique(nids).tolist() if nid in self.wishes)


def _program_of(host: Host, pid: int) -> Program | None:
    return next((program for program in host.programs if program.spec.pid == pid), None)
