"""A host of any shape under test, and devices that believe nothing: each page is stored once, freed once,
and within the promise that was made.
"""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np

from privmem.nodeagent.host.host import Host
from privmem.nodeagent.host.layout import PG_ALLOCATED
from privmem.nodeagent.host.page_alloc import NeedsExtent
from privmem.nodeagent.host.task import Task
from privmem.scheduler import plain
from privmem.scheduler.messages import (
    RESULTS,
    Body,
    DeviceReport,
    ExtentGranted,
    ExtentRefused,
    FreePages,
    Message,
    PagesStored,
    ReleaseExtent,
    RequestExtent,
    StorePages,
    Traffic,
)
from privmem.scheduler.participant import Clock

EPOCH_NS = 1_000_000
HOST = "host/h0"
DISTANCES = [
    [10, 20, 24, 34, 70],
    [20, 10, 34, 44, 80],
    [24, 34, 10, 20, 84],
    [34, 44, 20, 10, 94],
    [70, 80, 84, 94, 10],
]


class ListedStream:
    """A workload given as packed accesses."""

    def __init__(self, nr_pages: int, packed: list[int]) -> None:
        self.nr_pages = nr_pages
        self.packed = np.array(packed, dtype=np.uint32)
        self.at = 0

    def fill(self, out: np.ndarray) -> int:
        part = self.packed[self.at : self.at + len(out)]
        out[: len(part)] = part
        self.at += len(part)
        return len(part)

    def snapshot(self) -> dict[str, int]:
        return {"at": self.at}

    def restore(self, snapshot: dict[str, int]) -> None:
        self.at = snapshot["at"]


class StrictDevice:
    """What one storing device holds, and what it has promised."""

    def __init__(self, physical_pages: int) -> None:
        self.physical_pages = physical_pages
        self.held: dict[int, tuple[int, int, int]] = {}
        self.newest: dict[tuple[int, int], int] = {}
        self.answers: list[Body] = []
        self.extents: dict[int, int] = {}
        self.promised = physical_pages

    def take(self, body: Body, pooled: bool, own_sources: int) -> None:
        """Stores and frees, checked."""
        if isinstance(body, StorePages):
            rows = zip(body.source.tolist(), body.index.tolist(), body.version.tolist(), strict=True)
            for dpa, row in zip(body.dpa.tolist(), rows, strict=True):
                assert dpa not in self.held, f"page {dpa} is stored twice"
                assert not pooled or self.has(dpa), f"page {dpa} is in no extent"
                assert self.promised > 0, "stored without a promise"
                self.promised -= 1
                self.held[dpa] = row
                if 0 < row[0] <= own_sources:  # pages that no fork ever had two of
                    assert row[2] >= self.newest.get(row[:2], 0), (
                        f"{row} is older than what was stored before"
                    )
                    self.newest[row[:2]] = row[2]
            self.answers.append(PagesStored(len(body.dpa), 0))
        elif isinstance(body, FreePages):
            for dpa in body.dpa.tolist():
                assert dpa in self.held, f"page {dpa} is freed, but not there"
                del self.held[dpa]
        elif isinstance(body, ReleaseExtent):
            assert self.extents.pop(body.start) == body.nr_pages
            assert not any(body.start <= d < body.start + body.nr_pages for d in self.held)

    def has(self, dpa: int) -> bool:
        return any(start <= dpa < start + nr for start, nr in self.extents.items())

    def take_answers(self) -> list[Body]:
        """PagesStored with the promise of now."""
        self.promised = max(self.promised, self.physical_pages - len(self.held))
        taken = [PagesStored(a.count, self.promised) for a in self.answers]
        self.answers = []
        return taken


class StrictRack:
    """Sockets 0 and 1 (1 may be missing memory), CXL 2, compressed RAM 3, pool 4; shape by `shape`."""

    def __init__(self, shape: dict[str, Any], streams: list[ListedStream]) -> None:
        self.shape = shape
        self.make = lambda: Host(_spec(shape), [ListedStream(s.nr_pages, s.packed.tolist()) for s in streams])
        self.host = self.make()
        self.memory = self.host.memory
        self.rng = Random(shape["seed"])
        self.devices = {
            "device/d3": StrictDevice(shape["credit"]),
            "device/d4": StrictDevice(shape["pool_credit"]),
        }
        self.programs = len(streams)
        self.tasks: list[Task] = []
        self.pool_free = list(range(0, shape["pages"][4] - shape["extent"] + 1, shape["extent"]))
        self.pool_free = self.pool_free[: shape["pool_extents"]]
        self.epoch = 0
        self.inbox: list[Message] = []
        self.reached_ns = self.now_ns = 0
        self.finished = False

    def step(self) -> None:
        """One step of the host, all of its messages checked, and the books compared."""
        clock = Clock(self.epoch, self.epoch * EPOCH_NS, (self.epoch + 1) * EPOCH_NS, 0)
        before = self.reached_ns
        out = self.host.step(self.inbox, clock)
        self.inbox = []
        for message in out.messages:
            assert before <= message.time_ns <= clock.end_ns
            if message.to != RESULTS:
                self._answer(message)
        assert before <= out.reached_ns <= clock.end_ns
        assert self.now_ns <= self.memory.now_ns <= clock.end_ns
        self.now_ns, self.reached_ns = self.memory.now_ns, out.reached_ns
        if out.reached_ns >= clock.end_ns and self.host.waiting_nid < 0:
            self.epoch += 1
            self.finished = out.finished
        if self.rng.random() < 0.8:
            for name, device in self.devices.items():
                self._deliver(name, device.take_answers())
        if self.rng.random() < 0.1:
            nid = self.rng.choice(sorted(self.memory.nodes))
            loaded = self.rng.randrange(1, 4000)
            self._deliver(f"device/d{nid}", [DeviceReport(f"device/d{nid}", 0, loaded, loaded, 0, 0)])
        self.check()

    def _deliver(self, sender: str, bodies: list[Body]) -> None:
        self.inbox += [Message(self.now_ns, sender, 0, HOST, body) for body in bodies]

    def _answer(self, message: Message) -> None:
        body = message.body
        if isinstance(body, RequestExtent):
            self._deliver("device/d4", [self._extent(body.nid)])
        elif not isinstance(body, Traffic):
            self.devices[message.to].take(body, message.to == "device/d4", self.programs)
            if isinstance(body, ReleaseExtent):
                self.pool_free.append(body.start)

    def _extent(self, nid: int) -> Body:
        size = self.shape["extent"]
        if not self.pool_free or self.rng.random() < self.shape["refuse"]:
            return ExtentRefused("device/d4", HOST, nid, 12)
        start = self.pool_free.pop(self.rng.randrange(len(self.pool_free)))
        self.devices["device/d4"].extents[start] = size
        return ExtentGranted("device/d4", HOST, nid, start, size)

    def call(self, function: Any, *args: Any) -> Any:
        """A system call; where it needs an extent, the pool answers at once."""
        for _ in range(1000):
            try:
                return function(self.memory, *args)
            except NeedsExtent as need:
                self.host._receive(Message(self.now_ns, "device/d4", 0, HOST, self._extent(need.nid)))
            finally:
                self.check(queued=True)
        raise AssertionError("a system call asks for extents without end")

    def swap(self) -> None:
        """Go on with a new host that took over a snapshot."""
        snapshot = plain.unpack(*plain.pack(self.host.snapshot()))
        tasks = plain.unpack(*plain.pack({"tasks": [t.snapshot() for t in self.tasks]}))["tasks"]
        self.host = self.make()
        self.host.restore(snapshot)
        self.memory = self.host.memory
        old, self.tasks = self.tasks, []
        for task, state in zip(old, tasks, strict=True):
            self.tasks.append(Task(task.pid, task.cpu, self.host.memory.resolver))
            self.tasks[-1].restore(state)

    def check(self, queued: bool = False) -> None:
        """The host's invariants; and a storing device holds what the host has there."""
        self.host.validate()
        memory = self.memory
        used = (memory.frames.flags & PG_ALLOCATED) != 0
        vm = memory.vmstat.count
        assert vm["pgalloc"] - vm["pgfree"] == int(used.sum())
        for nid, name in () if queued else ((3, "device/d3"), (4, "device/d4")):
            node = memory.nodes[nid]
            assert node.unacknowledged_pages >= 0
            there = np.flatnonzero(used[node.start_pfn : node.start_pfn + node.spec.span_pages])
            if not memory.outgoing._runs:
                assert sorted(self.devices[name].held) == there.tolist()

    def digest(self) -> str:
        return plain.digest(self.host.snapshot() | {"tasks": [t.snapshot() for t in self.tasks]})


def _spec(shape: dict[str, Any]) -> dict[str, Any]:
    pages, features = shape["pages"], shape["features"]
    latency = (100, 100, 200, 1000, 3000)
    nodes = [
        {
            "nid": nid,
            "device": f"device/d{nid}",
            "span_pages": pages[nid],
            "boot_pages": 0 if nid == 4 else pages[nid],
            "read_ns": latency[nid],
            "write_ns": latency[nid],
            "stores": nid >= 3,
            "compressed": nid == 3,
            "pooled": nid == 4,
            "extent_pages": shape["extent"] if nid == 4 else 0,
            "credit_pages": {3: shape["credit"], 4: shape["pool_credit"]}.get(nid, 0),
        }
        for nid in range(5)
    ]
    topology = [
        {"nid": 0, "cpus": [0, 1], "span_pages": pages[0], "adistance": 576, "zone": "normal"},
        {"nid": 1, "cpus": [2], "span_pages": pages[1], "adistance": 576, "zone": "normal"},
        {"nid": 2, "span_pages": pages[2], "adistance": 1152, "zone": "movable"},
        {"nid": 3, "private": True, "features": features[0], "span_pages": pages[3], "adistance": 2880},
        {"nid": 4, "private": True, "features": features[1], "span_pages": pages[4], "adistance": 5760},
    ]
    programs = [
        {"name": f"p{n}", "pid": n + 1, "cpu": p["cpu"], "threads": p["threads"], "think_ns": p["think_ns"]}
        | {"source": n + 1, "policy": p["policy"]}
        for n, p in enumerate(shape["programs"])
    ]
    balancing = {
        "mode": shape["numa_balancing"],
        "scan_period_ns": EPOCH_NS,
        "scan_size_bytes": shape["scan_bytes"],
    }
    balancing |= {"hot_threshold_ns": 1_000_000_000, "promote_rate_limit": shape["rate_limit"]}
    sysctl = {"demotion_enabled": shape["demotion"], "watermark_scale_factor": shape["scale"]}
    return {
        "name": HOST,
        "scheduler": "scheduler",
        "slice_ns": shape["slice_ns"],
        "sample_every": 1,
        "design": "private-zonelist",
        "topology": {"nodes": topology, "distances": DISTANCES},
        "nodes": nodes,
        "sysctl": sysctl | {"numa_balancing": balancing},
        "programs": programs,
    }
