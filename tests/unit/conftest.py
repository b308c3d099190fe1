"""Unit tests start no Ray, open no socket; and the small host that many of them use."""

from __future__ import annotations

import socket
import sys
from typing import Any

import numpy as np
import pytest

from privmem.nodeagent.host.host import Host
from privmem.scheduler.messages import (
    ExtentGranted,
    ExtentRefused,
    Message,
    PagesStored,
    RequestExtent,
    StorePages,
)
from privmem.scheduler.participant import Clock

EPOCH_NS = 1_000_000


@pytest.fixture(autouse=True)
def _no_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: Any, **_kwargs: Any) -> None:
        raise RuntimeError("a unit test must not start Ray or open a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    if "ray" in sys.modules:
        monkeypatch.setattr(sys.modules["ray"], "init", refuse)


class ListStream:
    """A workload given as a list of (page, is_write)."""

    def __init__(self, nr_pages: int, accesses: list[tuple[int, bool]]) -> None:
        self.nr_pages = nr_pages
        self.packed = np.array([page << 1 | is_write for page, is_write in accesses], dtype=np.uint32)
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


def node_spec(nid: int, pages: int, read_ns: int, **more: Any) -> dict[str, Any]:
    """One node of a host's spec, DRAM-like unless told otherwise."""
    spec = {
        "nid": nid,
        "device": f"device/d{nid}",
        "span_pages": pages,
        "boot_pages": pages,
        "read_ns": read_ns,
        "write_ns": read_ns,
        "stores": False,
        "compressed": False,
        "pooled": False,
        "extent_pages": 0,
        "credit_pages": 0,
    }
    return spec | more


class SmallRack:
    """A host with DRAM 0, CXL 1, compressed RAM 2 and pooled memory 3, and devices that answer at once."""

    def __init__(self, streams: list[ListStream], **options: Any) -> None:
        dram, cxl = options.get("dram", 256), options.get("cxl", 256)
        cram, pool = options.get("cram", 256), options.get("pool", 1024)
        self.pool_left = options.get("pool_left", pool)
        self.credit = options.get("credit", cram)
        self.answers = options.get("answers", True)
        self.stored: dict[str, set[int]] = {}
        balancing = {
            "mode": options.get("numa_balancing", 0),
            "scan_period_ns": EPOCH_NS,
            "scan_size_bytes": 1 << 30,
            "hot_threshold_ns": 1_000_000_000,
            "promote_rate_limit": 1 << 36,
        }
        nodes = [
            node_spec(0, dram, 100),
            node_spec(1, cxl, 200),
            node_spec(2, cram, 1000, stores=True, compressed=True, credit_pages=self.credit)
            | {"cache_pages": options.get("cache_pages", 0), "decompress_ns": 800},
            node_spec(3, pool, 3000, stores=True, pooled=True, extent_pages=64, boot_pages=0)
            | {"credit_pages": pool},
        ]
        topology = [
            {"nid": 0, "cpus": [0, 1], "span_pages": dram, "adistance": 576, "zone": "normal"},
            {"nid": 1, "span_pages": cxl, "adistance": 1152, "zone": "movable"},
            {
                "nid": 2,
                "private": True,
                "features": options.get("cram_features", 0x6),
                "span_pages": cram,
                "adistance": 2880,
            },
            {"nid": 3, "private": True, "features": 0x106, "span_pages": pool, "adistance": 5760},
        ]
        policies = options.get("policies", [[0, 0]] * len(streams))
        threads = options.get("threads", 1)
        self.host = Host(
            {
                "name": "host/h0",
                "scheduler": "scheduler",
                "slice_ns": options.get("slice_ns", EPOCH_NS // 4),
                "sample_every": 1,
                "design": options.get("design", "private-zonelist"),
                "topology": {
                    "nodes": topology,
                    "distances": [[10, 24, 34, 70], [24, 10, 20, 84], [34, 20, 10, 94], [70, 84, 94, 10]],
                },
                "nodes": nodes,
                "sysctl": {
                    "demotion_enabled": options.get("demotion", True),
                    "watermark_scale_factor": 10,
                    "numa_balancing": balancing,
                },
                "programs": [
                    {
                        "name": f"p{n}",
                        "pid": n + 1,
                        "cpu": 0,
                        "threads": threads,
                        "think_ns": options.get("think_ns", 0),
                        "source": 1,
                        "policy": policies[n],
                    }
                    for n in range(len(streams))
                ],
            },
            streams,
        )
        self.memory = self.host.memory
        self.epoch = 0
        self.inbox: list[Message] = []
        self.sent: list[Message] = []
        self.reached_ns = 0
        self.finished = False

    @property
    def vm(self) -> dict[str, int]:
        return self.memory.vmstat.count

    def run(self, epochs: int = 10_000) -> None:
        """Run until every program has ended, or for so many epochs; validates at the end."""
        last = self.epoch + epochs
        while self.epoch < last and not self.finished:
            self.step()
        self.memory_valid()

    def step(self) -> None:
        """One step; the next epoch begins when the host has come to the end of this one."""
        clock = Clock(self.epoch, self.epoch * EPOCH_NS, (self.epoch + 1) * EPOCH_NS, 0)
        out = self.host.step(self.inbox, clock)
        self.inbox = []
        for message in out.messages:
            self.sent.append(message)
            if self.answers:
                self.inbox += self._answer(message)
        self.reached_ns = out.reached_ns
        if out.reached_ns >= clock.end_ns:
            self.epoch += 1
            self.finished = out.finished

    def _answer(self, message: Message) -> list[Message]:
        body, now = message.body, message.time_ns
        if isinstance(body, RequestExtent):
            start = 1024 - self.pool_left
            granted = self.pool_left >= body.nr_pages
            self.pool_left -= body.nr_pages if granted else 0
            answer = (
                ExtentGranted("device/d3", "host/h0", body.nid, start, body.nr_pages)
                if granted
                else ExtentRefused("device/d3", "host/h0", body.nid, 12)
            )
            return [Message(now, "device/d3", 0, "host/h0", answer)]
        if isinstance(body, StorePages):
            credit = self.credit if message.to == "device/d2" else 1 << 20
            return [Message(now, message.to, 0, "host/h0", PagesStored(len(body.dpa), credit))]
        return []

    def memory_valid(self) -> None:
        """All invariants of the host hold."""
        self.host.validate()

    def nodes_of(self, program: int = 0) -> list[int]:
        """Node of each page of a program, -1 where none is."""
        task = self.host.programs[program].task
        vma = task.mm.vmas[0]
        pte = self.memory.page_table.pte[vma.slot : vma.slot + vma.nr_pages]
        return [self.memory.frames.nid_of(int(e) >> 5) if e & 1 else -1 for e in pte]


@pytest.fixture
def rack() -> type[SmallRack]:
    """Builder of the small rack."""
    return SmallRack


@pytest.fixture
def stream() -> type[ListStream]:
    """Builder of a listed workload."""
    return ListStream
