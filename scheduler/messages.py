"""What participants say to each other. Requests are verbs, facts are past tense.

A message is delivered in the order (time_ns, sender, seq), whatever order it arrived in. Bodies are plain
data; pages travel in arrays, so that a batch of any size is one message. Page addresses on a device are in
pages from its start ("dpa", device page address).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import numpy as np

from privmem.scheduler import plain
from privmem.scheduler.errors import ProtocolError

#: Version of every message body below. Two participants of different versions must not run together.
SCHEMA_VERSION = 2

#: Where samples go: the engine keeps them for the results and delivers them to no participant.
RESULTS = "results"


@dataclass(frozen=True, slots=True)
class EpochBegin:
    """Engine to host: the epoch that the step's clock names has begun."""

    epoch: int


@dataclass(frozen=True, slots=True)
class RequestExtent:
    """Host to scheduler: `nid` is short of memory; grant `nr_pages` of `device`, or as many as there are for it."""

    device: str
    nid: int
    nr_pages: int


@dataclass(frozen=True, slots=True)
class AllocExtent:
    """Scheduler to device: the request was admitted; take `nr_pages` for `host`, in one piece or several."""

    host: str
    nid: int
    nr_pages: int


@dataclass(frozen=True, slots=True)
class ExtentGranted:
    """Device to host (and, as a copy, to the scheduler): pages [start, start + nr_pages) are `host`'s now."""

    device: str
    host: str
    nid: int
    start: int
    nr_pages: int
    #: Pages of the same grant that follow in further pieces, in messages of the same time.
    more_pages: int = 0


@dataclass(frozen=True, slots=True)
class ExtentRefused:
    """Scheduler or device to host: no extent; `errno` is positive, as in Python's `errno`."""

    device: str
    host: str
    nid: int
    errno: int


@dataclass(frozen=True, slots=True)
class ReleaseExtent:
    """Host to device, passed on to the scheduler as ExtentReleased: whole extents; the host keeps no page."""

    nid: int
    start: int
    nr_pages: int


@dataclass(frozen=True, slots=True)
class ExtentReleased:
    """Device to scheduler: `host` gave pages back."""

    device: str
    host: str
    nr_pages: int


@dataclass(frozen=True, slots=True)
class ReclaimExtent:
    """Scheduler to host: give back `nr_pages` of `device`, as far as residents can move; `forced`: in any case."""

    device: str
    nr_pages: int
    forced: bool


@dataclass(frozen=True, slots=True)
class ReclaimAnswered:
    """Host to scheduler: what came of ReclaimExtent. The pages themselves went back as ReleaseExtent before."""

    device: str
    asked_pages: int
    released_pages: int
    #: Pages whose content was lost; only ever of a forced one.
    lost_pages: int


@dataclass(frozen=True, slots=True)
class ExtentUse:
    """Host to scheduler, at the host's end of an epoch: how often it accessed what it holds of a device."""

    device: str
    accesses: int


@dataclass(frozen=True, slots=True)
class StorePages:
    """Host to device: keep these pages. One row a page; all arrays have the same length, except `literal`.

    `source`, `index`, `version` describe the content (see `nodeagent/content.py`); `literal` holds the 4096
    bytes of each row whose source is LITERAL, in order, shape (rows with source LITERAL, 4096), dtype uint8.
    """

    dpa: np.ndarray  # int32
    source: np.ndarray  # uint16
    index: np.ndarray  # uint32
    version: np.ndarray  # uint16
    literal: np.ndarray  # uint8


@dataclass(frozen=True, slots=True)
class PagesStored:
    """Device to host: `count` pages of the host's StorePages were taken since the last such message."""

    count: int
    #: Pages that the host may still send before the next such message, even if none of them compresses.
    credit_pages: int


@dataclass(frozen=True, slots=True)
class FreePages:
    """Host to device: these pages hold nothing any more; zero and release what is behind them."""

    dpa: np.ndarray  # int32


@dataclass(frozen=True, slots=True)
class LoadPages:
    """Host to device: send these pages' content back. The pages stay stored until FreePages."""

    dpa: np.ndarray  # int32


@dataclass(frozen=True, slots=True)
class PagesLoaded:
    """Device to host: answer to LoadPages, rows as in StorePages."""

    dpa: np.ndarray
    source: np.ndarray
    index: np.ndarray
    version: np.ndarray
    literal: np.ndarray


@dataclass(frozen=True, slots=True)
class Traffic:
    """Host to device, at the host's end of an epoch: what it moved to and from the device in that epoch."""

    epoch: int
    read_bytes: int
    write_bytes: int


@dataclass(frozen=True, slots=True)
class DeviceReport:
    """Device to each of its hosts, when an epoch is over: what an access costs in the next one."""

    device: str
    epoch: int
    read_ns: int
    write_ns: int
    used_bytes: int
    capacity_bytes: int


@dataclass(frozen=True, slots=True)
class CapacityReport:
    """Device to a host whose compressed RAM service listens, when an epoch is over: what it can hold now."""

    device: str
    epoch: int
    #: Pages of the host's StorePages that came anew since the last report.
    count: int
    #: Pages that surely fit before the next report, even if none of them compresses.
    room_pages: int
    #: Pages that it can hold at the ratio that it reaches now.
    capacity_pages: int
    #: That ratio, in thousandths, of what is stored against memory that there is for it.
    ratio: int
    used_bytes: int
    #: Little memory is free: between the two thresholds as it was before.
    low: bool


@dataclass(frozen=True, slots=True)
class PagesRefused:
    """Device to host: there was no room for these pages of StorePages; they hold nothing, whatever they did."""

    dpa: np.ndarray  # int32


@dataclass(frozen=True, slots=True)
class Sample:
    """Any participant to the results: rows of one time series table."""

    table: str  # "host", "host_node", "device", "scheduler" or "cram"
    rows: list[dict[str, Any]]


Body: TypeAlias = (
    EpochBegin
    | RequestExtent
    | AllocExtent
    | ExtentGranted
    | ExtentRefused
    | ReleaseExtent
    | ExtentReleased
    | ReclaimExtent
    | ReclaimAnswered
    | ExtentUse
    | StorePages
    | PagesStored
    | FreePages
    | LoadPages
    | PagesLoaded
    | Traffic
    | DeviceReport
    | CapacityReport
    | PagesRefused
    | Sample
)

_BODIES: dict[str, type[Any]] = {
    body.__name__: body
    for body in (
        EpochBegin,
        RequestExtent,
        AllocExtent,
        ExtentGranted,
        ExtentRefused,
        ReleaseExtent,
        ExtentReleased,
        ReclaimExtent,
        ReclaimAnswered,
        ExtentUse,
        StorePages,
        PagesStored,
        FreePages,
        LoadPages,
        PagesLoaded,
        Traffic,
        DeviceReport,
        CapacityReport,
        PagesRefused,
        Sample,
    )
}


@dataclass(frozen=True, slots=True)
class Message:
    """A body with its envelope."""

    time_ns: int
    sender: str
    seq: int  # counts the sender's messages from 0, over the whole run
    to: str
    body: Body


@dataclass(frozen=True, slots=True)
class Packet:
    """A message on its way: the envelope that the engine reads, and the body as packed plain data."""

    time_ns: int
    sender: str
    seq: int
    to: str
    header: bytes
    arrays: list[np.ndarray]

    @property
    def key(self) -> tuple[int, str, int]:
        """The order of delivery."""
        return (self.time_ns, self.sender, self.seq)


def encode(message: Message) -> Packet:
    """Pack a message for the way."""
    body = message.body
    values = [getattr(body, f.name) for f in fields(body)]
    header, arrays = plain.pack([SCHEMA_VERSION, type(body).__name__, values])
    return Packet(message.time_ns, message.sender, message.seq, message.to, header, arrays)


def decode(packet: Packet) -> Message:
    """Unpack a message. Raises ProtocolError for another schema version, an unknown kind or missing fields."""
    value = plain.unpack(packet.header, packet.arrays)
    if not (isinstance(value, list) and len(value) == 3 and value[0] == SCHEMA_VERSION):
        raise ProtocolError(f"message from {packet.sender} is not of schema version {SCHEMA_VERSION}")
    kind = _BODIES.get(value[1])
    if kind is None:
        raise ProtocolError(f"message from {packet.sender} has the unknown kind {value[1]!r}")
    if len(value[2]) != len(fields(kind)):
        raise ProtocolError(f"{value[1]} from {packet.sender} has {len(value[2])} fields")
    return Message(packet.time_ns, packet.sender, packet.seq, packet.to, kind(*value[2]))


def pack_batch(packets: list[Packet]) -> plain.Packed:
    """Many packets as one header and one list of arrays: what a runtime carries between processes."""
    return plain.pack([[p.time_ns, p.sender, p.seq, p.to, p.header, p.arrays] for p in packets])


def unpack_batch(packed: plain.Packed) -> list[Packet]:
    """Inverse of `pack_batch`."""
    return [Packet(*row) for row in plain.unpack(*packed)]
