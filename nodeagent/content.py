"""What pages hold: real bytes for every described page.

A page's content is (source, index, version). Source 0 is zero pages; LITERAL means that the bytes travel with
the page; others are rows of the run's source table:

- `image`: pages of a recorded program. `rows` uint8[n, 4096] holds distinct pages, `table` int32[images,
pages] the row of each
  page in each image. Version v is the page in image v modulo the number of images.
- `generator`: made-up pages with stated statistics. A page in `zero_permille` of a thousand is zeros; any
other has
  `random_bytes` bytes that do not compress, and after them a text of 64 bytes that repeats. Version v differs
  from version 0 in the `changed_bytes` bytes that each of its last CHANGES_MAX changes rewrote, at drawn
  places.

Everything is a function of these numbers alone, on any machine.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from privmem.nodeagent._content_kernel import generate_page
from privmem.scheduler.abi import PAGE_SIZE
from privmem.scheduler.errors import ProtocolError

ZERO = 0
LITERAL = 0xFFFF
#: Changes that a generated page remembers: more would only rewrite what is rewritten already.
CHANGES_MAX = 64


class ContentTable:
    """The content sources of a run; see the module docstring for the plain specs."""

    def __init__(self, specs: list[dict[str, Any]], resources: dict[str, np.ndarray]) -> None:
        self._sources: list[_Image | _Generator] = []
        for spec in specs:
            match spec["kind"]:
                case "image":
                    self._sources.append(_Image(resources[spec["rows"]], resources[spec["table"]]))
                case "generator":
                    self._sources.append(_Generator(spec))
                case other:
                    raise ProtocolError(f"unknown kind of content source {other!r}")

    def page(self, source: int, index: int, version: int) -> np.ndarray:
        """The 4096 bytes of a described page, uint8; not to be written to. Raises ProtocolError for no such
        source.
        """
        if source == ZERO:
            return _ZERO_PAGE
        if not 0 < source <= len(self._sources):
            raise ProtocolError(f"there is no content source {source}")
        return self._sources[source - 1].page(index, version)


_ZERO_PAGE = np.zeros(PAGE_SIZE, dtype=np.uint8)
_ZERO_PAGE.flags.writeable = False


class _Image:
    def __init__(self, rows: np.ndarray, table: np.ndarray) -> None:
        self.rows, self.table = rows, table

    def page(self, index: int, version: int) -> np.ndarray:
        images, pages = self.table.shape
        row: np.ndarray = self.rows[self.table[version % images, index % pages]]
        return row


class _Generator:
    def __init__(self, spec: dict[str, Any]) -> None:
        self.numbers = tuple(
            int(spec[name]) for name in ("seed", "zero_permille", "random_bytes", "changed_bytes")
        )

    def page(self, index: int, version: int) -> np.ndarray:
        out = np.zeros(PAGE_SIZE, dtype=np.uint8)
        with np.errstate(over="ignore"):  # the generator wraps on purpose
            generate_page(out, *self.numbers, index, version, CHANGES_MAX)
        return out
