"""The host participant: one emulated Linux that runs its programs through an epoch and talks to pool and
devices.

Within an epoch the programs take turns in slices of virtual time; after them, in the same slice, the kernel's
own threads: kswapd of each node, the NUMA balancing scanner, the drivers' sampling. Where only the pool can
help (an extent) the host stops at that instant and goes on, with the same access, when the answer is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from privmem.nodeagent.host import far_memory, literal, numa_balancing, oom, pool_return, swap
from privmem.nodeagent.host.audit import validate_memory
from privmem.nodeagent.host.costs import ACCESS_BYTES
from privmem.nodeagent.host.cram import control, in_place
from privmem.nodeagent.host.cram.registration import adopt_devices
from privmem.nodeagent.host.memory import NUMASTAT, Memory, Node, NodeSpec, NumaBalancing, Sysctl
from privmem.nodeagent.host.page_alloc import NeedsExtent
from privmem.nodeagent.host.program import AccessStream, Program, ProgramSpec
from privmem.nodeagent.host.reclaim import run_kswapd
from privmem.nodeagent.host.story import Story
from privmem.nodeagent.host.task import Task, set_boot_policy
from privmem.scheduler.errors import ProtocolError
from privmem.scheduler.messages import (
    RESULTS,
    CapacityReport,
    DeviceReport,
    EpochBegin,
    ExtentGranted,
    ExtentRefused,
    ExtentUse,
    Message,
    PagesLoaded,
    PagesRefused,
    PagesStored,
    ReclaimAnswered,
    ReclaimExtent,
    ReleaseExtent,
    RequestExtent,
    Sample,
    Traffic,
)
from privmem.scheduler.participant import Clock, Mailer, Outbox
from privmem.scheduler.topology import HostTopology

#: After a refusal the host asks the pool for no more until this time has passed.
EXTENT_RETRY_NS = 10_000_000


class Host:
    """One emulated Linux host.

    `spec` is plain data: {"name", "scheduler", "slice_ns", "sample_every", "design", "topology", "nodes":
    [NodeSpec fields], "sysctl": {...}, "programs": [ProgramSpec fields and "policy"]} and, if the story of its
    pages is to be kept, "story": most events of it; with literal programs "content", the table of sources, whose
    arrays are in `resources`; "content_phases", [[source, when its phases begin]]. `streams`: the access stream of
    each program, in order.
    """

    def __init__(
        self,
        spec: dict[str, Any],
        streams: Sequence[AccessStream],
        resources: dict[str, np.ndarray] | None = None,
    ) -> None:
        self.spec = spec
        self.name: str = spec["name"]
        self.mail = Mailer(self.name)
        knobs = dict(spec["sysctl"])
        sysctl = Sysctl(numa_balancing=NumaBalancing(**knobs.pop("numa_balancing")), **knobs)
        topology = HostTopology.from_spec(spec["topology"])
        self.memory = Memory(topology, [NodeSpec(**n) for n in spec["nodes"]], sysctl, spec["design"])
        #: Most events of the story of its pages that are kept; 0 for no story.
        story_events = spec.get("story", 0)
        if story_events:
            self.memory.story = Story(self.memory, events_max=story_events)
        #: Content sources of programs whose pages travel byte for byte; none without such a program.
        self.memory.literal.take_sources(spec.get("content", []), resources or {})
        self.memory.page_table.content_phases = dict(spec.get("content_phases", []))
        self._node_of_device = {n.spec.device: n for n in self.memory.nodes.values()}
        adopt_devices(self.memory)
        if spec.get("swap_pages"):
            swap.swapon(self.memory, spec["swap_pages"])
        self.programs: list[Program] = []
        for entry, stream in zip(spec["programs"], streams, strict=True):
            fields = dict(entry)
            task = Task(fields["pid"], fields["cpu"], self.memory.resolver)
            set_boot_policy(task, fields.pop("policy"))
            self.programs.append(Program(ProgramSpec(**fields), task, stream, self.memory))
        self.epoch = -1
        self.slice_start_ns = 0
        #: Whose turn it is in the slice: programs first, then the kernel threads.
        self.turn = 0
        #: Node for which an answer of the pool is awaited, or -1.
        self.waiting_nid = -1
        self.sent_traffic: dict[int, bool] = {}
        #: Pages that went with memory taken by force, see `pool_return`.
        self.lost_pages: list[list[Any]] = []
        self.told_accesses: dict[int, int] = {}
        self.seen_accesses = self.memory.nr_accesses.copy()

    # -- the participant's interface

    def step(self, inbox: list[Message], clock: Clock) -> Outbox:
        """Take in answers and reports, then run on: to the end of the epoch, or to where an extent is needed."""
        if clock.epoch != self.epoch:
            self._begin_epoch(clock)
        for message in inbox:
            self._receive(message)
        if self.waiting_nid < 0 and self.slice_start_ns < clock.end_ns:
            self._refresh_costs()
            if self._run(clock):
                self._end_epoch(clock)
        self._send_outgoing()
        reached = self.memory.now_ns if self.waiting_nid >= 0 else clock.end_ns
        return Outbox(self.mail.take(), reached, finished=all(p.ended for p in self.programs))

    def _begin_epoch(self, clock: Clock) -> None:
        self.epoch = clock.epoch
        self.slice_start_ns = clock.start_ns
        self.turn = 0

    def _receive(self, message: Message) -> None:
        body = message.body
        match body:
            case EpochBegin():
                pass
            case ExtentGranted():
                node = self.memory.nodes[body.nid]
                unit = node.spec.extent_pages
                for start in range(body.start, body.start + body.nr_pages, unit):
                    self.memory.online(node, start, unit)
                self.memory.setup_watermarks()
                self.memory.vmstat.add("extents_granted", body.nr_pages // unit)
                if not body.more_pages:
                    self.waiting_nid = -1
            case ExtentRefused():
                self.memory.nodes[body.nid].refused_until_ns = self.memory.now_ns + EXTENT_RETRY_NS
                self.memory.vmstat.add("extents_refused")
                self.waiting_nid = -1
            case ReclaimExtent():
                self._give_back(self._node_of_device[body.device], body)
            case PagesStored():
                node = self._node_of_device[message.sender]
                node.unacknowledged_pages -= body.count
                node.credit_pages = body.credit_pages
            case PagesLoaded():
                literal.came_back(self.memory, message.sender, body)
            case DeviceReport():
                node = self._node_of_device[message.sender]
                node.device_ns = [body.read_ns, body.write_ns]
            case CapacityReport():
                control.hear(self.memory, self._node_of_device[message.sender], body)
            case PagesRefused():
                self._lose(self._node_of_device[message.sender], body.dpa)
            case _:
                raise ProtocolError(f"{self.name} cannot handle {type(body).__name__} from {message.sender}")

    # -- running

    def _run(self, clock: Clock) -> bool:
        """Run slices up to the epoch's end. False when the host had to stop for an extent."""
        while self.slice_start_ns < clock.end_ns:
            until = min(self.slice_start_ns + self.spec["slice_ns"], clock.end_ns)
            try:
                while self.turn < len(self.programs) + len(self.memory.nodes) + 1:
                    self._take_turn(self.turn, until)
                    self.turn += 1
            except NeedsExtent as need:
                self._request_extent(need.nid, until)
                return False
            self.turn = 0
            self.slice_start_ns = until
        return True

    def _take_turn(self, turn: int, until: int) -> None:
        memory = self.memory
        memory.now_ns = max(memory.now_ns, self.slice_start_ns)
        if turn < len(self.programs):
            program = self.programs[turn]
            if program.spec.stop_ns and not program.exited and self.slice_start_ns >= program.spec.stop_ns:
                program.exit(memory)
            if program.ended:
                return
            self._acts(program.spec.name)
            program.time_ns = max(program.time_ns, self.slice_start_ns)
            program.run(memory, until)
            while memory.out_of_memory:
                oom.kill_largest(memory, self.programs)
                memory.out_of_memory = False
                program.run(memory, until)
            return
        turn -= len(self.programs)
        nodes = sorted(memory.nodes)
        if turn < len(nodes):
            self._acts("the kernel")
            run_kswapd(memory, memory.nodes[nodes[turn]], until - self.slice_start_ns)
            return
        self._acts("the kernel")
        if memory.cram.nodes:
            control.work(memory, self.slice_start_ns, until, self._kill_on)
        for program in self.programs:
            if not program.ended:
                numa_balancing.scan(memory, program.task, memory.numa_balancing)
        far_memory.sample(memory)

    def _kill_on(self, nid: int) -> bool:
        """Somebody with pages on a node dies, for its balloon cannot get its size (F1)."""
        return oom.kill_largest(self.memory, self.programs, on_nid=nid)

    def _lose(self, node: Node, dpa: np.ndarray) -> None:
        """Rows of `lost_pages`, as in pool_return."""
        for time_ns, nid, at, slot, version in control.lose(self.memory, node, dpa):
            for program in self.programs:
                if program.slot <= slot < program.slot + program.stream.nr_pages:
                    page = slot - program.slot
                    self.lost_pages.append([time_ns, nid, at, program.spec.name, page, version])

    def _acts(self, who: str) -> None:
        """For the story of pages."""
        if self.memory.story is not None:
            self.memory.story.acts(who)

    def _request_extent(self, nid: int, until: int) -> None:
        memory = self.memory
        node = memory.nodes[nid]
        if memory.story is not None:
            memory.story.waits(f"waits for the pool: node {nid} needs an extent")
        memory.now_ns = min(memory.now_ns, until)
        memory.vmstat.add("extents_requested")
        self.waiting_nid = nid
        request = RequestExtent(node.spec.device, nid, node.spec.request_pages or node.spec.extent_pages)
        self.mail.send(self.spec["scheduler"], memory.now_ns, request)

    def _refresh_costs(self) -> None:
        for program in self.programs:
            if not program.ended:
                program.set_costs(self.memory)

    # -- the end of an epoch

    def _end_epoch(self, clock: Clock) -> None:
        memory = self.memory
        memory.now_ns = clock.end_ns
        if in_place.uncontrolled(memory):
            self._send_outgoing()  # pages that came in this epoch, before what was written to them there
            in_place.send_written(memory)
        accessed = memory.nr_accesses - self.seen_accesses
        self.seen_accesses = memory.nr_accesses.copy()
        for nid, node in memory.nodes.items():
            read = int(accessed[nid, 0]) * ACCESS_BYTES + node.migrated_read_bytes
            write = int(accessed[nid, 1]) * ACCESS_BYTES + node.migrated_write_bytes
            node.migrated_read_bytes = node.migrated_write_bytes = 0
            node.link.close_epoch((read, write), clock.end_ns - clock.start_ns, node.device_ns)
            if read or write or self.sent_traffic.get(nid):
                self.mail.send(node.spec.device, clock.end_ns, Traffic(clock.epoch, read, write))
            self.sent_traffic[nid] = bool(read or write)
            self._give_back_extent(node)
            if node.spec.report_use and self.told_accesses.get(nid, 0) != int(accessed[nid].sum()):
                self.told_accesses[nid] = int(accessed[nid].sum())
                use = ExtentUse(node.spec.device, self.told_accesses[nid])
                self.mail.send(self.spec["scheduler"], clock.end_ns, use)
        if (clock.epoch + 1) % self.spec["sample_every"] == 0:
            self._sample(clock)

    def _give_back_extent(self, node: Node) -> None:
        """A pooled node gives one extent back, if one is entirely free, and a request's worth of pages besides.

        Besides, so that a host at the border does not ask for at once what it just gave back.
        """
        kept_pages = max(node.spec.request_pages, node.spec.extent_pages) + node.wmark.high_pages
        if not node.spec.pooled or node.free_pages < node.spec.extent_pages + kept_pages:
            return
        for start, nr_pages in reversed(node.extents):
            if self.memory.offline(node, start, nr_pages):
                self.memory.setup_watermarks()
                self.memory.vmstat.add("extents_released")
                self._send_release(node, [(start, nr_pages)])
                return

    def _send_release(self, node: Node, extents: list[tuple[int, int]]) -> None:
        """What the pages did before goes first."""
        self._send_outgoing()
        for start, nr_pages in extents:
            self.mail.send(node.spec.device, self.memory.now_ns, ReleaseExtent(node.nid, start, nr_pages))

    def _send_outgoing(self) -> None:
        for device, body in self.memory.outgoing.take():
            self.mail.send(device, self.memory.now_ns, body)

    def _give_back(self, node: Node, asked: ReclaimExtent) -> None:
        """The pool wants extents back; afterwards the host asks for none until it may again."""
        memory = self.memory
        memory.now_ns = max(memory.now_ns, self.slice_start_ns)
        memory.vmstat.add("extents_asked_back", asked.nr_pages // node.spec.extent_pages)
        done = pool_return.give_back(memory, node, asked.nr_pages, self.programs, forced=asked.forced)
        node.refused_until_ns = memory.now_ns + EXTENT_RETRY_NS
        self.lost_pages += done.lost
        self._send_release(node, done.extents)
        answer = ReclaimAnswered(asked.device, asked.nr_pages, done.nr_pages, len(done.lost))
        self.mail.send(self.spec["scheduler"], memory.now_ns, answer)

    def _sample(self, clock: Clock) -> None:
        when = {"epoch": clock.epoch, "time_ns": clock.end_ns, "host": self.name}
        events = {
            "accesses": sum(p.accesses_done for p in self.programs),
            "access_ns": sum(p.access_ns for p in self.programs),
            "fault_ns": sum(p.fault_ns for p in self.programs),
        }
        rows = [when | {"nid": nid} | self._node_numbers(node) for nid, node in self.memory.nodes.items()]
        self.mail.send(RESULTS, clock.end_ns, Sample("host", [when | events | self.memory.vmstat.count]))
        self.mail.send(RESULTS, clock.end_ns, Sample("host_node", rows))
        controlled = [cram for cram in self.memory.cram.nodes.values() if cram.controlled]
        if controlled:
            service = str(self.memory.cram.generation)
            rows = [
                when | {"nid": cram.nid, "service": service} | control.sample(self.memory, cram)
                for cram in controlled
            ]
            self.mail.send(RESULTS, clock.end_ns, Sample("cram", rows))

    def _node_numbers(self, node: Node) -> dict[str, int]:
        inactive_anon, active_anon, inactive_file, active_file = self.memory.lru_sizes(node.nid)
        numastat = self.memory.numastat[node.nid].tolist()
        reads, writes = self.memory.nr_accesses[node.nid].tolist()
        return {
            "present_pages": node.usable_pages,
            "free_pages": node.free_pages,
            "active_anon": active_anon,
            "inactive_anon": inactive_anon,
            "active_file": active_file,
            "inactive_file": inactive_file,
            "accesses": reads + writes,
            "read_ns": node.read_ns,
            "write_ns": node.write_ns,
            "reads": reads,
            "writes": writes,
            "block_cache_hits": int(self.memory.block_caches.looked[node.nid, 0]),
            "block_cache_misses": int(self.memory.block_caches.looked[node.nid, 1]),
            **dict(zip(NUMASTAT, numastat, strict=True)),
        }

    # -- state

    def snapshot(self) -> dict[str, Any]:
        """The whole state; see participant.Participant."""
        return {
            "seq": self.mail.seq,
            "memory": self.memory.snapshot(),
            "programs": [p.snapshot() for p in self.programs],
            "epoch": self.epoch,
            "slice_start_ns": self.slice_start_ns,
            "turn": self.turn,
            "waiting_nid": self.waiting_nid,
            "sent_traffic": dict(self.sent_traffic),
            "seen_accesses": self.seen_accesses.copy(),
            "lost_pages": [list(row) for row in self.lost_pages],
            "told_accesses": dict(sorted(self.told_accesses.items())),
            **({"story": self.memory.story.snapshot()} if self.memory.story is not None else {}),
        }

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Take over a snapshot of a host of the same spec."""
        self.mail.seq = snapshot["seq"]
        self.memory.restore(snapshot["memory"])
        for program, state in zip(self.programs, snapshot["programs"], strict=True):
            program.restore(state)
        for name in ("epoch", "slice_start_ns", "turn", "waiting_nid"):
            setattr(self, name, snapshot[name])
        self.sent_traffic = dict(snapshot["sent_traffic"])
        self.lost_pages = [list(row) for row in snapshot["lost_pages"]]
        self.told_accesses = {int(nid): int(n) for nid, n in snapshot["told_accesses"].items()}
        self.seen_accesses[:] = snapshot["seen_accesses"]
        if self.memory.story is not None and "story" in snapshot:
            self.memory.story.restore(snapshot["story"])

    def counters(self) -> dict[str, int]:
        """Events, accesses and clocks: whatever the host does moves one of them."""
        numbers = dict(self.memory.vmstat.count)
        numbers["now_ns"] = self.memory.now_ns
        for program in self.programs:
            numbers[f"{program.spec.name}.accesses"] = program.accesses_done
            numbers[f"{program.spec.name}.time_ns"] = program.time_ns
        return numbers

    def summary(self) -> dict[str, Any]:
        """vmstat, nodes and programs."""
        nodes = {}
        for nid, node in self.memory.nodes.items():
            place = self.memory.topology.node(nid)
            nodes[nid] = self._node_numbers(node) | {
                "device": node.spec.device,
                "private": node.private,
                "cpus": list(place.cpus),
                "extents": len(node.extents),
            }
            cram = self.memory.cram.nodes.get(nid)
            if cram is not None and cram.controlled:
                nodes[nid]["service"] = control.sample(self.memory, cram) | {
                    "generation": str(self.memory.cram.generation),
                    "write_control": node.fenced,
                }
        programs = {
            p.spec.name: {
                "accesses": p.accesses_done,
                "access_ns": int(p.access_ns),
                "fault_ns": p.fault_ns,
                "time_ns": p.time_ns,
                "ended": p.ended,
                "killed": p.killed,
                "spec": asdict(p.spec),
                **({} if p.calls is None else {"call_ns": p.call_ns, "calls": p.calls.figures}),
            }
            for p in self.programs
        }
        told = self.memory.story
        return {
            "vmstat": dict(self.memory.vmstat.count),
            "nodes": nodes,
            "processes": programs,
            **({"lost_pages": [list(row) for row in self.lost_pages]} if self.lost_pages else {}),
            **({"story": told.snapshot()} if told is not None else {}),
        }

    def validate(self) -> None:
        """Every frame in exactly one state, counters equal to a recount, nothing where its node forbids it."""
        validate_memory(self.memory)
