"""What storing a literal page costs beside the codec alone, and a million such pages there and back.

    python3 benchmarks/compression.py [--codec lz4] [--level N] [--pages 1000000]

The first table is time per page: the codec's library called in a loop that does nothing else, the store around it
(checksum, same-filled test, granules, copies, counters), and their ratio. Then `--pages` literal pages go through
compress, migrate, trim and refill (`round_trip`), and every byte that comes back is compared.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from privmem.cluster.traces import open_trace
from privmem.nodeagent.content import LITERAL, ContentTable
from privmem.nodeagent.device.backing import PageStore
from privmem.nodeagent.device.codecs import make_codec
from privmem.nodeagent.device.compression import CompressionEngine

RECORDINGS = Path(__file__).resolve().parents[1] / "configs" / "recordings"
#: Pages of one message, and of one device: 512 MiB of them at a time.
BATCH_PAGES, DEVICE_PAGES = 4096, 1 << 17


def literal_pages(first: int, nr_pages: int, recorded: np.ndarray) -> np.ndarray:
    """Pages first.. of an endless row of pages that all differ: recorded bodies, each with its number in a word."""
    number = np.arange(first, first + nr_pages, dtype=np.uint64)
    pages = recorded[(number % np.uint64(len(recorded))).astype(np.int64)]
    pages.view(np.uint64)[:, 37] = number * np.uint64(0x9E3779B97F4A7C15)
    pages[number % np.uint64(16) == 0] = (number[number % np.uint64(16) == 0] & np.uint64(255))[:, np.newaxis]
    return pages


def recorded_pages() -> np.ndarray:
    """Every distinct page of the recordings."""
    return np.concatenate([open_trace(path).images()[0] for path in sorted(RECORDINGS.glob("*.pmtrace"))])


def make_store(codec: str, level: int | None, pages: int) -> PageStore:
    """A compressed store with room for all its pages even if none compresses."""
    spec = {"codec": codec, "level": level, "block": 4096, "granule": 64}
    return PageStore(pages, pages << 12, ContentTable([], {}), CompressionEngine(spec))


def put(store: PageStore, dpa: np.ndarray, pages: np.ndarray) -> None:
    """Store literal pages."""
    columns = np.full(len(dpa), LITERAL, np.uint16), dpa.astype(np.uint32), np.zeros(len(dpa), np.uint16)
    store.store(dpa, *columns, pages)


def round_trip(nr_pages: int, codec: str, level: int | None, device_pages: int = DEVICE_PAGES) -> int:
    """Literal pages through two devices, a device full at a time: compressed into the first, migrated batch by
    batch onto the second, in another order; every third is then trimmed and refilled, and all are read back.
    Returns how many came back as they were; a wrong byte is an AssertionError.
    """
    recorded = recorded_pages()
    first, second = (make_store(codec, level, device_pages) for _ in range(2))
    back = 0
    for start in range(0, nr_pages, device_pages):
        nr = min(device_pages, nr_pages - start)
        batches = [
            np.arange(at, min(at + BATCH_PAGES, nr), dtype=np.int32) for at in range(0, nr, BATCH_PAGES)
        ]
        for dpa in batches:
            put(first, dpa, literal_pages(start + int(dpa[0]), len(dpa), recorded))
        for dpa in batches:  # migrate
            put(second, (nr - 1 - dpa).astype(np.int32), first.load(dpa)[3])
            first.free(dpa)
        for dpa in batches:  # trim, refill
            third = dpa[dpa % 3 == 0]
            second.free((nr - 1 - third).astype(np.int32))
            assert not second.holds(nr - 1 - third).any()
            put(
                second,
                (nr - 1 - third).astype(np.int32),
                literal_pages(start + int(dpa[0]), len(dpa), recorded)[dpa % 3 == 0],
            )
        for dpa in batches:
            pages = second.load((nr - 1 - dpa).astype(np.int32))[3]
            assert np.array_equal(pages, literal_pages(start + int(dpa[0]), len(dpa), recorded))
            back += len(pages)
        assert (first.stored_pages, first.used_bytes, second.stored_pages) == (0, 0, nr)
        second.clear(0, device_pages)
        assert (second.stored_pages, second.used_bytes, second.stored_bytes) == (0, 0, 0)
    return back


def _us_per_page(call: Callable[[], object], nr_pages: int) -> float:
    """The best of nine, in time of the CPU: what else runs matters little."""
    took = []
    for _ in range(9):
        begun = time.process_time()
        call()
        took.append(time.process_time() - begun)
    return min(took) / nr_pages * 1e6


def main() -> None:
    """Print both."""
    parser = argparse.ArgumentParser(description="Time of the compression path above the codec alone.")
    parser.add_argument("--codec", default="lz4", choices=("lz4", "none", "zstd"))
    parser.add_argument("--level", type=int)
    parser.add_argument("--pages", type=int, default=1_000_000, metavar="N", help="of the round trip")
    args = parser.parse_args()
    pages = np.concatenate([literal_pages(1, BATCH_PAGES, recorded_pages())])
    pages = pages[[page.tobytes() != page[:8].tobytes() * 512 for page in pages]]
    codec, store = make_codec(args.codec, args.level), make_store(args.codec, args.level, len(pages))
    raw = [page.tobytes() for page in pages]
    stored = [codec.compress(page) for page in raw]
    dpa = np.arange(len(pages), dtype=np.int32)
    put(store, dpa, pages)  # compiles, and touches memory
    rows = {
        "store": (lambda: [codec.compress(page) for page in raw], lambda: put(store, dpa, pages)),
        "load": (lambda: [codec.decompress(page, 4096) for page in stored], lambda: store.load(dpa)),
    }
    ratio = len(pages) * 4096 / store.used_bytes
    print(f"{args.codec} level {args.level or 'default'}, {len(pages)} recorded pages, ratio {ratio:.2f}")
    for name, (alone, whole) in rows.items():
        bare, full = _us_per_page(alone, len(pages)), _us_per_page(whole, len(pages))
        print(
            f"{name:6} codec alone {bare:6.2f} us/page   whole path {full:6.2f} us/page   ratio {full / bare:.2f}"
        )
    begun = time.perf_counter()
    back = round_trip(args.pages, args.codec, args.level)
    took = time.perf_counter() - begun
    print(f"{back} pages came back byte for byte in {took:.1f} s ({took / max(1, back) * 1e6:.1f} us/page)")


if __name__ == "__main__":
    main()
