"""A ring of small fake hosts that ask the real scheduler and a fake device for extents and store pages there.

Everything is a few integers, but order matters everywhere: a host's path depends on what it is granted, and a
device's state on the order in which messages reach it.
"""

from __future__ import annotations

import os
import signal
from typing import Any

import numpy as np

from privmem.cluster.plan import DEVICE, HOST, SCHEDULER, ParticipantPlan, Plan
from privmem.cluster.seeds import derive_seed
from privmem.scheduler.errors import InvariantError, ProtocolError
from privmem.scheduler.messages import (
    RESULTS,
    AllocExtent,
    DeviceReport,
    EpochBegin,
    ExtentGranted,
    ExtentRefused,
    ExtentReleased,
    FreePages,
    Message,
    PagesStored,
    ReleaseExtent,
    RequestExtent,
    Sample,
    StorePages,
    Traffic,
)
from privmem.scheduler.participant import Clock, Mailer, Outbox, Participant
from privmem.scheduler.placement import Scheduler

BUILD = "fake_rack:build"
EXTENT_PAGES = 4
_MASK = (1 << 64) - 1


def splitmix(state: int) -> int:
    mixed = (state + 0x9E3779B97F4A7C15) & _MASK
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
    return mixed ^ (mixed >> 31)


class FakeHost:
    """Runs a fixed number of events at chosen times. Spec: name, seed, events, gap_ns, device; when to die (take
    the process along), fail (our exception) or break (any other).
    """

    def __init__(self, spec: dict[str, Any], table: np.ndarray) -> None:
        self.spec = spec
        self.name = spec["name"]
        self.table = table
        self.mail = Mailer(self.name)
        self.now_ns = 0
        self.event = 0
        self.state = spec["seed"]
        self.extents: list[int] = []
        self.waiting = False
        self.answered = False
        self.acknowledged = 0
        self.reports = 0
        self.closed = -1

    def step(self, inbox: list[Message], clock: Clock) -> Outbox:
        for message in inbox:
            self._receive(message)
        while not self.waiting and self.event < self.spec["events"]:
            at_ns = self._next_ns()
            if at_ns >= clock.end_ns:
                break
            self.now_ns = at_ns
            self._do_event()
        if not self.waiting and self.closed != clock.epoch:
            self.closed = clock.epoch
            self.mail.send(self.spec["device"], clock.end_ns, Traffic(clock.epoch, self.event, 0))
            row = {"host": self.name, "epoch": clock.epoch, "accesses": self.event}
            self.mail.send(RESULTS, clock.end_ns, Sample("host", [row]))
        reached = self.now_ns if self.waiting else clock.end_ns
        finished = self.event >= self.spec["events"] and not self.waiting
        return Outbox(self.mail.take(), reached, finished=finished)

    def _next_ns(self) -> int:
        """One event in each gap, somewhere in it; the event that waited for its answer happens once more."""
        if self.answered:
            return self.now_ns
        gap = self.spec["gap_ns"]
        return self.event * gap + splitmix(self.event ^ self.spec["seed"]) % gap

    def _receive(self, message: Message) -> None:
        body = message.body
        match body:
            case ExtentGranted():
                self.extents.append(body.start)
                self.waiting, self.answered = False, True
            case ExtentRefused():
                self.state = splitmix(self.state ^ body.errno)
                self.waiting, self.answered = False, True
            case PagesStored():
                self.acknowledged += body.count
            case DeviceReport():
                self.reports += 1
                self.state = splitmix(self.state ^ body.used_bytes)
            case EpochBegin():
                pass
            case _:
                raise AssertionError(body)

    def _do_event(self) -> None:
        choice = (self.state + int(self.table[self.event % len(self.table)])) % 8
        device = self.spec["device"]
        if choice < 3 and not self.answered:
            self.waiting = True
            self.mail.send("scheduler", self.now_ns, RequestExtent(device, 1, EXTENT_PAGES))
            return
        if choice == 3 and self.extents:
            self.mail.send(device, self.now_ns, ReleaseExtent(1, self.extents.pop(0), EXTENT_PAGES))
        elif self.extents:
            pages = np.arange(self.extents[-1], self.extents[-1] + 2, dtype=np.int32)
            columns = [np.full(2, self.event & 7, dtype=t) for t in (np.uint16, np.uint32, np.uint16)]
            self.mail.send(
                device, self.now_ns, StorePages(pages, *columns, np.zeros((0, 4096), dtype=np.uint8))
            )
            self.mail.send(device, self.now_ns, FreePages(pages[:1]))
        self.answered = False
        self.event += 1
        self.state = splitmix(self.state ^ self.event)
        if self.spec.get("dies_at") == self.event:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.spec.get("fails_at") == self.event:
            raise ProtocolError("asked to fail")
        if self.spec.get("breaks_at") == self.event:
            raise ZeroDivisionError("asked to break")

    _FIELDS = ("now_ns", "event", "state", "waiting", "answered", "acknowledged", "reports", "closed")

    def snapshot(self) -> dict[str, Any]:
        numbers = {name: getattr(self, name) for name in self._FIELDS}
        return numbers | {"extents": np.array(self.extents, dtype=np.int32), "seq": self.mail.seq}

    def restore(self, snapshot: dict[str, Any]) -> None:
        for name in self._FIELDS:
            setattr(self, name, snapshot[name])
        self.extents = snapshot["extents"].tolist()
        self.mail.seq = snapshot["seq"]

    def counters(self) -> dict[str, int]:
        return {"event": self.event, "state": self.state, "extents": len(self.extents)}

    def summary(self) -> dict[str, Any]:
        return {"vmstat": {"extents": len(self.extents)}, "processes": {"p": {"accesses": self.event}}}

    def validate(self) -> None:
        if len(set(self.extents)) != len(self.extents):
            raise InvariantError(f"{self.name} holds an extent twice: {self.extents}")


class FakeDevice:
    """Grants the lowest free extent; chains what it is told to store, host by host. Spec: name, hosts, extents."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.name = spec["name"]
        self.hosts = spec["hosts"]
        self.owner = np.full(spec["extents"], -1, dtype=np.int16)
        self.chain = np.zeros(len(self.hosts), dtype=np.uint64)
        #: Extents to grant and to take back, until no earlier one can come: [time, sender, seq, host, extent].
        self.queue: list[list[Any]] = []
        self.mail = Mailer(self.name)
        self.traffic = 0
        self.closed = -1

    def step(self, inbox: list[Message], clock: Clock) -> Outbox:
        stored: dict[str, int] = {}
        for message in inbox:
            self._receive(message, stored)
        self.queue.sort()
        while self.queue and self.queue[0][0] <= clock.horizon_ns:
            self._move_extent(self.queue.pop(0))
        for host in sorted(stored):
            self.mail.send(host, clock.end_ns, PagesStored(stored[host], 100))
        if clock.horizon_ns == clock.end_ns and self.closed != clock.epoch:
            self.closed = clock.epoch
            used = int(np.count_nonzero(self.owner >= 0)) + self.traffic
            self.traffic = 0
            for host in self.hosts:
                self.mail.send(host, clock.end_ns, DeviceReport(self.name, clock.epoch, 1, 1, used, 100))
            row = {"device": self.name, "epoch": clock.epoch, "used": used}
            self.mail.send(RESULTS, clock.end_ns, Sample("device", [row]))
        return Outbox(self.mail.take(), clock.end_ns, waits_for_horizon=bool(self.queue), finished=True)

    def _receive(self, message: Message, stored: dict[str, int]) -> None:
        body, sender = message.body, message.sender
        match body:
            case AllocExtent():
                self.queue.append([message.time_ns, sender, message.seq, body.host, -1])
            case ReleaseExtent():
                self.queue.append([message.time_ns, sender, message.seq, sender, body.start // EXTENT_PAGES])
                freed = ExtentReleased(self.name, sender, body.nr_pages)
                self.mail.send("scheduler", message.time_ns, freed)
            case StorePages():
                self._chain(sender, 1 + int(body.dpa.sum()) * 8 + int(body.version[0]))
                stored[sender] = stored.get(sender, 0) + len(body.dpa)
            case FreePages():
                self._chain(sender, 1 << 32 | int(body.dpa.sum()))
            case Traffic():
                self.traffic += body.read_bytes
            case _:
                raise AssertionError(body)

    def _move_extent(self, row: list[Any]) -> None:
        time_ns, _, _, host, at = row
        if at >= 0:
            self.owner[at] = -1
            return
        at = int(np.argmin(self.owner))  # the first -1
        assert self.owner[at] == -1, "the scheduler admitted more than there is"
        self.owner[at] = self.hosts.index(host)
        grant = ExtentGranted(self.name, host, 1, at * EXTENT_PAGES, EXTENT_PAGES)
        self.mail.send(host, time_ns, grant)
        self.mail.send("scheduler", time_ns, grant)

    def _chain(self, host: str, value: int) -> None:
        at = self.hosts.index(host)
        self.chain[at] = splitmix(int(self.chain[at]) ^ value)

    def snapshot(self) -> dict[str, Any]:
        arrays = {
            "owner": self.owner.copy(),
            "chain": self.chain.copy(),
            "queue": [list(r) for r in self.queue],
        }
        return arrays | {"seq": self.mail.seq, "traffic": self.traffic, "closed": self.closed}

    def restore(self, snapshot: dict[str, Any]) -> None:
        self.owner[:], self.chain[:] = snapshot["owner"], snapshot["chain"]
        self.mail.seq, self.traffic = snapshot["seq"], snapshot["traffic"]
        self.closed, self.queue = snapshot["closed"], snapshot["queue"]

    def counters(self) -> dict[str, int]:
        return {"chain": int(np.bitwise_xor.reduce(self.chain)), "seq": self.mail.seq}

    def summary(self) -> dict[str, Any]:
        return {"granted": int(np.count_nonzero(self.owner >= 0))}

    def validate(self) -> None:
        if int(self.owner.max(initial=-1)) >= len(self.hosts):
            raise InvariantError(f"{self.name}: an extent of nobody")


def build(entry: ParticipantPlan, resources: dict[str, np.ndarray]) -> Participant:
    """The builder that runtimes are told to use."""
    if entry.kind == HOST:
        return FakeHost(entry.spec, resources["table"])
    if entry.kind == DEVICE:
        return FakeDevice(entry.spec)
    return Scheduler(entry.spec)


def make_plan(
    *, hosts: int = 3, events: int = 60, epoch_ns: int = 1000, gap_ns: int = 100, seed: int = 1, **more: Any
) -> Plan:
    """A rack of `hosts` fakes round one device that is too small for all of them."""
    device, names = "device/pool", [f"host/h{n}" for n in range(hosts)]
    entries = [
        ParticipantPlan(
            name,
            HOST,
            {"name": name, "seed": derive_seed(seed, name), "events": events, "gap_ns": gap_ns}
            | {"device": device}
            | more.get(name.removeprefix("host/"), {}),
            ("table",),
        )
        for name in names
    ]
    extents = 2 * hosts
    entries.append(ParticipantPlan(device, DEVICE, {"name": device, "hosts": names, "extents": extents}))
    pool = {"capacity_pages": extents * EXTENT_PAGES, "extent_pages": EXTENT_PAGES, "pooled": True}
    scheduler = {"name": "scheduler", "hosts": names, "devices": {"pool": pool}}
    entries.append(ParticipantPlan("scheduler", SCHEDULER, scheduler))
    table = np.array([splitmix(seed + n) & 0xFFFF for n in range(97)], dtype=np.uint32)
    return Plan("fake", seed, epoch_ns, 1 << 40, tuple(entries), {"table": table}, {"fake": 1})
