"""Random programs for the recording machine, by kind; the same seed gives the same programs.

Interleaving of the page cache goes by a counter of the task, which the kernel also advances when it allocates for
the task itself (a fork, slab pages, writing dirty pages back). So programs of files do not fork, and drop caches under
other policies only; what still differs between two boots is left out by record.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import boot
from generate import DONTNEED, FILE_PAGES, INTERLEAVE, REGION_PAGES, Builder

Step = Callable[[Builder], None]


def _weighted(b: Builder, steps: list[tuple[int, Step]], count: int) -> None:
    weights = [weight for weight, _ in steps]
    for _ in range(count):
        b.random.choices([step for _, step in steps], weights)[0](b)


def _cpu(b: Builder) -> None:
    b.add(f"cpu {b.random.randrange(2)}")


def _touch(b: Builder) -> None:
    b.do_look("touch", b.span(), "w")


def _setpol(b: Builder) -> None:
    b.add(f"setpol {b.policy()}")


def _mbind(b: Builder) -> None:
    flags = b.random.choice((0, 0, 0, 1, 2, 2, 3, 3, 64) if b.chance(10) else (0, 0, 1, 2, 2, 3))
    span = b.span()
    b.add(f"mbind {span} {b.policy()} {flags}")
    if b.chance(60):
        b.add(f"where {span}")


def _move(b: Builder) -> None:
    b.do_look(
        "move", b.span(), str(b.random.choice((0, 1, 2, 3, 3, 2, 5))), str(b.random.choice((2, 2, 0, 4)))
    )


def _migrate(b: Builder) -> None:
    b.add(f"migrate {b.nodes(False)} {b.nodes(False)}")
    b.look()


def _dontneed(b: Builder) -> None:
    b.add(f"madvise {b.span()} {DONTNEED}")


def _forkwrite(b: Builder) -> None:
    b.do_look("forkwrite", b.span())


def _cpuset(b: Builder) -> None:
    b.add(f"cpuset {b.nodes(False)}", "allowed", "getpol")
    b.look()


def _ask(b: Builder) -> None:
    region = b.pick()
    b.add(
        b.random.choice(("getpol", "allowed", f"getpolat {region} {b.random.randrange(b.regions[region])}"))
    )


def _munmap(b: Builder) -> None:
    region = b.pick()
    if len(b.regions) > 1:
        b.add(f"munmap {region} 0 {b.regions.pop(region)}")


def _map_anonymous(b: Builder, most: int = 4, pages: tuple[int, ...] = REGION_PAGES) -> None:
    for region in range(b.random.randint(1, most)):
        b.regions[region] = b.random.choice(pages)
        b.add(f"mmap {region} {b.regions[region]} {b.random.choice(('pa', 'pa', 'sa'))}")


def mempolicy(random: Random) -> list[str]:
    """Policies, moving and forking over anonymous memory: the kind of linux_mempolicy."""
    b = Builder(random)
    _map_anonymous(b)
    steps: list[tuple[int, Step]] = [
        (20, _touch), (9, _setpol), (14, _mbind), (7, _move), (4, _migrate), (2, _dontneed), (2, _forkwrite),
        (6, _ask), (3, _cpu), (1, _munmap),
    ]  # fmt: skip
    if b.chance(30):
        steps.append((4, _cpuset))
    _weighted(b, steps, random.randint(5, 25))
    b.look()
    b.add("getpol")
    return b.ops


def _map_files(b: Builder, pages: tuple[int, ...] = FILE_PAGES) -> None:
    b.add("drop")
    for region in range(b.random.randint(1, 3)):
        file = b.random.randrange(len(pages))
        b.regions[region] = pages[file]
        b.add(f"fmap {region} {file} {pages[file]} {b.random.choice(('fs', 'fp'))}")


def _fread(b: Builder) -> None:
    file = b.random.randrange(len(FILE_PAGES))
    offset, pages = b.part(FILE_PAGES[file])
    b.add(f"fread {file} {offset} {pages}")


def _faults(b: Builder) -> None:
    span = b.span()
    b.add(f"faults {span} {b.random.choice('rrw')}", f"where {span}")


def _drop(b: Builder) -> None:
    policies = [op.split()[1] for op in b.ops if op.startswith("setpol")]
    if policies and int(policies[-1]) & 255 == INTERLEAVE:
        b.add("setpol 0 -")
    b.add("drop")


def filepages(random: Random) -> list[str]:
    """Page cache, mapped files, soft and hard faults: the kind of linux_filepages."""
    b = Builder(random)
    _map_files(b)
    _weighted(
        b,
        [(16, _faults), (9, _fread), (7, _setpol), (8, _mbind), (4, _move), (2, _migrate), (2, _dontneed),
         (3, _cpu), (3, _drop)],
        random.randint(5, 20),
    )  # fmt: skip
    b.look()
    return b.ops


@dataclass(frozen=True)
class Kind:
    """What a kind of programs does, and on which machine."""

    make: Callable[[Random], list[str]]
    setup: boot.Setup = field(default_factory=boot.Setup)


KINDS: dict[str, Kind] = {"mempolicy": Kind(mempolicy), "filepages": Kind(filepages)}


def programs(kind: str, count: int, seed: int) -> list[tuple[str, list[str]]]:
    """Programs of a kind: (name, ops)."""
    make = KINDS[kind].make
    return [(f"{kind}-{seed}-{number}", make(Random(f"{kind} {seed} {number}"))) for number in range(count)]
