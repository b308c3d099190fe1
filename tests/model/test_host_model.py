"""A host of random shape under random programs and system calls, against devices that believe nothing."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from strict_rack import ListedStream, StrictRack

from privmem.nodeagent.host import filemap, madvise
from privmem.nodeagent.host import migrate_calls as migrating
from privmem.nodeagent.host import move_calls as moves
from privmem.nodeagent.host import numa_syscalls as numa
from privmem.nodeagent.host import syscalls as calls
from privmem.nodeagent.host.task import Task
from privmem.scheduler.abi import Mpol

PROGRAM_VPN = 1 << 20
EPOCHS_MAX = 120


def random_shape(seed: int) -> tuple[dict[str, Any], list[ListedStream]]:
    rng = Random(seed)
    pages = [rng.choice([8, 24, 64, 150]), rng.choice([4, 8, 40]), rng.choice([8, 40, 100])]
    pages += [rng.choice([16, 64, 200]), 256]
    programs, streams = [], []
    for _ in range(rng.randrange(1, 4)):
        policies = [[0, 0]] * 3 + [[int(Mpol.BIND), 0b100], [int(Mpol.INTERLEAVE), 0b111]]
        policies += [[int(Mpol.PREFERRED), 0b10], [int(Mpol.PREFERRED_MANY), 0b110], [int(Mpol.BIND), 0b1]]
        cpu = rng.randrange(3)
        programs.append(
            {"cpu": cpu, "threads": rng.choice([1, 1, 3, 7]), "think_ns": rng.choice([0, 0, 50, 3000])}
            | {"policy": rng.choice(policies)}
        )
        nr_pages = rng.choice([1, 10, 60, 200, 400])
        writes = rng.choice([0, 0.1, 0.5, 1])
        first = list(range(nr_pages)) if rng.random() < 0.7 else []
        hot = rng.randrange(1, nr_pages + 1)
        rest = [
            rng.randrange(hot if rng.random() < 0.5 else nr_pages) for _ in range(rng.choice([20, 500, 3000]))
        ]
        streams.append(ListedStream(nr_pages, [page << 1 | (rng.random() < writes) for page in first + rest]))
    shape = {
        "seed": seed,
        "pages": pages,
        "credit": rng.choice([0, 1, pages[3] // 3, pages[3]]),
        "pool_credit": rng.choice([5, 1 << 30, 1 << 30]),
        "extent": rng.choice([16, 64]),
        "pool_extents": rng.choice([0, 1, 100]),
        "refuse": rng.choice([0, 0, 0.5]),
        "features": [rng.choice([0x6, 0x6, 0x86, 0x106, 0x2, 0]), rng.choice([0x106, 0x186, 0x6, 0x86])],
        "numa_balancing": rng.choice([0, 2, 2]),
        "scan_bytes": rng.choice([1 << 30, 10 << 12]),
        "rate_limit": rng.choice([1 << 36, 1 << 14]),
        "demotion": rng.random() < 0.8,
        "scale": rng.choice([10, 500]),
        "slice_ns": rng.choice([250_000, 100_000, 70_000, 1_000_000]),
        "programs": programs,
    }
    return shape, streams


def random_call(rack: StrictRack, rng: Random) -> None:
    """One system call of some task."""
    own = [p.task for p in rack.host.programs]
    if not rack.tasks or rng.random() < 0.1:
        rack.tasks.append(Task(100 + len(rack.tasks), rng.randrange(3), rack.host.memory.resolver))
    task = rng.choice(rack.tasks)
    start, nr = rng.randrange(0, 60), rng.randrange(1, 40)
    match rng.randrange(14):
        case 0:
            rack.call(calls.mmap_anon, task, start, nr, 50 + task.pid)
        case 1:
            rack.call(calls.mmap_shared, task, start, nr)
        case 2:
            holders = list(rack.memory.page_cache.objects.values())
            if len(holders) < 3:
                holders.append(rack.memory.page_cache.create_file("f", 60, 300))
            rack.call(calls.mmap_object, task, start, nr, rng.choice(holders), rng.random() < 0.5)
        case 3:
            rack.call(calls.munmap, task, start, nr)
        case 4:
            rack.call(madvise.madvise_dontneed, task, start, nr)
        case 5 | 6 | 7:
            for part in task.mm.in_range(start, start + nr):
                rack.call(calls.touch, task, part.start, part.nr_pages, rng.random() < 0.5)
        case 8:
            if len(rack.tasks) < 6:
                rack.tasks.append(calls.fork(rack.memory, task, 100 + len(rack.tasks)))
            elif len(rack.tasks) > 1:
                rack.call(calls.exit_task, task)
        case 9 | 10:
            who = rng.choice([*rack.tasks, *own])
            at = start if who in rack.tasks else PROGRAM_VPN + start
            mode, nodes = rng.choice(
                [(0, 0), (2, 0b100), (2, 1), (2, 0b1000), (2, 0b10000), (3, 0b111), (5, 6)]
            )
            rack.call(numa.mbind, who, at, nr, mode, nodes, rng.randrange(8))
        case 11:
            who = rng.choice([*rack.tasks, *own])
            at = start if who in rack.tasks else PROGRAM_VPN + start
            vpns = [at + rng.randrange(60) for _ in range(nr)]
            rack.call(moves.move_pages, who, vpns, [rng.randrange(5) for _ in vpns], rng.choice([2, 4]))
        case 12:
            who = rng.choice([*rack.tasks, *own])
            rack.call(migrating.migrate_pages, who, rng.randrange(1, 32), rng.randrange(1, 32))
        case _:
            rack.call(rng.choice([filemap.sync, filemap.drop_caches]))
    rack.check(queued=True)


def play(seed: int, with_calls: bool, swap_at: int = -1) -> StrictRack:
    shape, streams = random_shape(seed)
    rack = StrictRack(shape, streams)
    rng = Random(seed + 1)
    steps = 0
    while not (rack.finished and steps >= 12 * with_calls) and rack.epoch < EPOCHS_MAX:
        rack.step()
        if with_calls and steps < 60 and rack.host.waiting_nid < 0:
            for _ in range(rng.randrange(10)):
                random_call(rack, rng)
        if steps == swap_at:
            rack.swap()
        steps += 1
        assert steps < 4000, "steps without end"
    for program, stream in zip(rack.host.programs, streams, strict=True):
        if rack.finished and not program.killed:
            assert program.accesses_done == len(stream.packed)
    return rack


@pytest.mark.parametrize("seed", range(12))
def test_programs_alone(seed):
    whole = play(seed, False)
    again = play(seed, False, swap_at=seed)
    assert again.digest() == whole.digest()


@pytest.mark.parametrize("seed", [*range(100, 108), 135, 137, 206, 226])  # the last four found faults
def test_programs_and_system_calls(seed):
    whole = play(seed, True)
    again = play(seed, True, swap_at=seed % 13)
    assert again.digest() == whole.digest()
