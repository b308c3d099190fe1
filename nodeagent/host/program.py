"""A program: one task that makes the accesses of a workload, and the virtual time that this takes."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from privmem.nodeagent.host._access_kernel import run_accesses
from privmem.nodeagent.host.costs import SIGBUS_NS
from privmem.nodeagent.host.device_calls import make_calls
from privmem.nodeagent.host.fault import FAULT_SIGBUS, handle_fault, unmap_range
from privmem.nodeagent.host.layout import STOP_BUDGET, STOP_END
from privmem.nodeagent.host.memory import Memory
from privmem.nodeagent.host.mm import Vma
from privmem.nodeagent.host.task import Task
from privmem.scheduler import nodemask
from privmem.scheduler.abi import MAX_NUMNODES
from privmem.scheduler.errors import InvariantError

#: Accesses fetched from the stream at a time.
BATCH = 1 << 14
#: Where a program's memory is mapped: page 2**20 of its address space, 4 GiB up.
BASE_VPN = 1 << 20


class AccessStream(Protocol):
    """A workload's accesses in order; implementations are in `cluster/workloads`."""

    nr_pages: int

    def fill(self, out: np.ndarray) -> int:
        """Write the next accesses (`page << 1 | is_write`, uint32) and return how many; 0 when the workload
        has ended.
        """

    def snapshot(self) -> dict[str, Any]:
        """Where the stream stands."""

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Go on from a snapshot."""


@dataclass(frozen=True, slots=True)
class ProgramSpec:
    """What runs, and how it is bound to its host."""

    name: str
    pid: int
    cpu: int
    threads: int  # accesses in flight at a time
    think_ns: int  # CPU time of a thread between two accesses
    source: int  # content of its pages, see `nodeagent/content.py`
    start_ns: int = 0  # when it begins
    stop_ns: int = 0  # when it exits, whatever is left to do, and its memory is free; 0 for never
    recovers: bool = False  # whether it handles SIGBUS and goes on with a new page there; else it is killed
    calls: dict[str, Any] | None = None  # what it asks of drivers between accesses, see device_calls.py


class Program:
    """State of one program. Time is its own clock: the host lets its programs take turns in slices."""

    def __init__(self, spec: ProgramSpec, task: Task, stream: AccessStream, memory: Memory) -> None:
        self.spec = spec
        self.task = task
        self.stream = stream
        self.batch = np.zeros(BATCH, dtype=np.uint32)
        self.position = 0
        self.filled = 0
        self.time_ns = spec.start_ns
        #: Time of one thread not yet turned into `time_ns`: less than one ns of the whole program.
        self.carry_ns = 0
        self.accesses = 0
        self.access_ns = 0  # time spent in accesses, without faults and thinking, summed over threads
        self.fault_ns = 0
        self.call_ns = 0  # time in calls of drivers and the network stack, during which all threads wait
        self.ended = False
        self.killed = False
        self.exited = False
        self.cost_ns = np.zeros((MAX_NUMNODES, 2), dtype=np.int64)
        self.slot = memory.page_table.take(stream.nr_pages, task.mm.mm_id, BASE_VPN, spec.source)
        task.mm.insert(Vma(BASE_VPN, BASE_VPN + stream.nr_pages, self.slot))
        self.calls = make_calls(spec.calls, spec.name, task, BASE_VPN)

    def set_costs(self, memory: Memory) -> None:
        """Take over the devices' present latencies.

        From another socket's CPU a node is farther by the ratio of the distances, as ACPI defines them
        (SLIT).
        """
        topology = memory.topology
        for nid, node in memory.nodes.items():
            here = topology.distance(self.task.cpu_nid, nid)
            nearest = min(topology.distance(cpu_node, nid) for cpu_node in nodemask.nodes(topology.with_cpus))
            think = self.spec.think_ns
            on_miss = memory.block_caches.place[nid, 2]  # not of an access that the block cache answers
            self.cost_ns[nid, 0] = think + (node.read_ns - on_miss) * here // nearest
            self.cost_ns[nid, 1] = think + (node.write_ns - on_miss) * here // nearest

    def run(self, memory: Memory, until_ns: int) -> None:
        """Make accesses until the program's clock reaches `until_ns` or the workload ends.

        Raises NeedsExtent when the host must stop here, and returns with `memory.out_of_memory` set when a fault
        found no memory; calling it again goes on with the same access.
        """
        while self.time_ns < until_ns and not self.ended and not memory.out_of_memory:
            if self.position == self.filled and not self._refill(memory, until_ns):
                continue
            begun = self.position
            self.position, spent, why = run_accesses(
                memory.page_table.pte,
                self.batch,
                self.position,
                self.filled,
                self.slot,
                memory.frames.node_of_section,
                self.cost_ns,
                (until_ns - self.time_ns) * self.spec.threads - self.carry_ns,
                memory.nr_accesses,
                memory.block_caches.place,
                memory.block_caches.tags if len(memory.block_caches.tags) else None,
                memory.block_caches.looked,
            )
            self.access_ns += spent - self.spec.think_ns * (self.position - begun)
            self._pass(spent)
            if why not in (STOP_END, STOP_BUDGET):
                self._fault(memory, until_ns)

    def exit(self, memory: Memory) -> None:
        """`exit_mmap`: its memory is free."""
        for vma in self.task.mm.vmas:
            unmap_range(memory, vma)
        self.release(memory)
        self.ended = self.exited = True

    def release(self, memory: Memory) -> None:
        """Its memory is unmapped: what drivers hold for it goes as well."""
        if self.calls is not None:
            self.calls.release(memory)

    def _fault(self, memory: Memory, until_ns: int) -> None:
        access = int(self.batch[self.position])
        memory.now_ns = max(memory.now_ns, min(self.time_ns, until_ns))
        took = handle_fault(memory, self.task, BASE_VPN + (access >> 1), bool(access & 1))
        if took == -errno.ENOMEM:
            memory.out_of_memory = True
            self._pass(memory.take_charge())
            return
        if took == FAULT_SIGBUS:
            self._sigbus(memory, self.slot + (access >> 1))
            return
        if took < 0:
            raise InvariantError(
                f"{self.spec.name}: an access to page {access >> 1} fails with errno {-took}"
            )
        self.fault_ns += took
        self._pass(took)

    def _sigbus(self, memory: Memory, slot: int) -> None:
        """The page is lost: `kill_me_maybe`, or the handler maps a new one and the access is made again."""
        memory.vmstat.add("sigbus")
        if not self.spec.recovers:
            self.exit(memory)
            self.killed = True
            return
        memory.high_order.poison_slots.pop(slot)
        self.fault_ns += SIGBUS_NS
        self._pass(SIGBUS_NS)

    def _pass(self, thread_ns: int) -> None:
        """Let time pass: with several threads, each ns of one thread is a fraction of the program's."""
        self.carry_ns += int(thread_ns)
        self.time_ns += self.carry_ns // self.spec.threads
        self.carry_ns %= self.spec.threads

    def _refill(self, memory: Memory, until_ns: int) -> bool:
        """Fetch accesses, up to the next call. False when there are none: a call came first, or all are made."""
        self.accesses += self.filled
        self.position = self.filled = 0
        room = BATCH
        if self.calls is not None:
            room = min(room, self.calls.next_at - self.accesses)
            if not room:
                self._call(memory, until_ns)
                return False
        self.filled = self.stream.fill(self.batch[:room])
        self.ended = self.filled == 0
        return not self.ended

    def _call(self, memory: Memory, until_ns: int) -> None:
        assert self.calls is not None
        memory.now_ns = max(memory.now_ns, min(self.time_ns, until_ns))
        took = self.calls.call(memory)
        self.call_ns += took
        self.time_ns += took

    @property
    def accesses_done(self) -> int:
        return self.accesses + self.position

    _NUMBERS = (
        "position",
        "filled",
        "time_ns",
        "carry_ns",
        "accesses",
        "access_ns",
        "fault_ns",
        "ended",
        "killed",
        "exited",
    )

    def snapshot(self) -> dict[str, Any]:
        numbers = {name: getattr(self, name) for name in self._NUMBERS}
        return numbers | {
            "batch": self.batch[: self.filled].copy(),
            "stream": self.stream.snapshot(),
            "task": self.task.snapshot(),
            **({} if self.calls is None else {"call_ns": self.call_ns, "calls": self.calls.snapshot()}),
        }

    def restore(self, snapshot: dict[str, Any]) -> None:
        for name in self._NUMBERS:
            setattr(self, name, snapshot[name])
        self.batch[: self.filled] = snapshot["batch"]
        self.stream.restore(snapshot["stream"])
        self.task.restore(snapshot["task"])
        if self.calls is not None:
            self.call_ns = snapshot["call_ns"]
            self.calls.restore(snapshot["calls"])
