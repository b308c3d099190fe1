"""The recordings that travel with the repository hold nothing of a machine or its user."""

from __future__ import annotations

import importlib
import socket
import sys
from argparse import Namespace
from dataclasses import astuple
from getpass import getuser
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from privmem.cluster.traces import PAGE_BYTES, open_trace
from privmem.cluster.traces_private import find_private, private_pages

RECORDINGS = Path(__file__).resolve().parents[2] / "configs" / "recordings"
FILES = sorted(RECORDINGS.glob("*.pmtrace"))


def tool(name: str) -> ModuleType:
    """A script of the folder `record`, under the name that it has there: numba's cache remembers it."""
    sys.path.insert(0, str(RECORDINGS / "record"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)


def names_of_this_machine() -> list[str]:
    """Names long enough to be somebody's: a word of three letters stands in made-up data by chance."""
    common = {"user", "runner", "admin", "ubuntu", "debian", "localhost", "build", "docker"}
    return [name for name in (socket.gethostname(), getuser()) if len(name) > 4 and name not in common]


def test_there_are_recordings() -> None:
    assert [path.stem for path in FILES] == ["python", "redis"]
    assert sum(path.stat().st_size for path in FILES) < 6_000_000


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_nothing_private_travels(path: Path) -> None:
    trace = open_trace(path)
    rows, table = trace.images()
    names = names_of_this_machine()
    assert list(find_private(repr(astuple(trace.header)).encode(), names)) == []
    # Image 0 in page order; of later images the pages that changed, with both neighbours.
    assert list(find_private(rows[table[0]].tobytes(), names)) == []
    for image in range(1, len(table)):
        changed = table[image] != table[image - 1]
        near = changed | np.append(changed[1:], False) | np.append(False, changed[:-1])
        assert list(find_private(rows[table[image][near]].tobytes(), names)) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_recordings_are_worth_replaying(path: Path) -> None:
    trace = open_trace(path)
    header, accesses = trace.header, trace.accesses()
    rows, table = trace.images()
    pages = accesses >> 1
    assert 2000 <= header.nr_pages <= 6000
    assert 500_000 <= header.nr_accesses <= 3_000_000
    assert header.nr_images >= 3
    assert header.image_at[0] == 0
    assert header.image_at[-1] == header.nr_accesses
    assert len(np.unique(pages)) == header.nr_pages, "a page that nothing accesses"
    assert 0.05 < (accesses & 1).mean() < 0.6
    blank = ~rows.any(axis=1)[table].any(axis=0)
    assert int(blank.sum()) == header.blanked_pages
    assert header.blanked_pages < header.nr_pages // 10
    assert all((table[image] != table[image - 1]).mean() > 0.05 for image in range(1, len(table)))
    # The hot set moves: half of the pages of the first tenth are not among those of the last.
    tenth = len(pages) // 10
    first, last = np.unique(pages[:tenth]), np.unique(pages[-tenth:])
    assert len(np.setdiff1d(first, last)) > len(first) // 10


@pytest.mark.parametrize(
    "text",
    [
        b"/home/somebody/x",
        b"file /root\0",
        b"/usr/lib/python3.11/json",
        b"/tmp/rec1/s",
        b"-----BEGIN OPENSSH PRIVATE KEY-----",
        b"AKIAIOSFODNN7EXAMPLE",
        b"DB_PASSWORD=x",
        b"PATH=a",
        b"at 192.168.17.4:80",
        b"52:54:00:12:34:56",
        b"someone@example.org",
        b"db7.internal",
        b"on tarantula now",
    ],
)
@pytest.mark.parametrize("width", [1, 2, 4])
def test_the_search_finds(text: bytes, width: int) -> None:
    wide = b"".join(bytes([byte]) + bytes(width - 1) for byte in text)
    filler = b"order 12 of 3 made-up words, v 7.0.15; /item/5 {a: 1.5} "
    assert list(find_private(filler * 20, ["tarantula"])) == []
    content = (filler + wide + bytes(width) + filler).ljust(PAGE_BYTES, b"\0")
    assert [start for start, *_ in find_private(content, ["tarantula"])] != []
    # Over a page boundary, both pages are found; the one before and the one after are not.
    at = 2 * PAGE_BYTES - width * 3
    pages = bytearray(4 * PAGE_BYTES)
    pages[at : at + len(wide)] = wide
    image = np.frombuffer(bytes(pages), np.uint8).reshape(4, PAGE_BYTES)
    assert private_pages([np.zeros_like(image), image], ["tarantula"]) in ([1, 2], [2])


def filtered(events: list[str], ways: int, cuts: int) -> tuple[list[tuple[int, int]], int]:
    lackey = tool("lackey_filter").LackeyFilter(ways)
    text = "".join(event + "\n" for event in events).encode()
    kept = [lackey.feed(text[at : at + cuts]) for at in range(0, len(text), cuts)]
    return [(int(a) >> 1, int(a) & 1) for a in np.concatenate(kept)], lackey.nr_seen


@pytest.mark.parametrize("cuts", [1, 7, 10_000])
def test_the_filter_keeps_what_a_buffer_of_pages_would_miss(cuts: int) -> None:
    events = [
        "==1== Lackey, an example",
        "I  04001000,3",
        " L 00001000,8",  # miss
        " L 00001ff8,8",
        " S 00001010,4",  # first store since it came in
        " M 00001010,4",
        " L 00002ffc,8",  # over a boundary: two misses, page 1 leaves
        " S 00001000,1",  # miss again
        " M 00003000,2",  # in the buffer, first store
        " S 1ffefff000,8",
        "I  04001003,5",
        " L 00003abc,1",
    ]
    kept, seen = filtered(events, 2, cuts)
    assert kept == [(1, 0), (1, 1), (2, 0), (3, 0), (1, 1), (3, 1), (0x1FFEFFF, 1)]
    assert seen == 10


def test_the_filter_against_a_plain_model() -> None:
    chance = np.random.default_rng(3)
    picked = [(int(page), bool(write)) for page, write in chance.integers(0, [[12, 2]], (100_000, 2))]
    held: list[tuple[int, bool]] = []
    expected = []
    for page, write in picked:
        written = next((was for other, was in held if other == page), None)
        if written is None or (write and not written):
            expected.append((page, int(write)))
        held = [(page, write or bool(written)), *[entry for entry in held if entry[0] != page][:3]]
    kept, seen = filtered([f" {'S' if write else 'L'} {page << 12:08x},4" for page, write in picked], 4, 4096)
    assert (kept, seen) == (expected, len(picked))


def test_data_ranges_leave_out_stacks_files_and_valgrind() -> None:
    maps = """\
00400000-0041f000 r-xp 00000000 fe:00 26                             /usr/bin/prog
00946000-00a85000 rw-p 00545000 fe:00 26                             /usr/bin/prog
00a85000-00aca000 rw-p 00000000 00:00 0
04033000-04035000 rw-p 00033000 fe:00 33                             /lib/ld.so
04035000-04142000 rwxp 00000000 00:00 0
05a00000-06200000 rw-p 00000000 00:00 0
06200000-06201000 ---p 00000000 00:00 0
06201000-06a01000 rw-p 00000000 00:00 0
06a01000-06a02000 ---p 00000000 00:00 0
06a02000-07402000 rw-p 00000000 00:00 0
07500000-07600000 rw-s 00000000 00:05 7
08000000-08001000 rw-p 00000000 00:00 0                              [heap]
58232000-58c25000 rw-p 00000000 00:00 0
1002001000-100278c000 rwxp 00000000 00:00 0
1ffeffd000-1fff001000 rw-p 00000000 00:00 0
7fff1042f000-7fff10450000 rw-p 00000000 00:00 0                      [stack]
"""
    ends = {("/usr/bin/prog", 0x946000, 0x545000): 0xACA000, ("/lib/ld.so", 0x4033000, 0x33000): 0x4036000}
    assert tool("process_memory").data_ranges(maps, lambda *mapped: ends[mapped]) == [
        (0x04036000, 0x04142000),
        (0x05A00000, 0x06200000),
        (0x07202000, 0x07402000),
        (0x08000000, 0x08001000),
    ]


def test_the_bss_of_this_interpreter_and_its_libraries() -> None:
    process_memory = tool("process_memory")
    lines = Path("/proc/self/maps").read_text().splitlines()
    maps = [process_memory._LINE.fullmatch(line) for line in lines]
    checked = []
    for this, after in pairwise(found for found in maps if found):
        if this[3] == "rw-p" and this[5].startswith("/") and Path(this[5]).exists():
            end = process_memory.elf_bss_end(this[5], int(this[1], 16), int(this[4], 16))
            # What does not fit into the last page of the file's part has an anonymous map of its own.
            assert end >= int(this[2], 16), this
            if Path(this[5]).name == "libc.so.6":
                assert after[5] == "" and int(after[1], 16) < end <= int(after[2], 16)
            checked.append(this[5])
    assert len(checked) > 2


def test_saving_numbers_pages_and_blanks_what_is_private(tmp_path: Path) -> None:
    record = tool("record")
    body = {page: bytes([page]) * PAGE_BYTES for page in (16, 17, 32, 48)}
    private = b"open /home/somebody/x".ljust(PAGE_BYTES, b"\0")
    # Page 48 is data that nothing accesses, 99 is accessed and no data; page 32 turns private in the last image.
    accesses = [32 << 1, 99 << 1, 16 << 1 | 1, 17 << 1, 32 << 1 | 1, 16 << 1]
    recording = record.Recording(
        [np.array(accesses[:4], np.uint64), np.array(accesses[4:], np.uint64)],
        [body, body | {16: bytes([5]) * PAGE_BYTES}, {16: body[16], 32: private}],
        [0, 3, 6],
        nr_seen=77,
    )
    target = tmp_path / "a.pmtrace"
    args = Namespace(
        name="x",
        program=["/opt/prog", "-x", "/a/b"],
        program_version="1",
        workload="w",
        ways=2,
        out=str(target),
    )
    record._save(args, recording)
    trace = open_trace(target)
    assert trace.accesses().tolist() == [2 << 1, 0 << 1 | 1, 1 << 1, 2 << 1 | 1, 0]
    rows, table = trace.images()
    assert [[int(rows[row][0]) for row in image] for image in table] == [[16, 17, 0], [5, 17, 0], [16, 0, 0]]
    header = trace.header
    assert (header.nr_pages, header.blanked_pages, header.image_at) == (3, 1, (0, 2, 5))
    assert header.program == "prog -x b"
    assert [text.split(":")[0] for text in header.filters[1:3]] == ["kept 6 of 77", "kept 5 of 6"]


def test_made_up_records_are_the_same_everywhere() -> None:
    made_up = tool("made_up").MadeUp(1, (2, 4))
    assert made_up.record(7) == {
        "id": 7,
        "key": "582705bbcf9f5f8a",
        "customer": "Gadano Topeno",
        "state": "shipped",
        "total": 995.15,
        "items": [
            {"sku": 2208, "count": 4, "colour": "grey"},
            {"sku": 3696, "count": 3, "colour": "white"},
            {"sku": 1766, "count": 2, "colour": "black"},
        ],
        "note": "vabe nese nofo",
    }
