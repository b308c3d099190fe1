"""Turns of interleaving that an unmapping takes. The answers are those of a real Linux 6.1 to the same ops."""

from __future__ import annotations

import pytest

from privmem.cluster.oracle.machine import Machine
from privmem.cluster.oracle.ops import parse_op


def turns(*ops: str) -> int:
    """Turns that the last op took of a task that interleaves over four nodes."""
    machine = Machine()
    for op in ("cpu 0", "drop", *ops[:-1], "setpol 3 0,1,2,3", ops[-1]):
        machine.run(parse_op(op))
    return int(machine.run(parse_op("query 1")).split()[2])


@pytest.mark.parametrize(
    ("pages", "how", "taken"),
    [
        (7, "r", 0),
        (8, "r", 1),
        (128, "r", 1),
        (517, "r", 1),
        (518, "r", 2),
        (1027, "r", 2),
        (1028, "r", 3),
        (517, "w", 1),
        (1029, "w", 1),
    ],
)
def test_pages_of_a_file(pages: int, how: str, taken: int) -> None:
    """Room for 8, then for 510 in each page; dirty ones are freed with their page table, so that no more gather."""
    ops = ("fmap 0 3 2048 fs", f"faults 0 0 {pages} {how}", f"madvise 0 0 {pages} 4")
    assert turns(*ops) == taken


@pytest.mark.parametrize(
    ("kind", "how", "pages", "taken"),
    [
        ("pa", "w", 520, 2),
        ("pa", "w", 1100, 3),
        ("pa", "r", 1100, 0),
        ("sa", "w", 1100, 1),
        ("sa", "w", 7, 0),
    ],
    ids=["own", "more", "zero pages are not freed", "shared", "few"],
)
def test_anonymous_pages(kind: str, how: str, pages: int, taken: int) -> None:
    ops = (f"mmap 0 1200 {kind}", f"touch 0 0 {pages} {how}")
    assert turns(*ops, f"madvise 0 0 {pages} 4") == taken


def test_each_vma_is_gathered_for_itself_but_by_munmap() -> None:
    ops = ("mmap 0 64 pa", "mbind 0 32 32 2 1 0", "touch 0 0 64 w")
    assert turns(*ops, "madvise 0 0 64 4") == 2
    assert turns(*ops, "munmap 0 0 64") == 1
