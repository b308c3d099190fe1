"""Literal bytes: what programs wrote, where the emulator has the bytes themselves and not only their description.

Two kinds of pages have them. Those that a process wrote by `poke` (process.py): their bytes belong to the frame,
and go with it through copy on write, migration, swap and the page cache. And those of a program whose content
source is literal (`content.py` makes the bytes, on the host alone). When such a page comes to a storing device its
bytes travel there (StorePages with source LITERAL). Before the host takes the page back, by migration or a copy, it
asks the device for them (LoadPages), and what comes back must have the checksum of what was sent.

Left out: the host goes on with its own copy of the bytes and does not wait for the device's, so that a load costs
no round of messages; the loads and stores of a workload carry no data.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from privmem.nodeagent.content import LITERAL, ZERO, ContentTable
from privmem.nodeagent.host.layout import PG_OBJECT, PG_SWAPCACHE, PTE_PFN_SHIFT, PTE_PRESENT
from privmem.nodeagent.host.pagecache import FILE
from privmem.scheduler.abi import PAGE_SIZE
from privmem.scheduler.errors import InvariantError
from privmem.scheduler.messages import PagesLoaded

if TYPE_CHECKING:
    from privmem.nodeagent.host.memory import Memory, Node
    from privmem.nodeagent.host.task import Task

_ZEROS = bytes(PAGE_SIZE)


class LiteralPages:
    """Bytes of a host's pages, and what of them is on devices."""

    def __init__(self) -> None:
        #: Frame -> bytes that a process wrote there.
        self.written: dict[int, bytes] = {}
        #: The same of slots of the swap area, and of pages of files (object, index) that left the page cache.
        self.on_swap: dict[int, bytes] = {}
        self.of_files: dict[tuple[int, int], bytes] = {}
        #: Frame of a storing node -> checksum of the bytes that its device was sent.
        self.sent: dict[int, int] = {}
        #: Device -> (its page, checksum) of the loads that it has not answered.
        self.awaited: dict[str, list[tuple[int, int]]] = {}
        #: Sources whose pages travel literally, and what makes their bytes. No state: the configuration's.
        self.content = ContentTable([], {})
        self.sources: frozenset[int] = frozenset()

    @property
    def known(self) -> bool:
        """Whether any process wrote bytes that are still somewhere."""
        return bool(self.written or self.of_files or self.on_swap)

    def take_sources(self, specs: list[dict[str, Any]], resources: dict[str, np.ndarray]) -> None:
        """The content sources of the run; those that say `literal` are."""
        self.content = ContentTable(specs, resources)
        self.sources = frozenset(number for number, spec in enumerate(specs, 1) if spec.get("literal"))

    def literal_rows(self, pfns: np.ndarray, source: np.ndarray) -> np.ndarray:
        """Positions of the frames whose bytes travel."""
        if not self.written and not self.sources:
            return np.zeros(0, dtype=np.int64)
        found = [
            at
            for at, (pfn, number) in enumerate(zip(pfns.tolist(), source.tolist(), strict=True))
            if number in self.sources or pfn in self.written
        ]
        return np.array(found, dtype=np.int64)

    def copied(self, old: int, new: int) -> None:
        """Frame `new` holds what `old` holds."""
        if old in self.written:
            self.written[new] = self.written[old]

    def moved(self, old: np.ndarray, new: np.ndarray) -> None:
        """What was in the old frames is in the new ones."""
        if self.written:
            for pfn, fresh in zip(old.tolist(), new.tolist(), strict=True):
                if pfn in self.written:
                    self.written[fresh] = self.written.pop(pfn)

    def swapped_out(self, pfn: int, slot: int) -> None:
        """A page was written to a slot of the swap area."""
        self.on_swap.pop(slot, None)
        if pfn in self.written:
            self.on_swap[slot] = self.written[pfn]

    def swapped_in(self, pfn: int, slot: int) -> None:
        """A slot was read into a new frame."""
        if slot in self.on_swap:
            self.written[pfn] = self.on_swap[slot]

    def truncated(self, object_id: int, nr_pages: int) -> None:
        """A file has this many pages now."""
        self.of_files = {
            page: kept for page, kept in self.of_files.items() if page[0] != object_id or page[1] < nr_pages
        }

    def snapshot(self) -> dict[str, Any]:
        """Plain form."""
        return {
            "written": [[pfn, self.written[pfn]] for pfn in sorted(self.written)],
            "on_swap": [[slot, self.on_swap[slot]] for slot in sorted(self.on_swap)],
            "of_files": [[*page, self.of_files[page]] for page in sorted(self.of_files)],
            "sent": [[pfn, self.sent[pfn]] for pfn in sorted(self.sent)],
            "awaited": {
                device: [list(row) for row in self.awaited[device]] for device in sorted(self.awaited)
            },
        }

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Take over a snapshot."""
        self.written = {int(pfn): bytes(held) for pfn, held in snapshot["written"]}
        self.on_swap = {int(slot): bytes(held) for slot, held in snapshot["on_swap"]}
        self.of_files = {(int(o), int(i)): bytes(held) for o, i, held in snapshot["of_files"]}
        self.sent = {int(pfn): int(crc) for pfn, crc in snapshot["sent"]}
        self.awaited = {
            device: [(int(dpa), int(crc)) for dpa, crc in rows]
            for device, rows in snapshot["awaited"].items()
        }


def described(memory: Memory, pfns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(source, index) of what frames hold that are mapped, of an object, or in the swap cache."""
    frames = memory.frames
    source, index = memory.page_table.content_of(frames.rmap[pfns].astype(np.int64))
    for at in np.flatnonzero(frames.flags[pfns] & PG_OBJECT).tolist():
        source[at], index[at] = memory.object_content(int(pfns[at]))
    unmapped = (frames.rmap[pfns] == 0) & (frames.flags[pfns] & PG_SWAPCACHE != 0)
    for at in np.flatnonzero(unmapped).tolist():
        source[at], index[at] = memory.swap.content_of(int(pfns[at]))
    return source, index


def bytes_of(
    memory: Memory, pfns: np.ndarray, source: np.ndarray, index: np.ndarray, version: np.ndarray
) -> list[bytes]:
    """The bytes of frames: those that a process wrote, or those of their descriptions."""
    literal = memory.literal
    own = np.array([pfn in literal.written for pfn in pfns.tolist()], dtype=bool)
    pages = literal.content.pages(np.where(own, ZERO, source), index, version)
    return [
        literal.written.get(pfn) or page.tobytes() for pfn, page in zip(pfns.tolist(), pages, strict=True)
    ]


def to_send(
    memory: Memory, pfns: np.ndarray, source: np.ndarray, index: np.ndarray, version: np.ndarray
) -> list[bytes]:
    """The bytes that go to a device with these frames, in order; `source` says LITERAL for them afterwards."""
    rows = memory.literal.literal_rows(pfns, source)
    if not len(rows):
        return []
    bodies = bytes_of(memory, pfns[rows], source[rows], index[rows], version[rows])
    source[rows] = LITERAL
    for pfn, body in zip(pfns[rows].tolist(), bodies, strict=True):
        memory.literal.sent[pfn] = zlib.crc32(body)
    memory.vmstat.add("literal_sent", len(rows))
    return bodies


def ask_back(memory: Memory, node: Node, pfns: np.ndarray) -> None:
    """The host reads frames of a storing node, to copy or to move them: the device sends their bytes."""
    sent = memory.literal.sent
    if not sent or not node.spec.stores:
        return
    found = [pfn for pfn in pfns.tolist() if pfn in sent]
    if found:
        dpa = np.array(found, dtype=np.int64) - node.start_pfn
        rows = [(at, sent[pfn]) for at, pfn in zip(dpa.tolist(), found, strict=True)]
        memory.literal.awaited.setdefault(node.spec.device, []).extend(rows)
        memory.outgoing.load(node.spec.device, dpa)


def came_back(memory: Memory, device: str, body: PagesLoaded) -> None:
    """The answer of a device. Raises InvariantError for bytes that are not those that it was sent."""
    awaited = memory.literal.awaited.get(device, [])
    expected, memory.literal.awaited[device] = awaited[: len(body.dpa)], awaited[len(body.dpa) :]
    got = [
        (dpa, zlib.crc32(page.tobytes())) for dpa, page in zip(body.dpa.tolist(), body.literal, strict=True)
    ]
    if got != expected:
        wrong = next((row[0] for row, other in zip(got, expected, strict=False) if row != other), -1)
        raise InvariantError(f"{device}: page {wrong} came back with other bytes than were sent")
    if not memory.literal.awaited[device]:
        del memory.literal.awaited[device]
    memory.vmstat.add("literal_returned", len(got))


def copied(memory: Memory, old: int, new: int) -> None:
    """A page is copied from one frame to another, which nobody has mapped yet."""
    if memory.literal.sent:
        ask_back(memory, memory.nodes[memory.frames.nid_of(old)], np.array([old]))
    memory.literal.copied(old, new)


def released(memory: Memory, pfns: np.ndarray) -> None:
    """Frames are free. What a file's page held, its disk has."""
    literal = memory.literal
    if not literal.written and not literal.sent:
        return
    frames = memory.frames
    for pfn in pfns.tolist():
        literal.sent.pop(pfn, None)
        held = literal.written.pop(pfn, None)
        if held is not None and int(frames.flags[pfn]) & PG_OBJECT:
            object_id, index = int(frames.object_id[pfn]), int(frames.object_index[pfn])
            holder = memory.page_cache.objects.get(object_id)
            if holder is not None and holder.kind == FILE:
                literal.of_files[object_id, index] = held


def read_from_disk(memory: Memory, object_id: int, index: int, pfn: int) -> None:
    """A frame has a page of a file now."""
    if memory.literal.of_files:
        held = memory.literal.of_files.pop((object_id, index), None)
        if held is not None:
            memory.literal.written[pfn] = held


# -- what a process sees


def frame_at(memory: Memory, task: Task, vpn: int) -> int:
    """The frame that is mapped there; -1 where none is (the zero page)."""
    vma = task.mm.find(vpn)
    entry = int(memory.page_table.pte[vma.slot_of(vpn)]) if vma is not None else 0
    return entry >> PTE_PFN_SHIFT if entry & PTE_PRESENT else -1


def read(memory: Memory, pfn: int) -> bytes:
    """The bytes of a frame, or those of the zero page."""
    if pfn < 0:
        return _ZEROS
    one = np.array([pfn], dtype=np.int64)
    source, index = described(memory, one)
    return bytes_of(memory, one, source, index, memory.frames.version[one])[0]


def write(memory: Memory, pfn: int, at: int, part: bytes) -> None:
    """Bytes into a frame that the task may write, from byte `at` on."""
    page = bytearray(read(memory, pfn)) if len(part) < PAGE_SIZE else bytearray(PAGE_SIZE)
    page[at : at + len(part)] = part
    memory.literal.written[pfn] = bytes(page)
    node = memory.nodes[memory.frames.nid_of(pfn)]
    if node.spec.stores:  # not fenced, or the page would have left it
        from privmem.nodeagent.host.migrate import store_content  # which sends what is here

        store_content(memory, node, np.array([pfn], dtype=np.int64))


def read_file(memory: Memory, object_id: int, index: int, length: int) -> bytes:
    """Bytes of a file from a page on."""
    holder, parts = memory.page_cache.of(object_id), []
    for at in range(index, index + -(-length // PAGE_SIZE)):
        pfn = holder.pages.get(at, -1)
        parts.append(memory.literal.of_files.get((object_id, at), _ZEROS) if pfn < 0 else read(memory, pfn))
    return b"".join(parts)[:length]


def write_file(memory: Memory, object_id: int, index: int, part: bytes) -> None:
    """Bytes into a file from a page on; its pages are cached, for they have just been written."""
    holder = memory.page_cache.of(object_id)
    for at in range(0, len(part), PAGE_SIZE):
        pfn = holder.pages.get(index + at // PAGE_SIZE, -1)
        if pfn >= 0:
            write(memory, pfn, 0, part[at : at + PAGE_SIZE])
