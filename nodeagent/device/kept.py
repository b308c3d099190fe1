"""Pages whose bytes a device keeps: where the bytes are, and whether they come back as they were.

A compressed store has them in the granules of the page's chain, compressed; of a same-filled page it knows the one
word, as Linux's zram does. An uncompressed store has them as they are. Either way the checksum of the page is kept
apart, and what is read is held against it.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

from privmem.nodeagent.device.compression import CompressionEngine
from privmem.nodeagent.device.granules import Granules
from privmem.scheduler.abi import PAGE_SIZE
from privmem.scheduler.errors import InvariantError


def checksums(pages: np.ndarray) -> np.ndarray:
    """CRC-32 of each page, uint32."""
    raw, crc32 = np.ascontiguousarray(pages).reshape(-1).data, zlib.crc32
    ends = range(PAGE_SIZE, len(raw) + 1, PAGE_SIZE)
    return np.array([crc32(raw[end - PAGE_SIZE : end]) for end in ends], dtype=np.uint32)


class RawPages:
    """Bytes kept as they are."""

    def __init__(self, capacity_pages: int) -> None:
        self.crc = np.zeros(capacity_pages, dtype=np.uint32)
        self._raw: dict[int, bytes] = {}

    def keep(self, dpa: np.ndarray, pages: np.ndarray) -> None:
        """Pages uint8[n, 4096] of these numbers."""
        self.crc[dpa] = checksums(pages)
        for at, page in zip(dpa.tolist(), pages, strict=True):
            self._raw[at] = page.tobytes()

    def read(self, dpa: np.ndarray) -> np.ndarray:
        """The bytes of kept pages, checked."""
        raw = b"".join([self._raw[at] for at in dpa.tolist()])
        return checked(dpa, self.crc[dpa], np.frombuffer(raw, dtype=np.uint8).reshape(-1, PAGE_SIZE))

    def forget(self, dpa: np.ndarray) -> None:
        """These pages are free."""
        for at in dpa.tolist():
            del self._raw[at]

    def snapshot(self, dpa: np.ndarray) -> list[Any]:
        """All that is kept: the pages of these numbers."""
        raw = b"".join([self._raw[at] for at in dpa.tolist()])
        return [self.crc[dpa], np.frombuffer(raw, dtype=np.uint8)]

    def restore(self, dpa: np.ndarray, rows: list[Any]) -> None:
        """Inverse of `snapshot`."""
        self._raw = {}
        if rows:
            self.keep(dpa, rows[1].reshape(-1, PAGE_SIZE))
            self.crc[dpa] = rows[0]


class CompressedPages:
    """Bytes kept compressed. Arrays with an entry a page, zero pages of this machine until they are used:

    crc      uint32           checksum of the page
    lengths  uint16 [blocks]  stored bytes of each block, 0 all for a same-filled page
    word     uint64           of a same-filled page
    """

    def __init__(self, capacity_pages: int, engine: CompressionEngine, granules: Granules) -> None:
        self.engine, self.granules = engine, granules
        self.crc = np.zeros(capacity_pages, dtype=np.uint32)
        self.lengths = np.zeros((capacity_pages, PAGE_SIZE // engine.block_bytes), dtype=np.uint16)
        self.word = np.zeros(capacity_pages, dtype=np.uint64)

    def keep(self, dpa: np.ndarray, pages: np.ndarray, lengths: np.ndarray) -> None:
        """Pages of which the engine made blocks of these lengths; the blocks are written by `write`."""
        self.crc[dpa] = checksums(pages)
        self.lengths[dpa] = lengths
        self.word[dpa] = np.ascontiguousarray(pages).view(np.uint64)[:, 0]

    def read(self, dpa: np.ndarray, firsts: np.ndarray) -> np.ndarray:
        """The bytes of kept pages whose chains start at `firsts`, checked."""
        lengths = self.lengths[dpa].astype(np.int64)
        varied = lengths.any(axis=1)
        data = self.granules.read(firsts[varied], lengths[varied])
        restored = self.engine.restore(lengths[varied], data)
        if varied.all():
            return checked(dpa, self.crc[dpa], restored)
        pages = np.empty((len(dpa), PAGE_SIZE), dtype=np.uint8)
        pages[varied] = restored
        pages.view(np.uint64)[~varied] = self.word[dpa[~varied]][:, np.newaxis]
        return checked(dpa, self.crc[dpa], pages)

    def snapshot(self, dpa: np.ndarray) -> list[Any]:
        """The rows of these pages; what is in the granules is for the owner to keep."""
        return [self.crc[dpa], self.lengths[dpa], self.word[dpa]]

    def restore(self, dpa: np.ndarray, rows: list[Any]) -> None:
        """Inverse of `snapshot`."""
        if rows:
            self.crc[dpa], self.lengths[dpa], self.word[dpa] = rows


def checked(dpa: np.ndarray, crc: np.ndarray, pages: np.ndarray) -> np.ndarray:
    """These pages, if their checksums are right."""
    wrong = np.flatnonzero(checksums(pages) != crc)
    if len(wrong):
        raise InvariantError(f"page {int(dpa[wrong[0]])} does not read back as it was stored")
    return pages
