"""Which VMAs become one (`vma_merge`), as mremap shows it: it fails with EFAULT over more than one. The answers are
those of a real Linux 6.1 to the same ops.
"""

from __future__ import annotations

import errno

import pytest

from privmem.cluster.oracle.machine import Machine, vpn_of
from privmem.cluster.oracle.ops import parse_op


def run(*ops: str) -> list[str]:
    machine = Machine()
    return [machine.run(parse_op(op)) for op in ("cpu 0", *ops)][1:]


APART = f"mremap {-errno.EFAULT}"


@pytest.mark.parametrize(
    ("before", "between", "answer"),
    [
        ((), (), "mremap 0"),
        ((), ("touch 0 0 8 w",), APART),
        ((), ("touch 0 0 4 w",), "mremap 0"),
        ((), ("touch 0 4 4 w",), APART),
        (("touch 0 0 1 w",), ("touch 0 0 8 w",), "mremap 0"),
        ((), ("touch 0 0 8 r",), "mremap 0"),
    ],
    ids=["no page yet", "a page in each", "in the first", "in the second", "before the split", "zero pages"],
)
def test_parts_that_had_pages_apart_stay_apart(
    before: tuple[str, ...], between: tuple[str, ...], answer: str
) -> None:
    """`is_mergeable_anon_vma`, of one mapping that mbind cut in two and makes whole again. The second half joins
    the first unless it has an anon_vma and the first none, or another.
    """
    ops = ("mmap 0 8 pa", *before, "mbind 0 4 4 2 1 0", *between, "mbind 0 4 4 0 - 0", "mremap 0 2 4 1 0 4")
    assert run(*ops)[-1] == answer


def test_neighbours_that_differ_in_rights_share_an_anon_vma() -> None:
    """`find_mergeable_anon_vma` looks past the rights of access, but not past the policy."""
    split = ("mmap 0 8 pa", "protect 0 4 4 r", "touch 0 0 4 w", "protect 0 0 4 r", "protect 0 4 4 rw")
    assert run(*split, "touch 0 4 4 w", "protect 0 0 8 rw", "mremap 0 2 4 1 0 4")[-1] == "mremap 0"


def test_what_grew_is_one() -> None:
    """Slots of the page table elsewhere, and yet one VMA: it may move whole, and grow again."""
    ops = ("mmap 0 8 pa", "touch 0 0 8 w", "mremap 0 4 4 1 0 8", "touch 1 0 8 w", "mremap 1 0 8 2 0 12")
    assert run(*ops, "touch 2 0 12 w", "mremap 2 2 10 2 2 20")[2::2] == ["mremap 0", "mremap 0", "mremap 0"]


def test_memory_without_a_page_takes_the_page_numbers_of_its_new_place() -> None:
    """`copy_vma`: interleaving goes on as it was only where there was a private page before the move."""
    ops = ("mbind 1 1 8 3 0,1 0", "touch 1 1 8 w", "where 1 1 8")
    moved = ("mmap 0 8 pa", "mremap 0 0 8 1 1 8")
    assert run(*moved, *ops)[-1] == "where 0 1*1,0*1,1*1,0*1,1*1,0*1,1*1,0*1"
    touched = ("mmap 0 8 pa", "touch 0 0 1 w", "madvise 0 0 8 4", "mremap 0 0 8 1 1 8")
    assert run(*touched, *ops)[-1] == "where 0 0*1,1*1,0*1,1*1,0*1,1*1,0*1,1*1"


def test_a_child_has_an_anon_vma_for_each_vma() -> None:
    machine = Machine()
    for op in ("mmap 0 8 pa", "touch 0 0 8 w", "mmap 1 8 pa", "mmap 2 8 pa", "touch 2 0 8 w", "hold"):
        machine.run(parse_op(op))
    assert machine.held is not None
    assert [[v.anon_vma for v in task.mm.vmas] for task in (machine.task, machine.held)] == [
        [1, 0, 2],
        [-1, 0, -3],
    ]


def test_it_survives_a_checkpoint() -> None:
    machine = Machine()
    for op in ("mmap 0 8 pa", "mbind 0 4 4 2 1 0", "touch 0 0 8 w"):
        machine.run(parse_op(op))
    mm = machine.task.mm
    before = list(mm.vmas)
    mm.restore(mm.to_spec())
    assert (mm.vmas, [v.anon_vma for v in before]) == (before, [1, 2])
    assert [v.start for v in mm.pieces(before[0])] == [vpn_of(0)]
