"""Foreign traces to `.pmtrace`: libCacheSim's oracleGeneral (binary, plain or zstd) and CSV.

Such traces name objects or addresses and hold no contents, so the result has accesses and no images: a
configuration that replays it takes its page contents from a generator. Each object becomes one page, and
each distinct page number of a CSV too; they are renumbered densely in order of first appearance. What is
left out: times, object sizes.

oracleGeneral is a sequence of 24-byte records, little endian, without padding: uint32 time in seconds,
uint64 object id, uint32 object size, int64 number of the next request for the object (-1: none; -2: not
known).
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import zstandard

from privmem.cluster.errors import TraceError
from privmem.cluster.traces import TraceHeader, opened, shown, write_trace
from privmem.cluster.traces_layout import ACCESSES_MAX, PAGE_BYTES, PAGES_MAX

ORACLE_GENERAL = np.dtype([("time", "<u4"), ("object", "<u8"), ("size", "<u4"), ("next", "<i8")])
_RECORDS_AT_ONCE = 1 << 16
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
#: The window that `zstd --ultra -22` needs; a file that asks for more is refused.
_ZSTD_WINDOW_MAX = 1 << 27
#: Small, since the decompressor gives all that a piece becomes, and that may be 30 000 times as much.
_ZSTD_BYTES_AT_ONCE = 1 << 10

LINE_BYTES_MAX = 1 << 16
_READS = frozenset({"r", "read", "l", "load", "get", "0"})
_WRITES = frozenset({"w", "write", "s", "store", "set", "put", "m", "modify", "1"})

_Path = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class CsvColumns:
    """Where a CSV says what. A column is a number from 1, or a name that the first line holds."""

    #: Exactly one of both: a page number, or a byte address of which the page is taken.
    page: int | str | None = None
    address: int | str | None = None
    #: r/w, read/write, load/store, get/set or 0/1 in any case; without this column all accesses are reads.
    operation: int | str | None = None
    delimiter: str = ","
    #: The first line holds names, also when all columns are given by number.
    names: bool = False

    def __post_init__(self) -> None:
        if (self.page is None) == (self.address is None):
            raise ValueError("give either the column of the page or that of the address")
        for column in (self.page, self.address, self.operation):
            if isinstance(column, int) and column < 1:
                raise ValueError(f"column {column}: columns are counted from 1")
        if len(self.delimiter) != 1 or self.delimiter in '\r\n"':
            raise ValueError(f"delimiter {self.delimiter!r} is not one character")


def import_oracle_general(
    source: _Path, target: _Path, name: str = "", limit: int = ACCESSES_MAX
) -> TraceHeader:
    """Import at most `limit` records; every access is a read, since the format does not tell. Raises TraceError."""
    path = os.fspath(source)
    numbering = _Numbering(path)
    with opened(path) as file:
        stream = _Stream(file, path)
        at = 0
        while numbering.nr_accesses < limit:
            text = stream.read(_RECORDS_AT_ONCE * ORACLE_GENERAL.itemsize)
            whole = len(text) // ORACLE_GENERAL.itemsize
            if whole * ORACLE_GENERAL.itemsize < len(text):
                end = at + len(text)
                raise TraceError(f"{shown(path)}: offset {end}: file ends inside a record of 24 bytes")
            if not whole:
                break
            records = np.frombuffer(text, ORACLE_GENERAL)[: limit - numbering.nr_accesses]
            odd = np.flatnonzero(records["next"] < -2)
            if len(odd):
                offset, found = at + int(odd[0]) * 24 + 16, int(records["next"][odd[0]])
                raise TraceError(f"{shown(path)}: offset {offset}: next access {found}, expected -2 or more")
            numbering.add(records["object"], np.zeros(len(records), np.bool_), f"offset {at}")
            at += len(text)
    workload = "imported from oracleGeneral: an object is a page, every access a read"
    return numbering.write(target, name or Path(path).stem, workload)


def import_csv(
    source: _Path, target: _Path, columns: CsvColumns, name: str = "", limit: int = ACCESSES_MAX
) -> TraceHeader:
    """Import at most `limit` lines. Raises TraceError, which names the line."""
    path = os.fspath(source)
    numbering = _Numbering(path)
    with opened(path) as file:
        rows = csv.reader(_lines(file, path), delimiter=columns.delimiter, strict=True)
        try:
            for pages, writes in _batches(rows, columns, path, limit):
                numbering.add(pages, writes, f"line {rows.line_num}")
        except csv.Error as error:
            raise TraceError(f"{shown(path)}: line {rows.line_num}: {error}") from error
    return numbering.write(target, name or Path(path).stem, "imported from CSV")


class _Numbering:
    """Gives objects dense page numbers, in order of first appearance, and collects the accesses."""

    def __init__(self, path: str) -> None:
        self.nr_accesses = 0
        self._path = path
        self._page_of: dict[int, int] = {}
        self._accesses: list[np.ndarray] = []

    def add(self, objects: np.ndarray, writes: np.ndarray, where: str) -> None:
        """Take over accesses; `where` is for a message."""
        distinct, first, which = np.unique(objects, return_index=True, return_inverse=True)
        dense = np.empty(len(distinct), np.uint32)
        for position in np.argsort(first):
            dense[position] = self._page_of.setdefault(int(distinct[position]), len(self._page_of))
        if len(self._page_of) > PAGES_MAX:
            raise TraceError(f"{shown(self._path)}: {where}: more than {PAGES_MAX} distinct pages")
        self._accesses.append((dense[which] << np.uint32(1)) | writes)
        self.nr_accesses += len(objects)
        if self.nr_accesses > ACCESSES_MAX:
            raise TraceError(f"{shown(self._path)}: {where}: more than {ACCESSES_MAX} accesses")

    def write(self, target: _Path, name: str, workload: str) -> TraceHeader:
        """The trace file."""
        if not self.nr_accesses:
            raise TraceError(f"{shown(self._path)}: offset 0: holds no access, expected at least one")
        header = TraceHeader(
            name, len(self._page_of), workload=workload, filters=("pages numbered by first access",)
        )
        return write_trace(target, header, np.concatenate(self._accesses))


class _Stream:
    """The bytes of a file, or what it decompresses to when it begins as a zstd frame does."""

    def __init__(self, file: IO[bytes], path: str) -> None:
        self._file, self._path = file, path
        self._packed = file.read(len(_ZSTD_MAGIC)) == _ZSTD_MAGIC
        file.seek(0)
        self._frame: Any = None
        self._ready = b""
        self._at = 0

    def read(self, nr_bytes: int) -> bytes:
        """That many bytes, or fewer at the end of the file."""
        if not self._packed:
            return self._file.read(nr_bytes)
        pieces, length = [self._ready], len(self._ready)
        while length < nr_bytes and (piece := self._file.read(_ZSTD_BYTES_AT_ONCE)):
            pieces.append(self._unpack(piece))
            length += len(pieces[-1])
        if length < nr_bytes and self._frame is not None:
            raise self._error("file ends inside a zstd frame")
        joined = b"".join(pieces)
        self._ready = joined[nr_bytes:]
        self._at += len(joined) - len(self._ready)
        return joined[:nr_bytes]

    def _unpack(self, piece: bytes) -> bytes:
        unpacked = b""
        try:
            while piece:
                if self._frame is None:
                    self._frame = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_MAX).decompressobj()
                unpacked += self._frame.decompress(piece)
                piece = self._frame.unused_data if self._frame.eof else b""
                if self._frame.eof:
                    self._frame = None
        except zstandard.ZstdError as error:
            raise self._error(f"cannot be decompressed: {error}") from error
        return unpacked

    def _error(self, what: str) -> TraceError:
        return TraceError(f"{shown(self._path)}: offset {self._at} of the decompressed text: {what}")


def _lines(file: IO[bytes], path: str) -> Iterator[str]:
    """Lines of a text of unknown origin, none longer than the limit."""
    number = 0
    while line := file.readline(LINE_BYTES_MAX + 1):
        number += 1
        if len(line) > LINE_BYTES_MAX:
            raise TraceError(f"{shown(path)}: line {number}: longer than {LINE_BYTES_MAX} bytes")
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            raise TraceError(f"{shown(path)}: line {number}: is not UTF-8 text") from None


def _batches(
    rows: Any, columns: CsvColumns, path: str, limit: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pages (uint64) and writes (bool) of the lines, some thousands at once."""
    read_row: Callable[[list[str]], tuple[int, bool]] | None = None
    pages: list[int] = []
    writes: list[bool] = []
    wanted = (columns.page, columns.address, columns.operation)
    named = columns.names or any(isinstance(column, str) for column in wanted)
    nr_rows = 0
    for row in rows:
        try:
            if read_row is None:
                read_row = _row_reader(columns, row if named else [])
                if named:
                    continue
            if not row:
                continue
            if nr_rows == limit:
                break
            page, write = read_row(row)
        except ValueError as error:
            raise TraceError(f"{shown(path)}: line {rows.line_num}: {error}") from None
        nr_rows += 1
        pages.append(page)
        writes.append(write)
        if len(pages) == _RECORDS_AT_ONCE:
            yield np.array(pages, np.uint64), np.array(writes, np.bool_)
            pages, writes = [], []
    if pages:
        yield np.array(pages, np.uint64), np.array(writes, np.bool_)


def _row_reader(columns: CsvColumns, names: list[str]) -> Callable[[list[str]], tuple[int, bool]]:
    """A function from a row to (page, is a write), which raises ValueError. `names` is the first line or empty."""

    def index(column: int | str | None) -> int | None:
        if not isinstance(column, str):
            return None if column is None else column - 1
        stripped = [name.strip() for name in names]
        if column not in stripped:
            raise ValueError(
                f"no column {column!r}, the first line names {', '.join(map(repr, stripped))[:200]}"
            )
        return stripped.index(column)

    page_at, address_at, operation_at = index(columns.page), index(columns.address), index(columns.operation)
    divisor = 1 if address_at is None else PAGE_BYTES
    number_at = page_at if page_at is not None else address_at
    assert number_at is not None
    last = max(number_at, operation_at or 0)

    def read_row(row: list[str]) -> tuple[int, bool]:
        if len(row) <= last:
            raise ValueError(f"has {len(row)} columns, expected at least {last + 1}")
        number = _number(row[number_at]) // divisor
        return number, operation_at is not None and _is_write(row[operation_at])

    return read_row


def _number(text: str) -> int:
    text = text.strip()
    digits = text[2:] if text[:2].lower() == "0x" else text
    if not (digits.isascii() and digits.isalnum()) or len(digits) > 20:
        raise ValueError(f"{text[:40]!r} is no number, expected decimal or 0x... below 2^64")
    try:
        number = int(digits, 16 if digits is not text else 10)
    except ValueError:
        raise ValueError(f"{text!r} is no number, expected decimal or 0x... below 2^64") from None
    if number >= 1 << 64:
        raise ValueError(f"{text} is too large, expected a number below 2^64")
    return number


def _is_write(text: str) -> bool:
    word = text.strip().lower()
    if word in _WRITES:
        return True
    if word in _READS:
        return False
    raise ValueError(
        f"{text[:40]!r} is no operation, expected r or w (or read/write, load/store, get/set, 0/1)"
    )
