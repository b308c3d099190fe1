"""Replays recorded programs on the emulated machine, and compares every answer.

One thing that answers depend on is not in a recording. Interleaving over shared anonymous memory begins at the
object's inode number (`shmem_get_policy` and `offset_il_node` of Linux 6.1), and a kernel goes on counting
inodes from boot to shutdown, a counter for each CPU: so the first number that a program gets depends on how
many shared mappings were made before it. That number is an unknown of each program that makes shared mappings
and uses interleaving. All that it can change repeats after 12 (one to four nodes take turns), so twelve
values are tried, and the program agrees when with *one* of them every answer is the recorded one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from privmem.cluster.oracle.machine import Machine, NotEmulated, check_emulated, linux_of
from privmem.cluster.oracle.ops import Op
from privmem.cluster.oracle.recording import Program
from privmem.nodeagent.host.audit import validate_memory
from privmem.scheduler.mempolicy import INTERLEAVES

#: Least common multiple of the numbers of nodes that can take turns on a machine of four.
INODE_PERIOD = 12
_MODE_MASK = 0xFF


@dataclass(frozen=True, slots=True)
class Disagreement:
    """The first answer of a program that differs."""

    number: int  # of the op, from 0
    op: str
    expected: str
    got: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a program."""

    program: Program
    disagreement: Disagreement | None = None
    #: Why the emulator could not run it, with the op.
    refused: str = ""
    #: For each CPU on which shared mappings were made: the first inode number there, where it was free.
    inodes: tuple[tuple[int, int], ...] = ()

    @property
    def agrees(self) -> bool:
        return self.disagreement is None and not self.refused


def replay(program: Program, validate: bool = False) -> Verdict:
    """Run a program under each value of its unknowns until one gives every recorded answer.

    If none does, the verdict is that of the value which goes furthest. `validate` recounts all state of the
    machine after the program, and raises InvariantError.
    """
    try:
        check_emulated(program)
    except NotEmulated as error:
        return Verdict(program, refused=f"not emulated: {error}")
    furthest: Verdict | None = None
    for inodes in _candidates(program):
        verdict = _replay_with(program, inodes, validate)
        if verdict.disagreement is None:
            return verdict
        if furthest is None or verdict.disagreement.number > _reach(furthest):
            furthest = verdict
    assert furthest is not None  # there is at least one candidate
    return furthest


def _reach(verdict: Verdict) -> int:
    return verdict.disagreement.number if verdict.disagreement else -1


def _candidates(program: Program) -> Iterator[tuple[tuple[int, int], ...]]:
    """Values for the unknowns: for each CPU, its first inode number. One empty tuple when there is none."""
    cpus: list[int] = []
    if any(map(_interleaves, program.ops)):
        cpu = 0
        for op in program.ops:
            if op.name == "cpu":
                cpu = int(op.args[0])
            elif op.name == "mmap" and op.args[-1] == "sa" and cpu not in cpus:
                cpus.append(cpu)
    for numbers in product(range(1, INODE_PERIOD + 1), repeat=len(cpus)):
        yield tuple(zip(cpus, numbers, strict=True))


def _interleaves(op: Op) -> bool:
    mode = {"setpol": 0, "mbind": 3}.get(op.name)
    return mode is not None and int(op.args[mode]) & _MODE_MASK in INTERLEAVES


def _replay_with(program: Program, inodes: tuple[tuple[int, int], ...], validate: bool) -> Verdict:
    machine = Machine(dict(inodes), linux_of(program), program.machine)
    for number, (op, expected) in enumerate(zip(program.ops, program.results, strict=True)):
        try:
            got = machine.run(op)
        except NotEmulated as error:
            return Verdict(
                program, refused=f"ops[{number}]: {op.text!r}: not emulated: {error}", inodes=inodes
            )
        except Exception as error:  # a fault of ours: this program's, and the others are still to be heard
            got = f"{type(error).__name__}: {error}"
        if got != expected:
            return Verdict(program, Disagreement(number, op.text, expected, got), inodes=inodes)
    if validate:
        validate_memory(machine.memory)
    return Verdict(program, inodes=inodes)
