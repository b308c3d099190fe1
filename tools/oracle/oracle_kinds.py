"""Random programs for the recording machine, by kind; the same seed gives the same programs.

Interleaving of the page cache goes by a counter of the task, which the kernel also advances when it allocates for
the task itself (a fork, slab pages, writing dirty pages back). So programs of files do not fork, and drop caches
under other policies only; what still differs between two boots is left out by record.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import oracle_boot as boot
from oracle_files import mapahead, readahead
from oracle_programs import (
    BIND,
    COLD,
    DEFAULT,
    DONTNEED,
    FILE_PAGES,
    FREE,
    INTERLEAVE,
    LOCAL,
    PAGEOUT,
    PREFERRED,
    PREFERRED_MANY,
    REGION_PAGES,
    WEIGHTED,
    WILLNEED,
    Builder,
    Step,
)
from oracle_ranges import ranges


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
    b.add(f"migrate {b.nodes(False)} {b.nodes()}")
    b.look()


def _dontneed(b: Builder) -> None:
    b.add(f"madvise {b.span()} {DONTNEED}")


def _forkwrite(b: Builder) -> None:
    b.do_look("forkwrite", b.span())


def _cpuset(b: Builder) -> None:
    b.add(f"cpuset {b.nodes()}", "allowed", "getpol")
    b.look()


def _ask(b: Builder) -> None:
    region = b.pick()
    b.add(
        b.random.choice(("getpol", "allowed", f"getpolat {region} {b.random.randrange(b.regions[region])}"))
    )


def _where(b: Builder) -> None:
    b.add(f"where {b.span()}")


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
        (20, _touch),
        (9, _setpol),
        (14, _mbind),
        (7, _move),
        (4, _migrate),
        (2, _dontneed),
        (2, _forkwrite),
        (6, _ask),
        (4, _where),
        (3, _cpu),
        (1, _munmap),
    ]
    if b.chance(30):
        steps.append((4, _cpuset))
    b.run(steps, random.randint(5, 25))
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


def filepages(random: Random) -> list[str]:
    """Page cache, mapped files, soft and hard faults: the kind of linux_filepages."""
    b = Builder(random)
    _map_files(b)
    b.run(
        [
            (16, _faults),
            (9, _fread),
            (7, _setpol),
            (8, _mbind),
            (4, _move),
            (2, _migrate),
            (2, _dontneed),
            (3, _where),
            (3, _cpu),
            (3, Builder.drop),
        ],
        random.randint(5, 20),
    )
    b.look()
    return b.ops


# -- what the first two kinds do not touch


def fallback(random: Random) -> list[str]:
    """Nodes filled to a few hundred pages above their watermarks, then a region larger than what is left.

    Where a node ends is not exact to the page (a CPU keeps free pages of its own), so the order of the nodes is
    recorded. No policy binds to full nodes alone: that would call the OOM killer.
    """
    b = Builder(random)
    full = b.random.sample(range(4), b.random.choice((1, 1, 2, 2, 3)))
    b.add(*(f"fill {nid} 512" for nid in sorted(full)), f"cpu {b.random.randrange(2)}")
    pages = 1200 * len(full) + 1500
    b.add(f"mmap 0 {pages} {b.random.choice(('pa', 'sa'))}")
    mode = b.random.choice((DEFAULT, LOCAL, PREFERRED, PREFERRED, PREFERRED_MANY, BIND, INTERLEAVE))
    nodes = {b.random.randrange(4), b.random.randrange(4)}
    if mode == INTERLEAVE and len(nodes & set(full)) > 1:
        nodes -= {full[0]}  # which of two nodes is full first would be chance
    if mode == BIND:
        nodes |= {b.random.choice([nid for nid in range(4) if nid not in full])}
    listed = "-" if mode in (DEFAULT, LOCAL) else ",".join(map(str, sorted(nodes)))
    if mode == PREFERRED:
        listed = str(b.random.randrange(4))
    b.add(f"setpol {mode} {listed}" if b.chance(50) else f"mbind 0 0 {pages} {mode} {listed} 0")
    b.add(f"touch 0 0 {pages} w", f"order 0 0 {pages}", "unfill")
    return b.ops


def _protect(b: Builder) -> None:
    span = b.span()
    b.add(f"protect {span} {b.random.choice(('-', 'r', 'rw', 'rw'))}")


def _try(b: Builder) -> None:
    span = b.span()
    b.add(f"try {span} {b.random.choice('rw')}", f"ptes {span}")


def _mlock(b: Builder) -> None:
    span = b.span()
    b.add(f"mlock {span} {b.random.choice((0, 0, 1))}", f"ptes {span}", f"where {span}")


def _munlock(b: Builder) -> None:
    b.add(f"munlock {b.span()}")


def _hold(b: Builder) -> None:
    b.add("release" if "hold" in b.ops and b.ops[::-1].index("hold") < _since(b, "release") else "hold")


def _since(b: Builder, op: str) -> int:
    return b.ops[::-1].index(op) if op in b.ops else len(b.ops)


def protection(random: Random) -> list[str]:
    """mprotect, mlock and munlock of private and shared memory and files, with the accesses that they allow."""
    b = Builder(random)
    if b.chance(40):
        _map_files(b)
    else:
        _map_anonymous(b, 2, (8, 16, 33, 64))
    b.run(
        [
            (8, _protect),
            (9, _try),
            (6, _mlock),
            (3, _munlock),
            (2, _dontneed),
            (2, _setpol),
            (2, _mbind),
            (2, _move),
            (1, _migrate),
        ],
        random.randint(6, 18),
    )
    b.look()
    return b.ops


def _query(b: Builder) -> None:
    flags = b.random.choice((0, 1, 1, 2, 3, 4, 5, 8))
    if b.chance(50):
        b.add(f"query {flags}")
        return
    region = b.pick()
    b.add(f"queryat {flags} {region} {b.random.randrange(b.regions[region] + 2)}")


def _moves(b: Builder) -> None:
    span = b.span()
    listed = ",".join(
        str(b.random.choice((0, 1, 2, 3, 0, 1, 2, 3, 4, 9, -1))) for _ in range(b.random.randint(1, 4))
    )
    b.add(f"moves {span} {listed} {b.random.choice((0, 2, 2, 2, 4, 1, 8))}", f"where {span}")


def _homenode(b: Builder) -> None:
    span = b.span()
    b.add(f"mbind {span} {b.policy(modes=(BIND, PREFERRED_MANY, PREFERRED_MANY, INTERLEAVE))} 0")
    b.add(f"homenode {span} {b.random.choice((0, 1, 2, 3, 3, 7, -1))} {b.random.choice((0, 0, 0, 0, 1))}")


def _read(b: Builder) -> None:
    b.do_look("touch", b.span(), "r")


def queries(random: Random) -> list[str]:
    """Every flag of get_mempolicy, every status of move_pages, home nodes, reads of memory never written."""
    b = Builder(random)
    _map_anonymous(b, 3, (8, 16, 33, 64))
    steps: list[tuple[int, Step]] = [
        (8, _query),
        (6, _moves),
        (4, _homenode),
        (5, _read),
        (5, _touch),
        (4, _setpol),
        (3, _mbind),
        (3, _hold),
        (2, _munmap),
        (2, _forkwrite),
        (2, _dontneed),
        (1, _cpu),
    ]
    if b.chance(25):
        steps.append((2, _cpuset))
    b.run(steps, random.randint(6, 20))
    b.look()
    return b.ops


def _madvise(b: Builder) -> None:
    span = b.span()
    b.add(f"madvise {span} {b.random.choice((PAGEOUT, PAGEOUT, PAGEOUT, FREE, COLD, WILLNEED, DONTNEED))}")
    b.add(f"ptes {span}", f"where {span}")


def swap(random: Random) -> list[str]:
    """Pages out and in: MADV_PAGEOUT, FREE, COLD and WILLNEED with a swap device that answers at once."""
    b = Builder(random)
    _map_anonymous(b, 3, (8, 16, 33, 64))
    for region, pages in b.regions.items():
        b.add(f"touch {region} 0 {pages} w")
    b.run(
        [
            (12, _madvise),
            (8, _faults),
            (3, _setpol),
            (2, _mbind),
            (2, _move),
            (2, _hold),
            (1, _mlock),
            (1, _munlock),
            (2, _forkwrite),
            (1, _cpu),
            (1, _migrate),
        ],
        random.randint(6, 18),
    )
    b.look()
    return b.ops


def demotion(random: Random) -> list[str]:
    """Two nodes of memory, two slow ones: reclaim of all of a task's memory takes it to the slower tier.

    How many pages a reclaim takes beyond what it was asked for is the kernel's business, so that more is asked
    for than there is.
    """
    b = Builder(random)
    for nid in range(2, 4):
        if b.chance(25):
            b.add(f"fill {nid} 512")
    _map_anonymous(b, 2, (16, 33, 64, 200))
    for _ in range(random.randint(1, 4)):
        if b.chance(40):
            b.add(f"setpol {b.policy(wild=False)}")
        if b.chance(50):
            b.add(f"cpu {b.random.randrange(2)}")
        b.run([(6, _touch), (2, _mbind), (1, _move), (1, _mlock), (1, _munlock), (1, _hold)], 3)
        b.add("demotion off" if b.chance(10) else "demotion on", "reclaim 1000")
        b.look()
    return b.ops


def weighted(random: Random) -> list[str]:
    """MPOL_WEIGHTED_INTERLEAVE, of Linux 6.9 and newer, under weights of each node."""
    b = Builder(random)
    b.add(*(f"weight {nid} {b.random.choice((1, 1, 2, 3, 4, 7))}" for nid in range(4)))
    files = b.chance(25)
    if files:
        _map_files(b)
    else:
        _map_anonymous(b, 3, (8, 16, 33, 64, 200))

    def policy(b: Builder) -> None:
        b.add(f"setpol {b.policy(modes=(WEIGHTED, WEIGHTED, WEIGHTED, INTERLEAVE))}", "getpol")

    def bind(b: Builder) -> None:
        span = b.span()
        b.add(
            f"mbind {span} {b.policy(modes=(WEIGHTED, WEIGHTED, INTERLEAVE))} {b.random.choice((0, 1, 2, 3))}"
        )
        b.add(f"where {span}")

    def weight(b: Builder) -> None:
        b.add(f"weight {b.random.randrange(4)} {b.random.choice((0, 1, 2, 5, 255, 256))}")

    steps: list[tuple[int, Step]] = [(6, policy), (5, bind), (3, weight), (2, _query), (1, _cpu)]
    steps += [(6, _faults), (4, _fread)] if files else [(10, _touch), (2, _move), (1, _migrate), (2, _cpuset)]
    b.run(steps, random.randint(5, 18))
    b.look()
    return b.ops


def many(random: Random) -> list[str]:
    """As mempolicy and queries together, but long, with up to eight regions, under policies of every mode."""
    b = Builder(random)
    _map_anonymous(b, 8, (8, 16, 33, 64, 200))
    steps: list[tuple[int, Step]] = [
        (14, _touch),
        (5, _read),
        (8, _setpol),
        (10, _mbind),
        (4, _homenode),
        (5, _move),
        (4, _moves),
        (4, _migrate),
        (3, _dontneed),
        (3, _forkwrite),
        (3, _hold),
        (5, _ask),
        (3, _query),
        (3, _cpu),
        (1, _munmap),
    ]
    if b.chance(50):
        steps.append((4, _cpuset))
    b.run(steps, random.randint(25, 60))
    b.look()
    b.add("getpol")
    return b.ops


def _remap(b: Builder) -> None:
    region = b.pick()
    pages = b.regions[region]
    offset, count = b.part(pages)
    if b.chance(35):  # in place
        b.add(f"mremap {region} {offset} {count} {region} {offset} {b.random.choice((1, count, count + 5))}")
    else:
        to, at, new = (
            b.random.randrange(4),
            b.random.choice((0, 0, 5, 512)),
            b.random.choice((1, count, count, count + 7)),
        )
        b.add(f"mremap {region} {offset} {count} {to} {at} {new}")
        b.regions[to] = max(b.regions.get(to, 0), min(at + new, 64))
    b.look()


def remap(random: Random) -> list[str]:
    """mremap among mprotect, mlock, policies and forks. New page tables take turns of the task's interleaving, so
    that only mbind interleaves.
    """
    b = Builder(random)
    _map_anonymous(b, 3, (8, 16, 33, 64))

    def policy(b: Builder) -> None:
        b.add(f"setpol {b.policy(modes=(PREFERRED, BIND, PREFERRED_MANY))}")

    b.run(
        [
            (9, _remap),
            (9, _touch),
            (3, _read),
            (3, _protect),
            (4, _try),
            (3, _mlock),
            (2, _munlock),
            (2, policy),
            (6, _mbind),
            (3, _move),
            (1, _migrate),
            (2, _dontneed),
            (2, _forkwrite),
            (2, _hold),
            (1, _cpu),
        ],
        random.randint(8, 30),
    )
    b.look()
    return b.ops


def pressure(random: Random) -> list[str]:
    """Two fast and two slow nodes, and swap: where MADV_PAGEOUT and reclaim of all take pages, what comes back."""
    b = Builder(random)
    _map_anonymous(b, 2, (16, 33, 64))

    def reclaim(b: Builder) -> None:
        b.add("demotion off" if b.chance(30) else "demotion on", "reclaim 1000")
        for region, pages in sorted(b.regions.items()):
            b.add(f"ptes {region} 0 {pages}", f"where {region} 0 {pages}")

    steps: list[tuple[int, Step]] = [
        (9, _touch),
        (5, reclaim),
        (4, _madvise),
        (3, _faults),
        (2, _setpol),
        (2, _mbind),
        (2, _move),
        (2, _mlock),
        (2, _munlock),
        (1, _hold),
        (1, _forkwrite),
        (1, _cpu),
    ]
    b.run(steps, random.randint(5, 16))
    b.look()
    return b.ops


@dataclass(frozen=True)
class Kind:
    """What a kind of programs does, and on which machine."""

    make: Callable[[Random], list[str]]
    setup: boot.Setup = field(default_factory=boot.Setup)


#: What a stock kernel does when it is not told otherwise.
_STOCK_FILES = boot.Setup(read_ahead_kb=128, fault_around_bytes=65536)

KINDS: dict[str, Kind] = {
    "mempolicy": Kind(mempolicy),
    "filepages": Kind(filepages),
    "readahead": Kind(readahead, _STOCK_FILES),
    "mapahead": Kind(mapahead, _STOCK_FILES),
    "fallback": Kind(fallback),
    "protection": Kind(protection),
    "queries": Kind(queries),
    "swap": Kind(swap, boot.Setup(swap="ram")),
    "swapahead": Kind(swap, boot.Setup(swap="ram", page_cluster=3)),
    "demotion": Kind(demotion, boot.Setup(slow_nodes=2, demotion_enabled=True)),
    "weighted": Kind(weighted),
    "many": Kind(many),
    "remap": Kind(remap),
    "ranges": Kind(ranges),
    "pressure": Kind(pressure, boot.Setup(swap="ram", slow_nodes=2, demotion_enabled=True)),
}


def programs(kind: str, count: int, seed: int) -> list[tuple[str, list[str]]]:
    """Programs of a kind: (name, ops)."""
    make = KINDS[kind].make
    return [(f"{kind}-{seed}-{number}", make(Random(f"{kind} {seed} {number}"))) for number in range(count)]
