"""Recordings of real programs (`.pmtrace`): page accesses and page contents in one file.

A trace is a stream of accesses to pages 0..nr_pages-1, packed as uint32 `page << 1 | is_write`, and images
of all pages at several instants of the same run. Each distinct page body is stored once, as a row; an image
is a table of rows, so a page that did not change between two images costs nothing. `docs/trace-format.md`
has the bytes.

The reader treats a file as hostile. It checks that all parts together are as long as the header says, and
under the caller's limit, before it allocates; it decompresses a block only after its checksum; and whatever
is wrong ends in one TraceError that names the file and the offset.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TypeAlias

import numpy as np

from privmem.cluster import traces_layout as layout
from privmem.cluster.errors import TraceError
from privmem.cluster.traces_layout import PAGE_BYTES, BlockHead, TraceHeader

__all__ = [
    "PAGE_BYTES",
    "PageImages",
    "Trace",
    "TraceHeader",
    "distinct_rows",
    "open_trace",
    "read_header",
    "write_trace",
]

#: Bytes of arrays that one trace may become in memory, unless the caller says otherwise.
ARRAY_BYTES_MAX = 1 << 32
ZSTD_LEVEL = 19

#: Page bodies uint8[nr_rows, 4096], each once, and int32[nr_images, nr_pages]: the row of each page in each image.
PageImages: TypeAlias = tuple[np.ndarray, np.ndarray]


def distinct_rows(images: list[np.ndarray]) -> PageImages:
    """Page images (each uint8[nr_pages, 4096]) as rows and table.

    Rows stand in the order of pages, so that the bodies of one page are neighbours: they differ little, and
    compress the better for it (in one recording to 5.0 MB where the order of images gave 7.9 MB).
    """
    row_of: dict[bytes, int] = {}
    table = np.empty((len(images), len(images[0]) if images else 0), np.int32)
    for page in range(table.shape[1]):
        for number, image in enumerate(images):
            table[number, page] = row_of.setdefault(image[page].tobytes(), len(row_of))
    rows = np.frombuffer(b"".join(row_of), np.uint8).reshape(-1, PAGE_BYTES)
    return rows, table


def write_trace(
    path: str | os.PathLike[str],
    header: TraceHeader,
    accesses: np.ndarray,
    images: PageImages | None = None,
    level: int | None = ZSTD_LEVEL,
) -> TraceHeader:
    """Write a trace and return its header with the counts filled in; `level` None stores without compression.

    The file appears whole or not at all. Raises ValueError for arrays that are no trace.
    """
    accesses = np.ascontiguousarray(accesses, "<u4")
    rows, table = images if images is not None else distinct_rows([])
    header = replace(header, nr_accesses=len(accesses), nr_rows=len(rows), nr_images=len(table))
    opening = layout.pack_header(header)
    _check_arrays(header, accesses, rows, table)
    target = Path(path)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with part.open("xb") as file:
            file.write(opening)
            for number, (kind, raw) in enumerate(_blocks(header, accesses, rows, table)):
                file.write(layout.pack_block(kind, number, raw, level))
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return header


def _check_arrays(header: TraceHeader, accesses: np.ndarray, rows: np.ndarray, table: np.ndarray) -> None:
    if accesses.ndim != 1 or (len(accesses) and int(accesses.max() >> 1) >= header.nr_pages):
        raise ValueError(f"accesses are not a flat array of pages below {header.nr_pages}")
    if rows.shape != (header.nr_rows, PAGE_BYTES) or rows.dtype != np.uint8:
        raise ValueError(f"page bodies are {rows.dtype}{rows.shape}, expected uint8[n, {PAGE_BYTES}]")
    if header.nr_images == 0:
        return
    if table.shape != (header.nr_images, header.nr_pages) or table.dtype != np.int32:
        raise ValueError(f"image table is {table.dtype}{table.shape}, expected int32[n, {header.nr_pages}]")
    if int(table.min()) < 0 or int(table.max()) >= header.nr_rows:
        raise ValueError(f"image table names a row outside 0..{header.nr_rows - 1}")


def _blocks(
    header: TraceHeader, accesses: np.ndarray, rows: np.ndarray, table: np.ndarray
) -> Iterator[tuple[int, bytes]]:
    """Type and raw bytes of each block, in the order of the file."""
    images = table.astype("<i4")
    images[1:][table[1:] == table[:-1]] = layout.UNCHANGED
    sections = {layout.ACCESSES: accesses, layout.ROWS: np.ascontiguousarray(rows), layout.IMAGES: images}
    done = dict.fromkeys(sections, 0)
    for kind, length in layout.block_plan(header):
        flat = sections[kind].reshape(-1).view(np.uint8)
        yield kind, flat[done[kind] : done[kind] + length].tobytes()
        done[kind] += length


@dataclass(frozen=True, slots=True)
class Trace:
    """An open trace: all parts are there and have the right length; checksums are checked when a part is read."""

    path: str
    header: TraceHeader
    blocks: tuple[BlockHead, ...]

    def accesses(self) -> np.ndarray:
        """All accesses: uint32 `page << 1 | is_write`, read-only. Raises TraceError."""
        with opened(self.path) as file:
            accesses = self._section(file, layout.ACCESSES).view("<u4")
            self._check(
                accesses >> 1 < self.header.nr_pages, layout.ACCESSES, accesses >> 1, "page", "nr_pages"
            )
        return _sealed(accesses.astype(np.uint32, copy=False))

    def images(self) -> PageImages:
        """Page bodies uint8[nr_rows, 4096] and table int32[nr_images, nr_pages]; read-only. Raises TraceError."""
        header = self.header
        with opened(self.path) as file:
            rows = self._section(file, layout.ROWS).reshape(header.nr_rows, PAGE_BYTES)
            stored = self._section(file, layout.IMAGES).view("<i4")
            known = (stored >= 0) & (stored < header.nr_rows)
            known[header.nr_pages :] |= stored[header.nr_pages :] == layout.UNCHANGED
            self._check(known, layout.IMAGES, stored, "row", "nr_rows")
        table = stored.reshape(header.nr_images, header.nr_pages).astype(np.int32)
        for image in range(1, header.nr_images):
            same = table[image] == layout.UNCHANGED
            table[image, same] = table[image - 1, same]
        return _sealed(rows), _sealed(table)

    def _section(self, file: IO[bytes], kind: int) -> np.ndarray:
        """The raw bytes of all blocks of one type, joined."""
        blocks = [block for block in self.blocks if block.kind == kind]
        joined = np.empty(sum(block.raw_bytes for block in blocks), np.uint8)
        done = 0
        for block in blocks:
            file.seek(block.offset + layout.BLOCK_HEAD.size)
            raw = layout.unpack_block(block, file.read(block.stored_bytes))
            joined[done : done + len(raw)] = np.frombuffer(raw, np.uint8)
            done += len(raw)
        return joined

    def _check(self, good: np.ndarray, kind: int, numbers: np.ndarray, noun: str, bound: str) -> None:
        """Raise Damage at the block that holds the first number that is not good."""
        if good.all():
            return
        item = int(np.argmin(good))
        first = next(block.number for block in self.blocks if block.kind == kind)
        block = self.blocks[first + item * 4 // layout.BLOCK_BYTES_MAX]
        most = getattr(self.header, bound) - 1
        what = f"{block.name} names {noun} {int(numbers[item])} in entry {item}, expected 0 to {most}"
        raise layout.Damage(block.offset, what)


def open_trace(path: str | os.PathLike[str], max_bytes: int = ARRAY_BYTES_MAX) -> Trace:
    """Check a trace's header and the heads and lengths of all its blocks. Raises TraceError.

    A trace whose arrays would take more than `max_bytes` is refused before anything is allocated.
    """
    name = os.fspath(path)
    with opened(name) as file:
        header = _header(file)
        needed = layout.array_bytes(header)
        if needed > max_bytes:
            what = f"header declares {needed} bytes of arrays, over the limit of {max_bytes}"
            raise layout.Damage(layout.PREAMBLE.size, what)
        file_bytes = os.fstat(file.fileno()).st_size
        at = file.tell()
        blocks: list[BlockHead] = []
        for number, (kind, raw_bytes) in enumerate(layout.block_plan(header)):
            file.seek(at)
            block = layout.parse_block_head(file.read(layout.BLOCK_HEAD.size), at, number, kind, raw_bytes)
            at += layout.BLOCK_HEAD.size + block.stored_bytes
            if at > file_bytes:
                raise layout.Damage(
                    file_bytes, f"file ends inside {block.name}, expected it to reach offset {at}"
                )
            blocks.append(block)
        if at != file_bytes:
            raise layout.Damage(
                at, f"{file_bytes - at} bytes follow the last block, expected the end of the file"
            )
    return Trace(name, header, tuple(blocks))


def read_header(path: str | os.PathLike[str]) -> TraceHeader:
    """The header alone. Raises TraceError."""
    with opened(os.fspath(path)) as file:
        return _header(file)


def _header(file: IO[bytes]) -> TraceHeader:
    length, digest = layout.parse_preamble(file.read(layout.PREAMBLE.size))
    body = file.read(length)
    if len(body) < length:
        end = layout.PREAMBLE.size + len(body)
        raise layout.Damage(end, f"file ends inside the header, expected {length} bytes of header")
    return layout.parse_header(body, digest)


@contextmanager
def opened(path: str) -> Iterator[IO[bytes]]:
    """Open a trace; whatever is wrong with it becomes a TraceError of one line."""
    try:
        # Non-blocking, so that a FIFO under the name is refused and not waited for.
        if "\0" in path:
            raise layout.Damage(0, "cannot be read: a file's name holds no zero byte")
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise layout.Damage(0, "not a regular file, expected a trace")
        with os.fdopen(descriptor, "rb") as file:
            yield file
    except layout.Damage as damage:
        raise TraceError(f"{shown(path)}: offset {damage.offset}: {damage.what}") from None
    except OSError as error:
        raise TraceError(f"{shown(path)}: offset 0: cannot be read: {error.strerror}") from None


def shown(path: str) -> str:
    """A file's name on one line, whatever characters it has."""
    return path if path.isprintable() else ascii(path)


def _sealed(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array
