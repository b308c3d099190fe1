"""The device participant: one memory device with its extents, its content, its compression and its timing."""

from __future__ import annotations

from typing import Any

import numpy as np

from privmem.nodeagent.content import LITERAL, ContentTable
from privmem.nodeagent.device.backing import PageStore
from privmem.nodeagent.device.compression import CompressionEngine
from privmem.nodeagent.device.extents import ExtentAllocator
from privmem.nodeagent.device.timing import loaded_ns
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
    PagesStored,
    ReleaseExtent,
    Sample,
    StorePages,
    Traffic,
)
from privmem.scheduler.participant import Clock, Mailer, Outbox


def initial_credit_pages(spec: dict[str, Any], host: str) -> int:
    """What a host may store before the device's first answer; the device counts the same way."""
    return _share(spec["physical_bytes"] // PAGE_SIZE, spec["hosts"], host)


def _share(room_pages: int, hosts: list[str], host: str) -> int:
    """Room divided evenly, what is left over to the first hosts."""
    each, over = divmod(room_pages, len(hosts))
    return each + (hosts.index(host) < over)


class Device:
    """One memory device.

    `spec` is plain data: {"name", "device", "class", "capacity_pages", "physical_bytes", "extent_pages",
    "pooled", "hosts", "boot_extents": [[host, nid, start, pages]], "timing" (see timing.py), "compression"
    (see CompressionEngine) or None, "stores": whether it keeps the content of pages, "content": sources (see
    content.py), "scheduler", "sample_every"}.

    Credit: a storing device tells each host how many pages it is certain to take. It is counted from what is
    free if no page compresses, so a page within it always fits, and a host that has none left keeps its page.
    Nothing is ever lost.
    """

    def __init__(self, spec: dict[str, Any], resources: dict[str, np.ndarray]) -> None:
        self.spec = spec
        self.name: str = spec["name"]
        self.mail = Mailer(self.name)
        self.extents = ExtentAllocator(spec["capacity_pages"], spec["extent_pages"])
        for host, _, start, pages in spec["boot_extents"]:
            if self.extents.grant(host, pages) != (start, pages):
                raise InvariantError(f"{self.name}: boot extent of {pages} pages at {start} cannot be had")
        self.store: PageStore | None = None
        if spec["stores"]:
            engine = CompressionEngine(spec["compression"]) if spec["compression"] else None
            content = ContentTable(spec["content"], resources)
            self.store = PageStore(spec["capacity_pages"], spec["physical_bytes"], content, engine)
        timing = spec["timing"]
        self.idle_ns = [
            timing["read_ns"] + timing["decompress_ns"],
            timing["write_ns"] + timing["decompress_ns"],
        ]
        self.loaded = list(self.idle_ns)
        #: Bytes of the running epoch, and of all epochs: read, written.
        self.moved = [0, 0]
        self.moved_total = [0, 0]
        self.epoch = -1
        self.closed_epoch = -1
        #: Pages taken from each host and not yet acknowledged; the credit that each host was told last.
        self.taken = dict.fromkeys(spec["hosts"], 0)
        self.told = {host: initial_credit_pages(spec, host) for host in spec["hosts"]} if self.store else {}
        self.pages_stored = 0
        self.pages_freed = 0

    # -- the participant's interface
    # ------------------------------------------------------------------------------

    def step(self, inbox: list[Message], clock: Clock) -> Outbox:
        """Do what the messages ask; close the epoch once no host can send more of it."""
        self.epoch = clock.epoch
        for message in inbox:
            self._receive(message)
        if clock.horizon_ns >= clock.end_ns and self.closed_epoch < clock.epoch:
            self._close_epoch(clock)
        elif self.store is not None:
            self._acknowledge(inbox[-1].time_ns if inbox else clock.horizon_ns)
        return Outbox(self.mail.take(), clock.end_ns, finished=True)

    def _receive(self, message: Message) -> None:
        body = message.body
        match body:
            case AllocExtent():
                self._grant(message, body)
            case ReleaseExtent():
                self._release(message, body)
            case StorePages():
                self._store(message, body)
            case FreePages():
                store = self._storing(message)
                for dpa in body.dpa.tolist():
                    store.free(dpa)
                self.pages_freed += len(body.dpa)
            case LoadPages():
                self._load(message, body)
            case Traffic():
                for at, nr_bytes in enumerate((body.read_bytes, body.write_bytes)):
                    self.moved[at] += nr_bytes
                    self.moved_total[at] += nr_bytes
            case _:
                raise ProtocolError(f"{self.name} cannot handle {type(body).__name__} from {message.sender}")

    # -- extents
    # --------------------------------------------------------------------------------------------------

    def _grant(self, message: Message, body: AllocExtent) -> None:
        granted = self.extents.grant(body.host, body.nr_pages)
        if isinstance(granted, int):
            refused = ExtentRefused(self.name, body.host, body.nid, -granted)
            for to in (body.host, message.sender):
                self.mail.send(to, message.time_ns, refused)
            return
        answer = ExtentGranted(self.name, body.host, body.nid, *granted)
        for to in (body.host, message.sender):
            self.mail.send(to, message.time_ns, answer)

    def _release(self, message: Message, body: ReleaseExtent) -> None:
        if self.store is not None and self.store.held[body.start : body.start + body.nr_pages].any():
            raise ProtocolError(f"{message.sender} gives back an extent in which it still stores pages")
        if self.extents.release(message.sender, body.start, body.nr_pages):
            raise ProtocolError(f"{message.sender} gives back pages {body.start}.. that it does not hold")
        released = ExtentReleased(self.name, message.sender, body.nr_pages)
        self.mail.send(self.spec["scheduler"], message.time_ns, released)

    # -- content
    # --------------------------------------------------------------------------------------------------

    def _storing(self, message: Message) -> PageStore:
        if self.store is None:
            raise ProtocolError(f"{message.sender} stores pages at {self.name}, which keeps none")
        return self.store

    def _store(self, message: Message, body: StorePages) -> None:
        store = self._storing(message)
        literal = iter(body.literal)
        rows = zip(
            body.dpa.tolist(), body.source.tolist(), body.index.tolist(), body.version.tolist(), strict=True
        )
        for dpa, source, index, version in rows:
            store.store(dpa, source, index, version, next(literal) if source == LITERAL else None)
        self.pages_stored += len(body.dpa)
        self.taken[message.sender] += len(body.dpa)

    def _load(self, message: Message, body: LoadPages) -> None:
        store = self._storing(message)
        if not store.held[body.dpa].all():
            raise ProtocolError(f"{message.sender} loads a page that it did not store")
        source = store.source[body.dpa]
        literal = [store.load_literal(dpa) for dpa in body.dpa[source == LITERAL].tolist()]
        pages = np.stack(literal) if literal else np.zeros((0, PAGE_SIZE), dtype=np.uint8)
        answer = PagesLoaded(body.dpa, source, store.index[body.dpa], store.version[body.dpa], pages)
        self.mail.send(message.sender, message.time_ns, answer)

    def _acknowledge(self, time_ns: int) -> None:
        """Tell hosts what was taken and what they may send now, where one of the two has changed."""
        assert self.store is not None
        room = self.store.room_pages
        for host in self.spec["hosts"]:
            credit = _share(room, self.spec["hosts"], host)
            if self.taken[host] or credit != self.told[host]:
                self.mail.send(host, time_ns, PagesStored(self.taken[host], credit))
                self.taken[host], self.told[host] = 0, credit

    # -- the end of an epoch
    # --------------------------------------------------------------------------------------

    def _close_epoch(self, clock: Clock) -> None:
        self.closed_epoch = clock.epoch
        if self.store is not None:
            self._acknowledge(clock.end_ns)
        timing, span_ns = self.spec["timing"], clock.end_ns - clock.start_ns
        bandwidth = (timing["read_bandwidth"], timing["write_bandwidth"])
        loaded = [
            loaded_ns(idle, moved, span_ns, limit, timing["curve"])
            for idle, moved, limit in zip(self.idle_ns, self.moved, bandwidth, strict=True)
        ]
        if loaded != self.loaded:
            self.loaded = loaded
            used = self.store.used_bytes if self.store else 0
            read_ns, write_ns = loaded
            capacity = self.spec["physical_bytes"]
            report = DeviceReport(self.spec["device"], clock.epoch, read_ns, write_ns, used, capacity)
            for host in self.spec["hosts"]:
                self.mail.send(host, clock.end_ns, report)
        self.moved = [0, 0]
        if (clock.epoch + 1) % self.spec["sample_every"] == 0:
            when = {"epoch": clock.epoch, "time_ns": clock.end_ns, "device": self.spec["device"]}
            self.mail.send(RESULTS, clock.end_ns, Sample("device", [when | self._numbers()]))

    def _numbers(self) -> dict[str, int]:
        store = self.store
        return {
            "granted_pages": sum(self.extents.granted_pages().values()),
            "stored_pages": store.stored_pages if store else 0,
            "same_filled_pages": store.same_filled_pages if store else 0,
            "logical_bytes": store.stored_pages * PAGE_SIZE if store else 0,
            "compressed_bytes": store.stored_bytes if store else 0,
            "used_bytes": store.used_bytes if store else 0,
            "capacity_bytes": self.spec["physical_bytes"],
            "pages_stored": self.pages_stored,
            "pages_freed": self.pages_freed,
            "read_bytes": self.moved_total[0],
            "write_bytes": self.moved_total[1],
            "read_ns": self.loaded[0],
            "write_ns": self.loaded[1],
        }

    # -- state
    # ----------------------------------------------------------------------------------------------------

    _PLAIN = (
        "idle_ns",
        "loaded",
        "moved",
        "moved_total",
        "epoch",
        "closed_epoch",
        "pages_stored",
        "pages_freed",
    )

    def snapshot(self) -> dict[str, Any]:
        """The whole state; see participant.Participant."""
        state: dict[str, Any] = {name: getattr(self, name) for name in self._PLAIN}
        return state | {
            "seq": self.mail.seq,
            "extents": self.extents.snapshot(),
            "taken": dict(self.taken),
            "told": dict(self.told),
            "store": self.store.snapshot() if self.store else None,
        }

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Take over a snapshot of a device of the same spec."""
        for name in self._PLAIN:
            value = snapshot[name]
            setattr(self, name, list(value) if isinstance(value, list) else value)
        self.mail.seq = snapshot["seq"]
        self.extents.restore(snapshot["extents"])
        self.taken, self.told = dict(snapshot["taken"]), dict(snapshot["told"])
        if self.store is not None:
            self.store.restore(snapshot["store"])

    def counters(self) -> dict[str, int]:
        """What moves whenever the device does something."""
        return self._numbers() | {"epoch": self.closed_epoch, "seq": self.mail.seq}

    def summary(self) -> dict[str, Any]:
        """Counters, and the compression ratio of what is stored now."""
        numbers: dict[str, Any] = {
            "class": self.spec["class"],
            "pooled": self.spec["pooled"],
            **self._numbers(),
        }
        numbers["granted_by_host"] = self.extents.granted_pages()
        if self.spec["compression"] and numbers["used_bytes"]:
            numbers["ratio"] = round(numbers["logical_bytes"] / numbers["used_bytes"], 3)
        return numbers

    def validate(self) -> None:
        """Recount extents and content."""
        self.extents.validate()
        if self.store is not None:
            self.store.validate()
