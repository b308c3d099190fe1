"""Byte layout of a `.pmtrace` file: preamble, header, blocks; `docs/trace-format.md` says the same in words.

Here are the limits, the packing and the strict parsing of single parts; `traces.py` puts them in order and
does the I/O. Nothing here executes or unpickles anything, and no parser allocates more than what it was
told to expect.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, fields
from typing import Any

import msgpack
import zstandard

#: As PNG's signature: a byte outside ASCII, CR LF, ctrl-Z and LF show a transfer in text mode at once.
MAGIC = b"\x89PMT\r\n\x1a\n"
SCHEMA_VERSION = 1
PAGE_BYTES = 4096

#: magic, length of the header, digest of length and header.
PREAMBLE = struct.Struct("<8sI8s")
#: type, codec, zero, number of the block, stored length, raw length, digest of all these and the stored bytes.
BLOCK_HEAD = struct.Struct("<BBHIII8s")
_DIGESTED = struct.Struct("<BBHIII")

ACCESSES = 1
ROWS = 2
IMAGES = 3
BLOCK_NAMES = {ACCESSES: "accesses", ROWS: "page bodies", IMAGES: "images"}
#: In the images: this page is as in the image before.
UNCHANGED = -1

RAW = 0
ZSTD = 1
CODEC_NAMES = {RAW: "raw", ZSTD: "zstd"}

HEADER_BYTES_MAX = 1 << 16
TEXT_MAX = 4096  # characters of one text in the header
LIST_MAX = 1024  # items of one list in the header
#: Raw bytes of one block: what a reader holds at once, beside the arrays that it gives back.
BLOCK_BYTES_MAX = 1 << 22

PAGES_MAX = 1 << 24  # 64 GiB of emulated memory
ACCESSES_MAX = 1 << 30
IMAGES_MAX = 1 << 12
ROWS_MAX = 1 << 20


class Damage(Exception):
    """What is wrong at which byte; `traces.py` adds the file's name and raises TraceError."""

    def __init__(self, offset: int, what: str) -> None:
        super().__init__(what)
        self.offset = offset
        self.what = what


@dataclass(frozen=True, slots=True)
class TraceHeader:
    """What a trace says of itself. A writer fills in the four counts from the arrays; a reader has checked them."""

    name: str
    nr_pages: int
    #: What was recorded, or where the trace was imported from.
    program: str = ""
    program_version: str = ""
    workload: str = ""
    #: What was done to the stream between the program and this file, in the order in which it was done.
    filters: tuple[str, ...] = ()
    #: Pages that hold zeros in every image because what they held must not travel.
    blanked_pages: int = 0
    #: For each image, how many of the accesses came before it.
    image_at: tuple[int, ...] = ()
    nr_accesses: int = 0
    nr_rows: int = 0
    nr_images: int = 0


_TEXTS = ("name", "program", "program_version", "workload")
_COUNTS = {
    "nr_pages": PAGES_MAX,
    "blanked_pages": PAGES_MAX,
    "nr_accesses": ACCESSES_MAX,
    "nr_rows": ROWS_MAX,
    "nr_images": IMAGES_MAX,
}


def header_problem(header: TraceHeader) -> str | None:
    """The first thing that no header may say, or None."""
    for name in _TEXTS:
        text = getattr(header, name)
        if not isinstance(text, str) or len(text) > TEXT_MAX:
            return f"header field {name} is not a text of at most {TEXT_MAX} characters"
    if not all(isinstance(text, str) and len(text) <= TEXT_MAX for text in header.filters):
        return f"header field filters holds something other than texts of at most {TEXT_MAX} characters"
    for name, most in _COUNTS.items():
        count = getattr(header, name)
        if type(count) is not int or not 0 <= count <= most:
            return f"header field {name} is {count!r}, expected an integer from 0 to {most}"
    if header.nr_pages == 0:
        return "header field nr_pages is 0, expected at least one page"
    if header.blanked_pages > header.nr_pages:
        return f"header field blanked_pages is {header.blanked_pages}, expected at most nr_pages"
    if (header.nr_images == 0) != (header.nr_rows == 0):
        return f"header declares {header.nr_images} images of {header.nr_rows} page bodies, expected none or both"
    return _image_at_problem(header)


def _image_at_problem(header: TraceHeader) -> str | None:
    at = header.image_at
    if not all(type(count) is int and 0 <= count <= header.nr_accesses for count in at):
        return "header field image_at holds something other than numbers from 0 to nr_accesses"
    if len(at) != header.nr_images or list(at) != sorted(at):
        return f"header field image_at is not {header.nr_images} ascending numbers, one for each image"
    return None


def pack_header(header: TraceHeader) -> bytes:
    """Preamble and header as they open a file. Raises ValueError for what no header may say."""
    problem = header_problem(header)
    if problem is not None:
        raise ValueError(problem)
    values: dict[str, Any] = {"schema": SCHEMA_VERSION}
    for field in fields(header):
        value = getattr(header, field.name)
        values[field.name] = list(value) if isinstance(value, tuple) else value
    body: bytes = msgpack.packb(values)
    if len(body) > HEADER_BYTES_MAX:
        raise ValueError(f"a header of {len(body)} bytes is over the limit of {HEADER_BYTES_MAX}")
    return PREAMBLE.pack(MAGIC, len(body), _preamble_digest(body)) + body


def parse_preamble(head: bytes) -> tuple[int, bytes]:
    """Length and digest of the header. Raises Damage."""
    if not head.startswith(MAGIC[: len(head)]):
        raise Damage(0, f"not a trace: begins with {head[:8].hex()}, expected {MAGIC.hex()}")
    if len(head) < PREAMBLE.size:
        raise Damage(len(head), f"file ends inside the preamble, expected {PREAMBLE.size} bytes")
    _, length, digest = PREAMBLE.unpack(head)
    if not 0 < length <= HEADER_BYTES_MAX:
        raise Damage(8, f"header length {length}, expected 1 to {HEADER_BYTES_MAX}")
    return length, digest


def parse_header(body: bytes, digest: bytes) -> TraceHeader:
    """The header of a file. Raises Damage."""
    at = PREAMBLE.size
    found = _preamble_digest(body)
    if found != digest:
        raise Damage(12, f"header has checksum {found.hex()}, expected {digest.hex()}")
    try:
        values = msgpack.unpackb(
            body,
            raw=False,
            strict_map_key=True,
            max_map_len=64,
            max_array_len=LIST_MAX + IMAGES_MAX,
            max_ext_len=0,
        )
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise Damage(at, f"header is not msgpack: {type(error).__name__}, expected one map") from error
    if not isinstance(values, dict):
        raise Damage(at, f"header is a {type(values).__name__}, expected a map")
    schema = values.pop("schema", None)
    if type(schema) is not int or schema != SCHEMA_VERSION:
        raise Damage(at, f"schema version {schema!r}, expected {SCHEMA_VERSION}")
    names = {field.name for field in fields(TraceHeader)}
    if set(values) != names:
        odd = min(set(values) ^ names, key=str)
        raise Damage(at, f"header field {odd!r} is {'unknown' if odd in values else 'missing'}")
    for name in ("filters", "image_at"):
        if not isinstance(values[name], list):
            raise Damage(at, f"header field {name} is a {type(values[name]).__name__}, expected a list")
        values[name] = tuple(values[name])
    header = TraceHeader(**values)
    problem = header_problem(header)
    if problem is not None:
        raise Damage(at, problem)
    return header


@dataclass(frozen=True, slots=True)
class BlockHead:
    """The 24 bytes before a block's stored bytes."""

    offset: int  # of this head in the file
    kind: int
    codec: int
    number: int
    stored_bytes: int
    raw_bytes: int
    digest: bytes

    @property
    def name(self) -> str:
        """The block in words, for messages."""
        return f"block {self.number} ({BLOCK_NAMES[self.kind]})"


def pack_block(kind: int, number: int, raw: bytes, level: int | None) -> bytes:
    """One block, head included; `level` None stores raw, and so does a level that gains nothing."""
    if not 0 < len(raw) <= BLOCK_BYTES_MAX:
        raise ValueError(f"a block of {len(raw)} bytes, expected 1 to {BLOCK_BYTES_MAX}")
    codec, stored = RAW, raw
    if level is not None:
        packed = zstandard.ZstdCompressor(level=level, write_content_size=True).compress(raw)
        if len(packed) < len(raw):
            codec, stored = ZSTD, packed
    head = _DIGESTED.pack(kind, codec, 0, number, len(stored), len(raw))
    return head + _digest(head, stored) + stored


def block_plan(header: TraceHeader) -> list[tuple[int, int]]:
    """Type and raw length of every block that follows this header: the header alone decides them."""
    totals = (
        (ACCESSES, header.nr_accesses * 4),
        (ROWS, header.nr_rows * PAGE_BYTES),
        (IMAGES, header.nr_images * header.nr_pages * 4),
    )
    plan: list[tuple[int, int]] = []
    for kind, total in totals:
        full, rest = divmod(total, BLOCK_BYTES_MAX)
        plan += [(kind, BLOCK_BYTES_MAX)] * full + ([(kind, rest)] if rest else [])
    return plan


def array_bytes(header: TraceHeader) -> int:
    """What the arrays of this header take in memory."""
    return header.nr_accesses * 4 + header.nr_rows * PAGE_BYTES + header.nr_images * header.nr_pages * 4


def parse_block_head(head: bytes, offset: int, number: int, kind: int, raw_bytes: int) -> BlockHead:
    """Check the head of block `number` against what the header says must stand here. Raises Damage."""
    if len(head) < BLOCK_HEAD.size:
        raise Damage(
            offset + len(head),
            f"file ends inside the head of block {number}, expected {BLOCK_HEAD.size} bytes",
        )
    found, codec, zero, stated, stored_bytes, raw_found, digest = BLOCK_HEAD.unpack(head)
    if found != kind:
        raise Damage(offset, f"block {number} has type {found}, expected {kind} ({BLOCK_NAMES[kind]})")
    if codec not in CODEC_NAMES:
        raise Damage(offset + 1, f"block {number} has codec {codec}, expected 0 (raw) or 1 (zstd)")
    if zero != 0:
        raise Damage(offset + 2, f"block {number} has {zero} in its reserved field, expected 0")
    if stated != number:
        raise Damage(offset + 4, f"block says that it is number {stated}, expected {number}")
    if raw_found != raw_bytes:
        raise Damage(offset + 12, f"block {number} declares {raw_found} raw bytes, expected {raw_bytes}")
    if stored_bytes == 0 or stored_bytes > raw_bytes or (codec == RAW and stored_bytes != raw_bytes):
        wanted = f"{raw_bytes}" if codec == RAW else f"1 to {raw_bytes}"
        raise Damage(offset + 8, f"block {number} declares {stored_bytes} stored bytes, expected {wanted}")
    return BlockHead(offset, kind, codec, number, stored_bytes, raw_bytes, digest)


def unpack_block(block: BlockHead, stored: bytes) -> bytes:
    """The raw bytes of a block. Raises Damage; decompresses only what has the right checksum and length."""
    at = block.offset + BLOCK_HEAD.size
    if len(stored) < block.stored_bytes:
        raise Damage(at + len(stored), f"file ends inside {block.name}, expected {block.stored_bytes} bytes")
    head = _DIGESTED.pack(block.kind, block.codec, 0, block.number, block.stored_bytes, block.raw_bytes)
    found = _digest(head, stored)
    if found != block.digest:
        raise Damage(block.offset, f"{block.name} has checksum {found.hex()}, expected {block.digest.hex()}")
    if block.codec == RAW:
        return stored
    try:
        # The frame's own length must be checked first: the decompressor trusts it above max_output_size.
        frame_bytes = zstandard.get_frame_parameters(stored).content_size
        if frame_bytes != block.raw_bytes:
            raise Damage(
                at, f"{block.name} holds a zstd frame of {frame_bytes} bytes, expected {block.raw_bytes}"
            )
        raw: bytes = zstandard.ZstdDecompressor().decompress(
            stored, max_output_size=block.raw_bytes, allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise Damage(at, f"{block.name} is not one zstd frame: {error}") from error
    if len(raw) != block.raw_bytes:
        raise Damage(at, f"{block.name} decompresses to {len(raw)} bytes, expected {block.raw_bytes}")
    return raw


def _preamble_digest(body: bytes) -> bytes:
    return _digest(len(body).to_bytes(4, "little"), body)


def _digest(head: bytes, stored: bytes) -> bytes:
    running = hashlib.blake2b(head, digest_size=8)
    running.update(stored)
    return running.digest()
