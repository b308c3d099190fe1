"""Round trips of `.pmtrace` files, and every way in which a file can be damaged or lie."""

from __future__ import annotations

import os
import random
import struct
from pathlib import Path

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privmem.cluster import traces_layout as layout
from privmem.cluster.errors import TraceError
from privmem.cluster.traces import (
    PAGE_BYTES,
    TraceHeader,
    distinct_rows,
    open_trace,
    read_header,
    write_trace,
)

NR_PAGES = 5
ACCESSES = np.array([0, 3, 8, 9, 2, 2, 7], np.uint32)


def pages_of(*fills: int) -> np.ndarray:
    return np.repeat(np.array(fills, np.uint8)[:, None], PAGE_BYTES, axis=1)


IMAGES = [pages_of(1, 0, 2, 1, 3), pages_of(1, 4, 2, 1, 3), pages_of(1, 4, 2, 1, 3)]
HEADER = TraceHeader(
    "small",
    NR_PAGES,
    program="prog -x",
    program_version="1.2",
    workload="made up",
    filters=("first", "second"),
    blanked_pages=1,
    image_at=(0, 3, 7),
)


def small(path: Path, level: int | None = 3) -> Path:
    write_trace(path, HEADER, ACCESSES, distinct_rows(IMAGES), level)
    return path


def everything(path: Path) -> tuple[TraceHeader, np.ndarray, list[np.ndarray]]:
    trace = open_trace(path)
    rows, table = trace.images()
    return trace.header, trace.accesses(), [rows[image] for image in table]


def refusal(path: Path) -> tuple[int, str]:
    """Offset and text of the one-line TraceError that reading all of a file must end in."""
    with pytest.raises(TraceError) as caught:
        everything(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: offset ") and "\n" not in text
    offset, what = text.removeprefix(f"{path}: offset ").split(": ", 1)
    return int(offset), what


@pytest.mark.parametrize("level", [None, 3])
def test_what_goes_in_comes_out(tmp_path: Path, level: int | None) -> None:
    path = small(tmp_path / "a.pmtrace", level)
    header, accesses, images = everything(path)
    assert header == read_header(path)
    assert (header.nr_accesses, header.nr_rows, header.nr_images) == (7, 5, 3)
    assert (header.name, header.filters, header.image_at) == ("small", ("first", "second"), (0, 3, 7))
    assert accesses.dtype == np.uint32 and accesses.tolist() == ACCESSES.tolist()
    assert np.array_equal(images, IMAGES)
    rows, table = open_trace(path).images()
    assert (rows.dtype, table.dtype, table.shape) == (np.uint8, np.int32, (3, NR_PAGES))
    assert table.tolist() == [[0, 1, 3, 0, 4], [0, 2, 3, 0, 4], [0, 2, 3, 0, 4]]
    assert [p.name for p in tmp_path.iterdir()] == ["a.pmtrace"]


def test_a_trace_without_images_or_accesses(tmp_path: Path) -> None:
    write_trace(tmp_path / "a.pmtrace", TraceHeader("none", 4), np.empty(0, np.uint32))
    trace = open_trace(tmp_path / "a.pmtrace")
    rows, table = trace.images()
    assert (len(trace.accesses()), rows.shape, table.shape, trace.blocks) == (0, (0, 4096), (0, 4), ())


def test_sections_longer_than_a_block(tmp_path: Path) -> None:
    nr_pages = layout.BLOCK_BYTES_MAX // PAGE_BYTES + 3
    body = np.zeros((nr_pages, PAGE_BYTES), np.uint8)
    body.view(np.uint32)[:, 7] = np.arange(nr_pages)
    accesses = np.arange(layout.BLOCK_BYTES_MAX // 4 + 5, dtype=np.uint32) % (nr_pages * 2)
    header = TraceHeader("long", nr_pages, image_at=(0,))
    write_trace(tmp_path / "a.pmtrace", header, accesses, distinct_rows([body]), level=1)
    trace = open_trace(tmp_path / "a.pmtrace")
    assert [block.kind for block in trace.blocks] == [1, 1, 2, 2, 3]
    assert np.array_equal(trace.accesses(), accesses)
    assert np.array_equal(trace.images()[0], body)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 6), st.booleans()), max_size=40),
    st.lists(st.lists(st.integers(0, 3), min_size=7, max_size=7), max_size=4),
    st.sampled_from([None, 1]),
    st.text(max_size=20),
)
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory,
    pairs: list[tuple[int, bool]],
    fills: list[list[int]],
    level: int | None,
    name: str,
) -> None:
    accesses = np.array([page << 1 | write for page, write in pairs], np.uint32)
    images = [pages_of(*row) for row in fills]
    header = TraceHeader(name, 7, image_at=(0,) * len(images))
    path = tmp_path_factory.mktemp("trace") / "a.pmtrace"
    try:
        name.encode()
    except UnicodeEncodeError:
        return
    written = write_trace(path, header, accesses, distinct_rows(images) if images else None, level)
    found, found_accesses, found_images = everything(path)
    assert found == written and found.name == name
    assert found_accesses.tolist() == accesses.tolist()
    assert np.array_equal(found_images, images)


def test_arrays_are_read_only(tmp_path: Path) -> None:
    trace = open_trace(small(tmp_path / "a.pmtrace"))
    assert not any(array.flags.writeable for array in (trace.accesses(), *trace.images()))


@pytest.mark.parametrize(
    ("header", "accesses", "images"),
    [
        (TraceHeader("x", 0), [], None),
        (TraceHeader("x", 5), [10], None),
        (TraceHeader("x", 5, image_at=(0,)), [1], None),
        (TraceHeader("x", 4, image_at=(0, 3, 7)), [1], distinct_rows(IMAGES)),
        (TraceHeader("x", 5, image_at=(3, 0, 1)), [1, 1, 1], distinct_rows(IMAGES)),
        (TraceHeader("x", 5, image_at=(0,)), [1], (IMAGES[0][:1], np.full((1, 5), 1, np.int32))),
        (TraceHeader("x", 5, image_at=(0,)), [1], (IMAGES[0][:1], np.full((1, 5), -1, np.int32))),
        (TraceHeader("x", 5, image_at=(0,)), [1], (IMAGES[0][:1, :9], np.zeros((1, 5), np.int32))),
        (TraceHeader("x" * 5000, 5), [1], None),
        (TraceHeader("x", 5, filters=("y" * 4000,) * 20), [1], None),
    ],
)
def test_the_writer_refuses_what_the_reader_would(
    tmp_path: Path, header: TraceHeader, accesses: list[int], images: tuple[np.ndarray, np.ndarray] | None
) -> None:
    with pytest.raises(ValueError):
        write_trace(tmp_path / "a.pmtrace", header, np.array(accesses, np.uint32), images)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = small(tmp_path / "a.pmtrace")
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_trace(path, TraceHeader("new", 5), ACCESSES)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.pmtrace"]


def test_files_that_are_no_file(tmp_path: Path) -> None:
    assert refusal(tmp_path / "missing.pmtrace") == (0, "cannot be read: No such file or directory")
    assert refusal(tmp_path) == (0, "not a regular file, expected a trace")
    os.mkfifo(tmp_path / "fifo")
    assert refusal(tmp_path / "fifo") == (0, "not a regular file, expected a trace")
    with pytest.raises(TraceError, match="zero byte"):
        open_trace("a\0b")
    with pytest.raises(TraceError, match=r"^'a\\nb': offset 0: cannot be read"):
        open_trace("a\nb")


def test_what_is_no_trace(tmp_path: Path) -> None:
    path = tmp_path / "a.pmtrace"
    path.write_bytes(b"PAR1 and so on, for long enough")
    assert refusal(path) == (0, "not a trace: begins with 5041523120616e64, expected 89504d540d0a1a0a")
    path.write_bytes(b"")
    assert refusal(path) == (0, "file ends inside the preamble, expected 20 bytes")


def test_every_truncation_and_trailing_bytes(tmp_path: Path) -> None:
    whole = small(tmp_path / "a.pmtrace").read_bytes()
    cut = tmp_path / "cut.pmtrace"
    for length in range(len(whole)):
        cut.write_bytes(whole[:length])
        offset, what = refusal(cut)
        assert offset == length, what
        assert what.startswith("file ends inside ")
    cut.write_bytes(whole + b"\0\0")
    assert refusal(cut) == (len(whole), "2 bytes follow the last block, expected the end of the file")


@pytest.mark.parametrize("level", [None, 3])
def test_every_flipped_byte_is_refused(tmp_path: Path, level: int | None) -> None:
    whole = small(tmp_path / "a.pmtrace", level).read_bytes()
    bad = tmp_path / "bad.pmtrace"
    chance = random.Random(5)
    # All of preamble, header, heads and small blocks; of the page bodies (raw) a sample.
    places = range(len(whole)) if level else sorted(chance.sample(range(len(whole)), 300))
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << chance.randrange(8)
        bad.write_bytes(damaged)
        offset, _ = refusal(bad)
        assert offset <= len(whole)
    body_bytes = int.from_bytes(whole[8:12], "little")
    for place in range(20 + body_bytes):
        for flip in (0xFF, 0x80, 1):
            damaged = bytearray(whole)
            damaged[place] ^= flip
            bad.write_bytes(damaged)
            refusal(bad)


def test_damage_is_told_where_it_is(tmp_path: Path) -> None:
    path = small(tmp_path / "a.pmtrace", level=None)
    whole = path.read_bytes()
    rows = open_trace(path).blocks[1]
    damaged = bytearray(whole)
    damaged[rows.offset + layout.BLOCK_HEAD.size + 100] ^= 4
    path.write_bytes(damaged)
    offset, what = refusal(path)
    assert offset == rows.offset
    assert what.startswith("block 1 (page bodies) has checksum ")
    assert open_trace(path).accesses().tolist() == ACCESSES.tolist()


def forged(header: dict[str, object] | bytes, *blocks: bytes) -> bytes:
    """A file with right checksums, whatever it says."""
    body = header if isinstance(header, bytes) else msgpack.packb(header)
    digest = layout._digest(len(body).to_bytes(4, "little"), body)
    return layout.PREAMBLE.pack(layout.MAGIC, len(body), digest) + body + b"".join(blocks)


def fields(**changed: object) -> dict[str, object]:
    base: dict[str, object] = {
        "schema": 1,
        "name": "x",
        "nr_pages": 5,
        "program": "",
        "program_version": "",
        "workload": "",
        "filters": [],
        "blanked_pages": 0,
        "image_at": [],
        "nr_accesses": 0,
        "nr_rows": 0,
        "nr_images": 0,
    }
    return {key: value for key, value in {**base, **changed}.items() if value is not None}


def block(kind: int, number: int, stored: bytes, raw_bytes: int, codec: int) -> bytes:
    head = struct.pack("<BBHIII", kind, codec, 0, number, len(stored), raw_bytes)
    return head + layout._digest(head, stored) + stored


def zstd(raw: bytes) -> bytes:
    return layout.zstandard.ZstdCompressor().compress(raw)


HEADER_LIES: list[tuple[dict[str, object] | bytes, str]] = [
    (fields(schema=2), "schema version 2, expected 1"),
    (fields(schema=True), "schema version True, expected 1"),
    (fields(schema=None), "schema version None, expected 1"),
    (fields(name=None), "header field 'name' is missing"),
    (fields(colour="red"), "header field 'colour' is unknown"),
    (fields(name=7), "header field name is not a text"),
    (fields(name="x" * 5000), "header field name is not a text of at most 4096"),
    (fields(filters="abc"), "header field filters is a str, expected a list"),
    (fields(filters=[1]), "header field filters holds something other than texts"),
    (fields(nr_pages=0), "header field nr_pages is 0"),
    (fields(nr_pages=-1), "header field nr_pages is -1, expected an integer from 0"),
    (fields(nr_pages=1.0), "header field nr_pages is 1.0"),
    (fields(nr_pages=True), "header field nr_pages is True"),
    (fields(nr_pages=1 << 40), "header field nr_pages is 1099511627776"),
    (fields(blanked_pages=6), "header field blanked_pages is 6, expected at most nr_pages"),
    (fields(nr_images=1, image_at=[0]), "header declares 1 images of 0 page bodies"),
    (fields(nr_images=1, nr_rows=1), "header field image_at is not 1 ascending numbers"),
    (fields(nr_images=1, nr_rows=1, image_at=[9]), "header field image_at holds something other"),
    (b"\xc1", "header is not msgpack"),
    (b"\x93\x01\x02", "header is not msgpack"),
    (b"\x91" * 60000 + b"\x01", "header is not msgpack"),
    (b"\xdf\xff\xff\xff\xff", "header is not msgpack"),
    (b"\xc7\x01\x05x", "header is not msgpack"),
    (msgpack.packb([1]), "header is a list, expected a map"),
    (msgpack.packb({1: 2}), "header is not msgpack"),
    (msgpack.packb({"schema": 1, "name": b"\xff"}), "header field"),
    (b"\x81\xa1\xff\x01", "header is not msgpack"),
]


@pytest.mark.parametrize(("header", "said"), HEADER_LIES, ids=[said for _, said in HEADER_LIES])
def test_headers_that_lie_under_a_right_checksum(
    tmp_path: Path, header: dict[str, object] | bytes, said: str
) -> None:
    path = tmp_path / "a.pmtrace"
    path.write_bytes(forged(header))
    offset, what = refusal(path)
    assert (offset, what[: len(said)]) == (20, said)


BOMB = zstd(bytes(1 << 30))
ONE = {"nr_images": 1, "nr_rows": 1, "image_at": [0]}
BODY = block(2, 0, bytes(4096), 4096, 0)
BLOCK_LIES: list[tuple[dict[str, object], list[bytes], str]] = [
    (fields(nr_accesses=1), [block(2, 0, bytes(4), 4, 0)], "block 0 has type 2, expected 1 (accesses)"),
    (fields(nr_accesses=1), [block(1, 0, bytes(4), 4, 7)], "block 0 has codec 7, expected 0 (raw) or 1"),
    (fields(nr_accesses=1), [block(1, 1, bytes(4), 4, 0)], "block says that it is number 1, expected 0"),
    (fields(nr_accesses=2), [block(1, 0, bytes(4), 4, 0)], "block 0 declares 4 raw bytes, expected 8"),
    (fields(nr_accesses=2), [block(1, 0, bytes(4), 8, 0)], "block 0 declares 4 stored bytes, expected 8"),
    (
        fields(nr_accesses=1),
        [block(1, 0, bytes(9), 4, 1)],
        "block 0 declares 9 stored bytes, expected 1 to 4",
    ),
    (
        fields(nr_accesses=1),
        [struct.pack("<BBHIII8s", 1, 0, 0, 0, 4, 4, bytes(8)) + bytes(4)],
        "block 0 (accesses) has checksum ",
    ),
    (fields(nr_accesses=1), [struct.pack("<BBHIII8s", 1, 0, 9, 0, 4, 4, bytes(8))], "block 0 has 9 in its"),
    (fields(nr_accesses=99), [block(1, 0, b"no frame", 396, 1)], "block 0 (accesses) is not one zstd frame"),
    (
        fields(nr_accesses=1 << 20),
        [block(1, 0, BOMB, 1 << 22, 1)],
        f"block 0 (accesses) holds a zstd frame of {1 << 30} bytes, expected {1 << 22}",
    ),
    (
        fields(nr_accesses=99),
        [block(1, 0, zstd(bytes(396)) + b"more", 396, 1)],
        "block 0 (accesses) is not one zstd frame",
    ),
    (
        fields(nr_accesses=2),
        [block(1, 0, struct.pack("<II", 9, 10), 8, 0)],
        "block 0 (accesses) names page 5 in entry 1, expected 0 to 4",
    ),
    (
        fields(**ONE),
        [BODY, block(3, 1, struct.pack("<5i", 0, 0, 1, 0, 0), 20, 0)],
        "block 1 (images) names row 1 in entry 2, expected 0 to 0",
    ),
    (
        fields(**ONE),
        [BODY, block(3, 1, struct.pack("<5i", 0, 0, 0, 0, -1), 20, 0)],
        "block 1 (images) names row -1 in entry 4, expected 0 to 0",
    ),
]


@pytest.mark.parametrize(("header", "blocks", "said"), BLOCK_LIES, ids=[said for *_, said in BLOCK_LIES])
def test_blocks_that_lie_under_a_right_checksum(
    tmp_path: Path, header: dict[str, object], blocks: list[bytes], said: str
) -> None:
    path = tmp_path / "a.pmtrace"
    path.write_bytes(forged(header, *blocks))
    offset, what = refusal(path)
    assert what[: len(said)] == said
    assert offset >= len(forged(header))


def test_declared_sizes_do_not_allocate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, real = tmp_path / "a.pmtrace", small(tmp_path / "real.pmtrace")

    def never(*shape: object) -> np.ndarray:
        raise AssertionError(f"allocates {shape}")

    monkeypatch.setattr(np, "empty", never)
    path.write_bytes(forged(fields(nr_accesses=1 << 30, nr_images=9, nr_rows=1 << 20, image_at=[0] * 9)))
    assert refusal(path)[1] == (
        f"header declares {(1 << 32) + (1 << 32) + 180} bytes of arrays, over the limit of {1 << 32}"
    )
    path.write_bytes(forged(fields(nr_accesses=1 << 30)))
    assert refusal(path)[1] == "file ends inside the head of block 0, expected 24 bytes"
    with pytest.raises(TraceError, match=r"over the limit of 1000$"):
        open_trace(real, max_bytes=1000)


def test_a_file_that_changes_while_it_is_open(tmp_path: Path) -> None:
    path = small(tmp_path / "a.pmtrace")
    trace = open_trace(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: trace.blocks[2].offset])
    with pytest.raises(TraceError, match=r"file ends inside block 2 \(images\)"):
        trace.images()
