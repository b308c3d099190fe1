"""What pages hold: real bytes for every described page.

A page's content is (source, index, version). Source 0 is the zero page; LITERAL means that the bytes travel
with the page and are not known here; any other number is a row (counted from 1) of the run's source table:

- `image`: pages of a recorded program. `rows` uint8[n, 4096] holds each distinct page once, `table`
  int32[images, pages] the row of each page in each image. Version v is the page in image v modulo the number
  of images; an index beyond the image starts again at its beginning.
- `generator`: made-up pages with stated statistics. Of a thousand pages `zero_permille` hold zeros, any other
  `random_bytes` bytes that do not compress and then a line of 64 letters that repeats to the end. Each
  version rewrites `changed_bytes` bytes in a row, from a drawn cache line on, with bytes that do not
  compress. A page shows its last CHANGES_MAX rewrites and no older one, so that its content costs no more to
  make, and compresses no worse, however often it is written. With `phases`, [[time, random bytes], ...], what
  is written from such a time on is another page, with that many bytes that do not compress: the upper bits of
  its version say in which phase it was written (`version_after`), 0 for before the first.

Bytes are a function of these numbers and of the recording alone, on any machine.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from privmem.nodeagent._content_kernel import generate_pages
from privmem.scheduler.abi import PAGE_SIZE
from privmem.scheduler.errors import ProtocolError

ZERO = 0
LITERAL = 0xFFFF
#: Rewrites that a generated page shows. Sixteen of a cache line each are a quarter of the page; a choice.
CHANGES_MAX = 16
#: Versions of a generator with phases: the number of the phase, and behind it the rewrites.
PHASE_SHIFT = 12
PHASES_MAX = (1 << (16 - PHASE_SHIFT)) - 1
_REWRITES = np.uint16((1 << PHASE_SHIFT) - 1)


def version_after(version: np.ndarray, phase: int) -> np.ndarray:
    """The version that a page comes to which is written in a phase, uint16."""
    rewrites = (version + np.uint16(1)) & _REWRITES
    return rewrites | np.uint16(phase << PHASE_SHIFT)


class ContentTable:
    """The content sources of a run; see the module docstring for the plain specs.

    The batch calls take arrays of one length: `source` uint16, `index` uint32, `version` uint16. All calls
    raise ProtocolError for a source that is not in the table, LITERAL among them.
    """

    def __init__(self, source_specs: list[dict[str, Any]], resources: dict[str, np.ndarray]) -> None:
        self._sources: list[_Image | _Generator] = []
        for spec in source_specs:
            match spec["kind"]:
                case "image":
                    self._sources.append(_Image(resources[spec["rows"]], resources[spec["table"]]))
                case "generator":
                    self._sources.append(_Generator(spec))
                case other:
                    raise ProtocolError(f"unknown kind of content source {other!r}")

    def pages(self, source: np.ndarray, index: np.ndarray, version: np.ndarray) -> np.ndarray:
        """The bytes of described pages, uint8[n, 4096]."""
        out = np.zeros((len(source), PAGE_SIZE), dtype=np.uint8)
        for number in _numbers(source):
            if number != ZERO:
                at = np.flatnonzero(source == number)
                out[at] = self._of(number).pages(index[at], version[at])
        return out

    def page_bytes(self, source: int, index: int, version: int) -> memoryview:
        """The 4096 bytes of one described page."""
        columns = (np.array([source]), np.array([index], np.uint32), np.array([version], np.uint16))
        return self.pages(*columns)[0].data

    def keys(self, source: np.ndarray, index: np.ndarray, version: np.ndarray) -> np.ndarray:
        """One uint64 a page: equal keys mean equal bytes. 0 is the zero page."""
        keys = np.zeros(len(source), dtype=np.uint64)
        for number in _numbers(source):
            if number != ZERO:
                at = np.flatnonzero(source == number)
                keys[at] = np.uint64(number << 48) | self._of(number).keys(index[at], version[at])
        return keys

    def check(self, source: np.ndarray) -> None:
        """Raise for a source that is not in the table."""
        for number in _numbers(source):
            if number != ZERO:
                self._of(number)

    def _of(self, number: int) -> _Image | _Generator:
        if not 0 < number <= len(self._sources):
            raise ProtocolError(f"there is no content source {number}")
        return self._sources[number - 1]


def is_same_filled(pages: np.ndarray) -> np.ndarray:
    """Of pages uint8[n, 4096], which are one machine word all over: `page_same_filled` of Linux's zram."""
    words = np.ascontiguousarray(pages).view(np.uint64)
    return (words == words[:, :1]).all(axis=1)


def _numbers(source: np.ndarray) -> list[int]:
    """The sources that occur, ascending."""
    return [int(number) for number in np.unique(source)]


class _Image:
    def __init__(self, rows: np.ndarray, table: np.ndarray) -> None:
        self.rows, self.table = rows, table
        if rows.ndim != 2 or rows.shape[1] != PAGE_SIZE or rows.dtype != np.uint8:
            raise ProtocolError(f"rows of an image are {rows.dtype}{rows.shape}, not pages of bytes")
        if table.ndim != 2 or not table.size or table.min() < 0 or table.max() >= len(rows):
            raise ProtocolError(f"the table of an image is empty or names rows beyond its {len(rows)}")

    def pages(self, index: np.ndarray, version: np.ndarray) -> np.ndarray:
        return self.rows[self._rows_of(index, version)]

    def keys(self, index: np.ndarray, version: np.ndarray) -> np.ndarray:
        return self._rows_of(index, version).astype(np.uint64)

    def _rows_of(self, index: np.ndarray, version: np.ndarray) -> np.ndarray:
        images, pages = self.table.shape
        return self.table[version % images, index % pages]


class _Generator:
    def __init__(self, spec: dict[str, Any]) -> None:
        self.seed = np.uint64(spec["seed"])
        self.zero_permille = int(spec["zero_permille"])
        self.random_bytes = int(spec["random_bytes"])
        self.changed_bytes = int(spec["changed_bytes"])
        #: Random bytes of each phase; the first is before all of them.
        self.phases = [self.random_bytes, *(int(random_bytes) for _, random_bytes in spec.get("phases", []))]
        limits = (
            (self.zero_permille, 1000),
            (len(self.phases), PHASES_MAX + 1),
            *((random_bytes, PAGE_SIZE) for random_bytes in self.phases),
            (self.changed_bytes, PAGE_SIZE),
        )
        if any(not 0 <= number <= most for number, most in limits):
            raise ProtocolError(f"a generator of pages cannot do {spec}")

    def pages(self, index: np.ndarray, version: np.ndarray) -> np.ndarray:
        if len(self.phases) == 1:
            return self._made(index, version, self.zero_permille, self.random_bytes)
        out = np.empty((len(index), PAGE_SIZE), dtype=np.uint8)
        phase = np.minimum(version >> PHASE_SHIFT, len(self.phases) - 1)
        for number in np.unique(phase).tolist():
            at = np.flatnonzero(phase == number)
            zero_permille = 0 if number else self.zero_permille
            out[at] = self._made(index[at], version[at] & _REWRITES, zero_permille, self.phases[number])
        return out

    def _made(
        self, index: np.ndarray, version: np.ndarray, zero_permille: int, random_bytes: int
    ) -> np.ndarray:
        out = np.zeros((len(index), PAGE_SIZE), dtype=np.uint8)
        with np.errstate(over="ignore"):  # the generator wraps on purpose
            numbers = (zero_permille, random_bytes, self.changed_bytes, CHANGES_MAX)
            generate_pages(out, self.seed, *numbers, index, version)
        return out

    def keys(self, index: np.ndarray, version: np.ndarray) -> np.ndarray:
        if not self.changed_bytes:
            version = version & ~_REWRITES if len(self.phases) > 1 else np.zeros_like(version)
        return index.astype(np.uint64) << np.uint64(16) | version.astype(np.uint64)
