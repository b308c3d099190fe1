"""Bytes that programs wrote: they stay with their page wherever it goes, and come back from devices unchanged."""

from __future__ import annotations

import dataclasses
import signal
from typing import Any

import pytest

from privmem.nodeagent.content import LITERAL, ContentTable
from privmem.nodeagent.device.backing import PageStore
from privmem.nodeagent.device.compression import CompressionEngine
from privmem.nodeagent.host import literal, swap
from privmem.nodeagent.host.filemap import drop_caches
from privmem.nodeagent.host.kernel import Kernel, NodeBoot
from privmem.nodeagent.host.madvise import MADV_PAGEOUT
from privmem.nodeagent.host.memory import NumaBalancing, Sysctl
from privmem.nodeagent.host.process import MADV_MERGEABLE, Process, Signalled
from privmem.scheduler import plain
from privmem.scheduler.errors import InvariantError
from privmem.scheduler.messages import FreePages, LoadPages, Message, PagesLoaded, StorePages

PAGE, AT = 4096, 0x2000_0000
TEXT = b"what a program wrote "


def boot() -> Kernel:
    nodes = [NodeBoot(0, 2048, cpus=(0,)), NodeBoot(1, 2048, cpus=(1,))]
    sysctl = Sysctl(NumaBalancing(mode=0), demotion_enabled=False)
    return Kernel(nodes, ((10, 20), (20, 10)), sysctl=sysctl)


@pytest.fixture
def process() -> Process:
    made = boot().spawn()
    assert made.mmap(8 * PAGE, addr=AT) == AT
    return made


def test_bytes_are_read_where_they_were_written(process: Process) -> None:
    process.poke(AT + PAGE - 5, TEXT)
    process.poke(AT + PAGE, b"PP")
    assert process.peek(AT + PAGE - 8, 30) == bytes(3) + TEXT[:5] + b"PP" + TEXT[7:] + bytes(6)
    assert process.peek(AT + 3 * PAGE, PAGE + 1) == bytes(PAGE + 1)
    assert process.where(AT, 3 * PAGE) == [0, 0, None]


def test_a_whole_page_needs_nothing_of_what_was_there(process: Process) -> None:
    body = bytes(range(256)) * 16
    process.poke(AT, body)
    assert process.peek(AT, PAGE) == body


def test_no_bytes_without_memory_or_the_right_to_it(process: Process) -> None:
    process.mprotect(AT + PAGE, PAGE, 1)
    for addr in (AT - PAGE, AT + PAGE):
        with pytest.raises(Signalled) as caught:
            process.poke(addr, TEXT)
        assert caught.value.signal == signal.SIGSEGV
    with pytest.raises(Signalled):
        process.peek(AT + 8 * PAGE - 1, 2)


def test_a_child_sees_its_parents_bytes_until_one_of_them_writes(process: Process) -> None:
    process.poke(AT, TEXT)
    child = process.fork()
    child.poke(AT + 5, b"CHILD")
    process.poke(AT, b"W")
    assert child.peek(AT, 12) == TEXT[:5] + b"CHILD" + TEXT[10:12]
    assert process.peek(AT, 21) == b"W" + TEXT[1:]
    assert len(process.kernel.memory.literal.written) == 2


def test_bytes_go_with_a_page_that_moves(process: Process) -> None:
    process.poke(AT, TEXT)
    assert process.move_pages([AT], [1]) == [1]
    assert process.peek(AT, 21) == TEXT
    new = process.mremap(AT, PAGE, PAGE, 3, AT + 64 * PAGE)
    assert process.peek(new, 21) == TEXT


def test_bytes_come_back_from_swap(process: Process) -> None:
    assert swap.swapon(process.kernel.memory, 64) == 0
    process.poke(AT, TEXT)
    for round_ in range(3):
        process.madvise(AT, PAGE, MADV_PAGEOUT)
        assert process.where(AT, PAGE) == [None]
        assert process.kernel.memory.literal.written == {}
        assert process.peek(AT, 21) == bytes(round_) + TEXT[round_:]
        process.poke(AT, bytes(round_ + 1))
    assert process.kernel.memory.vmstat.count["pswpin"] == 3


def test_a_freed_frame_forgets(process: Process) -> None:
    process.poke(AT, TEXT)
    process.munmap(AT, PAGE)
    assert process.kernel.memory.literal.written == {}
    process.mmap(PAGE, addr=AT)
    process.touch(AT, PAGE)
    assert process.peek(AT, 21) == bytes(21)


def test_a_file_keeps_what_was_stored_through_a_mapping(process: Process) -> None:
    kernel = process.kernel
    file = process.open(kernel.create_file("f", 4))
    shared = process.mmap(4 * PAGE, shared=True, file=file)
    private = process.mmap(4 * PAGE, file=file)
    process.poke(shared + 2 * PAGE, TEXT)
    process.poke(private + 2 * PAGE, b"own")
    process.munmap(shared, 4 * PAGE)
    kernel.sync()
    process.munmap(private, 4 * PAGE)
    assert drop_caches(kernel.memory) > 0
    assert kernel.memory.literal.written == {}
    again = process.mmap(4 * PAGE, shared=True, file=file)
    assert process.peek(again + 2 * PAGE, 21) == TEXT
    process.munmap(again, 4 * PAGE)
    drop_caches(kernel.memory)
    process.ftruncate(file, PAGE)
    process.ftruncate(file, 4 * PAGE)
    last = process.mmap(4 * PAGE, shared=True, file=file)
    assert process.peek(last + 2 * PAGE, 21) == bytes(21)


def test_read_and_write_carry_bytes(process: Process) -> None:
    file = process.open(process.kernel.create_file("f", 4))
    process.poke(AT + PAGE, TEXT)
    assert process.write(file, 2 * PAGE, offset=PAGE, source=AT) == 2 * PAGE
    process.poke(AT + PAGE, b"later")
    assert process.read(file, 3 * PAGE, offset=0, into=AT + 4 * PAGE) == 3 * PAGE
    assert process.peek(AT + 4 * PAGE, 3 * PAGE) == bytes(2 * PAGE) + TEXT.ljust(PAGE, b"\0")
    process.write(file, PAGE, offset=2 * PAGE, source=AT)  # zeros over them
    assert process.read(file, PAGE, offset=2 * PAGE, into=AT + 6 * PAGE) == PAGE
    assert process.peek(AT + 6 * PAGE, PAGE) == bytes(PAGE)


def test_ksm_merges_equal_bytes_only(process: Process) -> None:
    for at, part in ((0, b"a"), (1, b"b"), (2, b"a")):
        process.poke(AT + at * PAGE, part)
    process.madvise(AT, 8 * PAGE, MADV_MERGEABLE)
    assert process.kernel.merge_pages() == 1
    process.poke(AT, b"c")
    assert [process.peek(AT + at * PAGE, 2) for at in range(3)] == [b"c\0", b"b\0", b"a\0"]


def test_a_snapshot_has_the_bytes(process: Process) -> None:
    memory = process.kernel.memory
    swap.swapon(memory, 64)
    process.poke(AT, TEXT)
    process.poke(AT + PAGE, b"out")
    process.madvise(AT + PAGE, PAGE, MADV_PAGEOUT)
    memory.literal.sent[7], memory.literal.awaited["d"] = 3, [(4, 5)]
    memory.literal.of_files[2, 3] = b"f" * PAGE
    header, arrays = plain.pack(memory.literal.snapshot())
    copy = boot().memory.literal
    copy.restore(plain.unpack(header, arrays))
    for name in ("written", "on_swap", "of_files", "sent", "awaited"):
        assert getattr(copy, name) == getattr(memory.literal, name), name
        assert getattr(copy, name), name


# -- devices

GENERATOR = {"kind": "generator", "seed": 1, "zero_permille": 100, "random_bytes": 900, "changed_bytes": 64}


def with_devices(rack: Any, stream: Any, accesses: list[tuple[int, bool]], whole: bool = True) -> Any:
    """The small rack, with real stores behind nodes 2 and 3."""
    made = rack([stream(900, accesses)])
    made.memory.literal.take_sources([GENERATOR | ({"literal": True} if whole else {})], {})
    spec = {"codec": "lz4", "level": None, "block": 4096, "granule": 64}
    content = ContentTable([GENERATOR] if not whole else [], {})
    made.stores = {
        "device/d2": PageStore(256, 256 * PAGE, content, CompressionEngine(spec)),
        "device/d3": PageStore(1024, 1024 * PAGE, content, None),
    }
    plainly = made._answer

    def answer(message: Message) -> list[Message]:
        body, store = message.body, made.stores.get(message.to)
        if isinstance(body, StorePages):
            store.store(*(getattr(body, field.name) for field in dataclasses.fields(body)))
        if isinstance(body, FreePages):
            store.free(body.dpa)
        if isinstance(body, LoadPages):
            loaded = PagesLoaded(body.dpa, *store.load(body.dpa))
            return [Message(message.time_ns, message.to, 0, "host/h0", loaded)]
        return list(plainly(message))

    made._answer = answer
    return made


BACK_AND_FORTH = [(page, True) for page in range(900)] * 3


def test_a_workloads_literal_pages_travel_and_come_back(rack: Any, stream: Any) -> None:
    made = with_devices(rack, stream, BACK_AND_FORTH)
    made.run()
    while made.inbox:  # what was asked for last
        made.step()
    stores = [m.body for m in made.sent if isinstance(m.body, StorePages)]
    sent = sum(len(body.literal) for body in stores)
    asked = sum(len(m.body.dpa) for m in made.sent if isinstance(m.body, LoadPages))
    assert all((body.source == LITERAL).all() and len(body.literal) == len(body.dpa) for body in stores)
    assert made.vm["literal_sent"] == sent > 900
    assert made.vm["literal_returned"] == asked > 200
    assert made.memory.literal.awaited == {}
    held = sum(store.stored_pages for store in made.stores.values())
    assert len(made.memory.literal.sent) == held > 100


def test_literal_pages_change_no_figure(rack: Any, stream: Any) -> None:
    found = []
    for whole in (False, True):
        made = with_devices(rack, stream, BACK_AND_FORTH, whole)
        made.run()
        engine = made.stores["device/d2"].engine
        counters = {name: n for name, n in made.vm.items() if not name.startswith("literal")}
        found.append((counters, made.nodes_of(), engine.counts, made.stores["device/d2"].used_bytes))
    assert found[0] == found[1]


def test_wrong_bytes_are_seen(rack: Any, stream: Any) -> None:
    made = with_devices(rack, stream, BACK_AND_FORTH)
    answer = made._answer

    def bent(message: Message) -> list[Message]:
        answers = answer(message)
        for one in answers:
            if isinstance(one.body, PagesLoaded):
                one.body.literal[0, 9] ^= 1
        return list(answers)

    made._answer = bent
    with pytest.raises(InvariantError, match="came back with other bytes than were sent"):
        made.run()


def test_poked_bytes_travel_from_their_frames(rack: Any, stream: Any) -> None:
    """Pages that somebody wrote go down with the rest, and their devices have the very bytes."""
    made = with_devices(rack, stream, BACK_AND_FORTH * 8, whole=False)
    made.step()
    memory, slot = made.memory, made.host.programs[0].slot
    bodies = set()
    for page in [page for page, nid in enumerate(made.nodes_of()) if nid == 0][:100]:
        body = bytes([page % 256, page // 256]) * 2048
        literal.write(memory, int(memory.page_table.pte[slot + page]) >> 5, 0, body)
        bodies.add(body)
    made.run()
    assert set(memory.literal.written.values()) == bodies
    below = [pfn for pfn in memory.literal.written if memory.frames.nid_of(pfn) >= 2]
    for pfn in below:
        node = memory.nodes[memory.frames.nid_of(pfn)]
        store = made.stores[node.spec.device]
        assert store.page_bytes(pfn - node.start_pfn).tobytes() == memory.literal.written[pfn]
    assert len(below) > 20
    assert made.vm["literal_sent"] >= len(below)
