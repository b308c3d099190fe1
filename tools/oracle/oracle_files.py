"""Kinds of random programs that read files under the readahead of a stock kernel."""

from __future__ import annotations

from random import Random

from oracle_programs import (
    BIND,
    DONTNEED,
    FILE_PAGES,
    LARGE_FILE,
    LARGE_FILE_PAGES,
    PREFERRED,
    RANDOM_READ,
    SEQUENTIAL,
    WILLNEED,
    Builder,
    Step,
)


def _part_of_file(b: Builder, pages: int) -> tuple[int, int]:
    """A piece of a file: often the next one after the last, as sequential readers read."""
    start = sum(b.last)
    if not (b.chance(60) and start < pages):
        start = b.random.choice((0, b.random.randrange(pages)))
    count = min(pages - start, b.random.choice((1, 1, 2, 3, 4, 8, 16, 17, 32, 33, 64, 100)))
    b.last = (start, count)
    return start, count


def _read_somewhere(b: Builder) -> None:
    start, count = _part_of_file(b, b.file_pages)
    b.add(f"{b.random.choice(('fread', 'freadv'))} {b.file} {start} {count}")
    low = max(0, start - 64)
    b.add(f"incore {b.file} {low} {min(b.file_pages, start + count + 128) - low}")


def _advise_file(b: Builder) -> None:
    advice = b.random.choice((0, 1, 2, 3, 3, 4))
    start, count = _part_of_file(b, b.file_pages)
    b.add(f"fadvise {b.file} {start} {count} {advice}", f"incore {b.file} 0 {b.file_pages}")


def _choose_file(b: Builder) -> None:
    b.file = b.random.choice((0, 1, 2, LARGE_FILE, LARGE_FILE, LARGE_FILE))
    b.file_pages = LARGE_FILE_PAGES if b.file == LARGE_FILE else FILE_PAGES[b.file]


def readahead(random: Random) -> list[str]:
    """Reads of one page and of many, in order and not, with the pages that came into the cache."""
    b = Builder(random)
    b.add("drop")
    _choose_file(b)
    if b.chance(25):
        b.add(f"setpol {b.policy(wild=False, modes=(BIND, PREFERRED))}")
    steps: list[tuple[int, Step]] = [(20, _read_somewhere), (2, Builder.drop)]
    if b.chance(30):
        steps.append((4, _advise_file))
    b.run(steps, random.randint(4, 14))
    b.add(f"cached {b.file} 0 {min(b.file_pages, 512)}")
    return b.ops


def _fault_somewhere(b: Builder) -> None:
    start, count = _part_of_file(b, b.file_pages)
    low = max(0, start - 64)
    span = f"{low} {min(b.file_pages, start + count + 128) - low}"
    b.add(f"faults 0 {start} {count} {b.random.choice('rrrw')}", f"incore {b.file} {span}", f"ptes 0 {span}")


def _advise_mapping(b: Builder) -> None:
    start, count = _part_of_file(b, b.file_pages)
    whole = b.chance(70)
    advice = b.random.choice((0, RANDOM_READ, SEQUENTIAL, WILLNEED, DONTNEED))
    b.add(f"madvise 0 {0 if whole else start} {b.file_pages if whole else count} {advice}")


def mapahead(random: Random) -> list[str]:
    """Faults on mapped files: what is read ahead, and what is mapped around."""
    b = Builder(random)
    b.add("drop")
    _choose_file(b)
    b.add(f"fmap 0 {b.file} {b.file_pages} {b.random.choice(('fs', 'fp'))}")
    steps: list[tuple[int, Step]] = [
        (20, _fault_somewhere),
        (3, _advise_mapping),
        (3, _read_somewhere),
        (1, Builder.drop),
    ]
    b.run(steps, random.randint(4, 12))
    return b.ops
