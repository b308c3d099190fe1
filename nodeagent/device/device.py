"""The device participant: one memory device with its extents, its content, its compression and its timing.

Stores, frees, loads and traffic are handled as they arrive: no two hosts touch the same page, so their order
does not matter. Extents are contended: they are granted and taken back in the order of virtual time, once no
host can still send an earlier message. Left out: errors of the medium, gpu and nic classes.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from privmem.nodeagent.content import ContentTable
from privmem.nodeagent.device.backing import PageStore
from privmem.nodeagent.device.capacity import CapacityControl
from privmem.nodeagent.device.compression import COUNTS, CompressionEngine
from privmem.nodeagent.device.credits import Credits, is_limited
from privmem.nodeagent.device.extents import ExtentAllocator
from privmem.nodeagent.device.timing import access_latencies_ns
from privmem.scheduler.abi import PAGE_SIZE
from privmem.scheduler.errors import InvariantError, ProtocolError
from privmem.scheduler.messages import (
    RESULTS,
    AllocExtent,
    DeviceReport,
    ExtentGranted,
    ExtentRefused,
    ExtentReleased,
    FreePages,
    LoadPages,
    Message,
    PagesLoaded,
    PagesRefused,
    PagesStored,
    ReleaseExtent,
    Sample,
    StorePages,
    Traffic,
)
from privmem.scheduler.participant import Clock, Mailer, Outbox


def initial_credit_pages(spec: dict[str, Any], host: str) -> int:
    """What a host may store before the device's first answer, by the device's spec."""
    return Credits(spec["hosts"], spec["physical_bytes"] // PAGE_SIZE, is_limited(spec)).promised[host]


class Device:
    """One memory device. `spec` is plain data:

    name, device    address of its messages, and its name in reports and samples
    class, pooled   for the summary
    capacity_pages  address range that hosts see;  physical_bytes  memory behind it
    extent_pages, boot_extents [[host, nid, start, pages]], hosts [name]     see extents.py
    timing          see timing.py
    compression     {"codec", "level", "block", "granule"} or None, see compression.py
    stores          whether it keeps the content of pages;  content  table of sources, see content.py
    scheduler       who hears of extents;  sample_every  epochs from one sample to the next, default 1
    keep_bytes      keep the bytes of described pages as well, default no
    thresholds      [low_bytes, high_bytes] of free memory, where its one host has a service that listens to reports
                    and needs no promise, see capacity.py
    """

    def __init__(self, spec: dict[str, Any], resources: dict[str, np.ndarray]) -> None:
        self.spec = spec
        self.name: str = spec["name"]
        self.hosts: list[str] = sorted(spec["hosts"])
        self.mail = Mailer(self.name)
        self.extents = ExtentAllocator(spec["capacity_pages"], spec["extent_pages"])
        for host, _, start, pages in spec["boot_extents"]:
            if self.extents.grant(host, pages) != (start, pages):
                raise InvariantError(f"{self.name}: boot extent of {pages} pages at {start} cannot be had")
        self.store: PageStore | None = None
        if spec["stores"]:
            engine = CompressionEngine(spec["compression"]) if spec["compression"] else None
            content = ContentTable(spec["content"], resources)
            numbers = (spec["capacity_pages"], spec["physical_bytes"])
            self.store = PageStore(*numbers, content, engine, spec.get("keep_bytes", False))
        self.control: CapacityControl | None = None
        if self.store is not None and spec.get("thresholds"):
            self.control = CapacityControl(spec["thresholds"], spec["physical_bytes"], spec["capacity_pages"])
        promises = is_limited(spec) and self.control is None
        self.credits = Credits(
            self.hosts if self.store else [], spec["physical_bytes"] // PAGE_SIZE, promises
        )
        #: Extents to grant and to take back, in the order of time: [time_ns, sender, seq, kind, host, nid, start,
        #: pages].
        self.queue: list[list[Any]] = []
        #: What an access costs now: read, write; and what the hosts were last told of.
        self.latencies_ns = list(access_latencies_ns(spec["timing"]))
        self.reported = [*self.latencies_ns, 0]
        #: Bytes since the last close of an epoch, and over all: read, written.
        self.moved_bytes = [0, 0]
        self.moved_bytes_total = [0, 0]
        self.closed_epoch = -1
        self.pages_stored = self.pages_freed = self.pages_loaded = 0
        #: Hash of all that was asked: the cheap number that changes whenever content does.
        self.inbox_crc = 0
        self._owned: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    # -- the participant's interface

    def step(self, inbox: list[Message], clock: Clock) -> Outbox:
        """Do what the messages ask; close the epoch once no host can send more of it."""
        for message in inbox:
            self._receive(message)
        self.queue.sort(key=lambda row: row[:3])
        while self.queue and self.queue[0][0] <= clock.horizon_ns:
            self._move_extent(self.queue.pop(0))
        closes = clock.horizon_ns >= clock.end_ns and self.closed_epoch < clock.epoch
        if self.store is not None and self.control is None:
            self.credits.share_out(self.store.room_pages)
            at_ns = clock.end_ns if closes or not inbox else inbox[-1].time_ns
            for host, count, promise in self.credits.due(with_grown=closes):
                self.mail.send(host, at_ns, PagesStored(count, promise))
        if closes:
            self._close_epoch(clock)
        return Outbox(
            self.mail.take(), clock.end_ns, waits_for_horizon=bool(self.queue), finished=not self.queue
        )

    def _receive(self, message: Message) -> None:
        body = message.body
        envelope = [message.time_ns, message.sender, message.seq]
        match body:
            case AllocExtent():
                self.queue.append([*envelope, "grant", body.host, body.nid, 0, body.nr_pages])
            case ReleaseExtent():
                self._accept_release(message, body)
                row = [*envelope, "release", message.sender, body.nid, body.start, body.nr_pages]
                self.queue.append(row)
            case StorePages():
                self._store(message, body)
            case FreePages():
                dpa = body.dpa if self.control is None else self.control.freed(body.dpa)
                self._of(message, body.dpa).free(dpa)
                self.pages_freed += len(dpa)
            case LoadPages():
                loaded = self._of(message, body.dpa).load(body.dpa)
                self.pages_loaded += len(body.dpa)
                self.mail.send(message.sender, message.time_ns, PagesLoaded(body.dpa, *loaded))
            case Traffic():
                for way, nr_bytes in enumerate((body.read_bytes, body.write_bytes)):
                    self.moved_bytes[way] += nr_bytes
                    self.moved_bytes_total[way] += nr_bytes
            case _:
                raise ProtocolError(f"{self.name} cannot handle {type(body).__name__} from {message.sender}")

    # -- extents

    def _accept_release(self, message: Message, body: ReleaseExtent) -> None:
        """The scheduler hears at once: it settles requests by time itself, and must know before it does."""
        if not self.extents.holds(message.sender, body.start, body.nr_pages):
            raise ProtocolError(
                f"{message.sender} gives back pages {body.start}.. of {self.name}, not its extent"
            )
        released = ExtentReleased(self.spec["device"], message.sender, body.nr_pages)
        self.mail.send(self.spec["scheduler"], message.time_ns, released)

    def _move_extent(self, row: list[Any]) -> None:
        time_ns, sender, _, kind, host, nid, start, nr_pages = row
        self._owned = {}
        if kind == "release":
            if self.extents.release(host, start, nr_pages):
                raise ProtocolError(f"{host} gives back pages {start}.. of {self.name} twice")
            if self.store is not None:
                self.pages_freed += self.store.clear(start, nr_pages)
            return
        pieces = self.extents.grant_pieces(host, nr_pages)
        device = self.spec["device"]
        answers: list[ExtentGranted | ExtentRefused] = []
        if isinstance(pieces, int):
            answers.append(ExtentRefused(device, host, nid, -pieces))
        else:
            left = sum(pages for _, pages in pieces)
            for start, pages in pieces:
                left -= pages
                answers.append(ExtentGranted(device, host, nid, start, pages, left))
        for answer in answers:
            for to in (host, sender):
                self.mail.send(to, time_ns, answer)

    def _check_owner(self, host: str, dpa: np.ndarray) -> None:
        """Raise ProtocolError unless all these pages lie in extents of `host`."""
        if host not in self._owned:
            mine = [(start, start + nr) for start, (who, nr) in self.extents.held.items() if who == host]
            bounds = np.array(sorted(mine), dtype=np.int64).reshape(-1, 2)
            # Two sentinels, so that every page has an extent before it.
            self._owned[host] = (np.append(-1, bounds[:, 0]), np.append(-1, bounds[:, 1]))
        starts, ends = self._owned[host]
        at = np.searchsorted(starts, dpa, side="right") - 1
        if len(dpa) and (int(dpa.min()) < 0 or (dpa >= ends[at]).any()):
            raise ProtocolError(f"{host} names a page of {self.name} that is in no extent of its own")

    # -- content

    def _of(self, message: Message, dpa: np.ndarray) -> PageStore:
        """The store, for pages that the sender may name."""
        if self.store is None:
            raise ProtocolError(f"{message.sender} names pages of {self.name}, which keeps no content")
        self._check_owner(message.sender, dpa)
        self.inbox_crc = zlib.crc32(dpa.tobytes(), self.inbox_crc)
        return self.store

    def _store(self, message: Message, body: StorePages) -> None:
        store = self._of(message, body.dpa)
        columns = (body.dpa, body.source, body.index, body.version, body.literal)
        if self.control is not None:
            refused = self.control.store(store, *columns)
            if len(refused):
                self.mail.send(message.sender, message.time_ns, PagesRefused(refused))
        else:
            self.credits.take(message.sender, len(body.dpa))
            store.store(*columns)
        self.pages_stored += len(body.dpa)
        for column in (body.source, body.index, body.version, body.literal):
            self.inbox_crc = zlib.crc32(column.tobytes(), self.inbox_crc)

    # -- the end of an epoch

    def _close_epoch(self, clock: Clock) -> None:
        """Set the latencies of the next epoch by the traffic of this one, and tell."""
        self.closed_epoch = clock.epoch
        span_ns = clock.end_ns - clock.start_ns
        self.latencies_ns = list(self.latencies_after(span_ns))
        self.moved_bytes = [0, 0]
        used_bytes = self.store.used_bytes if self.store else 0
        if [*self.latencies_ns, used_bytes] != self.reported:
            self.reported = [*self.latencies_ns, used_bytes]
            read_ns, write_ns, _ = self.reported
            report = DeviceReport(
                self.spec["device"],
                clock.epoch,
                read_ns,
                write_ns,
                used_bytes,
                self.spec["physical_bytes"],
            )
            for host in self.hosts:
                self.mail.send(host, clock.end_ns, report)
        if self.control is not None and self.store is not None:
            told = self.control.report(self.spec["device"], clock.epoch, self.store)
            if told is not None:
                self.mail.send(self.hosts[0], clock.end_ns, told)
        if (clock.epoch + 1) % self.spec.get("sample_every", 1) == 0:
            when = {"epoch": clock.epoch, "time_ns": clock.end_ns, "device": self.spec["device"]}
            self.mail.send(RESULTS, clock.end_ns, Sample("device", [when | self._numbers()]))

    def latencies_after(self, span_ns: int) -> Sequence[int]:
        """(read, write) latency in ns for the next epoch, after one of `span_ns` that moved `moved_bytes`. What a
        device class of a user's own may do otherwise; whole numbers only.
        """
        return access_latencies_ns(self.spec["timing"], self.moved_bytes, span_ns, self.latencies_ns)

    def _numbers(self) -> dict[str, int]:
        """Columns of the time series "device", but for when and who. What is not stored counts as 0."""
        store = self.store
        engine = store.engine if store else None
        numbers = {
            "granted_pages": sum(self.extents.granted_pages().values()),
            "stored_pages": store.stored_pages if store else 0,
            "same_filled_pages": store.same_filled_pages if store else 0,
            "incompressible_pages": store.incompressible_pages if store else 0,
            "logical_bytes": store.stored_pages * PAGE_SIZE if store else 0,
            "compressed_bytes": store.stored_bytes if store else 0,
            "used_bytes": store.used_bytes if store else 0,
            "capacity_bytes": self.spec["physical_bytes"],
            "pages_stored": self.pages_stored,
            "pages_freed": self.pages_freed,
            "pages_loaded": self.pages_loaded,
            "read_bytes": self.moved_bytes_total[0],
            "write_bytes": self.moved_bytes_total[1],
            "read_ns": self.latencies_ns[0],
            "write_ns": self.latencies_ns[1],
        }
        controlled = self.control.counters() if self.control else {}
        return numbers | controlled | (engine.counts if engine else dict.fromkeys(COUNTS, 0))

    # -- state

    _PLAIN = ("closed_epoch", "pages_stored", "pages_freed", "pages_loaded", "inbox_crc")
    _LISTS = ("queue", "latencies_ns", "reported", "moved_bytes", "moved_bytes_total")

    def snapshot(self) -> dict[str, Any]:
        """The whole state; see participant.Participant."""
        state: dict[str, Any] = {name: getattr(self, name) for name in self._PLAIN}
        state |= {name: list(getattr(self, name)) for name in self._LISTS}
        return state | {
            "seq": self.mail.seq,
            "extents": self.extents.snapshot(),
            "credits": self.credits.snapshot(),
            "store": self.store.snapshot() if self.store else None,
            **({"control": self.control.snapshot()} if self.control else {}),
        }

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Take over a snapshot of a device of the same spec."""
        for name in self._PLAIN:
            setattr(self, name, snapshot[name])
        for name in self._LISTS:
            setattr(self, name, list(snapshot[name]))
        self.mail.seq = snapshot["seq"]
        self.extents.restore(snapshot["extents"])
        self.credits.restore(snapshot["credits"])
        self._owned = {}
        if self.store is not None:
            self.store.restore(snapshot["store"])
        if self.control is not None:
            self.control.restore(snapshot["control"])

    def counters(self) -> dict[str, int]:
        """What moves whenever the device does something."""
        numbers = self._numbers()
        numbers |= {"epoch": self.closed_epoch, "seq": self.mail.seq, "inbox_crc": self.inbox_crc}
        return numbers | {"queued": len(self.queue)}

    def summary(self) -> dict[str, Any]:
        """Counters, the pages of each host, and two ratios: `ratio` is what is stored now against the memory
        that it takes, `ratio_in` the same over all pages that ever came in; None without any.
        """
        numbers: dict[str, Any] = {
            "class": self.spec["class"],
            "pooled": self.spec["pooled"],
            **self._numbers(),
            "granted_by_host": self.extents.granted_pages(),
        }
        if not self.spec["compression"]:
            return {name: number for name, number in numbers.items() if name not in COUNTS}
        numbers["codec"] = self.spec["compression"]["codec"]
        numbers["ratio"] = _ratio(numbers["logical_bytes"], numbers["used_bytes"])
        numbers["ratio_in"] = _ratio(numbers["logical_bytes_in"], numbers["granule_bytes_in"])
        return numbers

    def validate(self) -> None:
        """Recount extents, content and promises."""
        self.extents.validate()
        if self.store is not None:
            self.store.validate()
            self.credits.validate(self.store.room_pages)


def _ratio(logical_bytes: int, physical_bytes: int) -> float | None:
    return round(logical_bytes / physical_bytes, 3) if physical_bytes else None
