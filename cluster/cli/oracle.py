"""`privmem oracle FILE...`: replay what a real Linux answered, and find where the emulator answers otherwise."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from privmem.cluster.errors import TraceError
from privmem.cluster.oracle.recording import Program, parse_recording, read_recording
from privmem.cluster.oracle.replay import Verdict, replay

STATUS_DISAGREES = 1
STATUS_WRONG = 2
_STDIN = "-"
#: Characters of an answer that are printed; all of it is in --json.
_WIDTH = 160


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        type=Path,
        help="recording (JSON lines, plain or gzip); - is the standard input",
    )
    parser.add_argument("--validate", action="store_true", help="recount all state after every program")
    parser.add_argument("--json", action="store_true", help="print the verdicts as JSON")


def run(args: argparse.Namespace) -> int:
    """0 when all programs agree, 1 when one does not, 2 when a file is wrong or an op cannot be emulated.

    Files that are wrong are all told before anything runs.
    """
    programs = _read_all(args.files)
    verdicts = []
    for program in programs:
        verdict = replay(program, args.validate)
        verdicts.append(verdict)
        if not args.json:
            _print_failure(verdict)
    agreed = sum(verdict.agrees for verdict in verdicts)
    if args.json:
        print(json.dumps(_as_plain(verdicts), indent=2))
    else:
        _print_unknowns(verdicts)
        print(f"agreed {agreed} of {len(verdicts)} programs")
    if any(verdict.refused for verdict in verdicts):
        return STATUS_WRONG
    return 0 if agreed == len(verdicts) else STATUS_DISAGREES


def _read_all(files: list[Path]) -> list[Program]:
    programs: list[Program] = []
    problems: list[str] = []
    for file in files:
        try:
            if str(file) == _STDIN:
                programs += parse_recording(sys.stdin.buffer.read(), "<stdin>")
            else:
                programs += read_recording(file)
        except TraceError as error:
            problems.append(str(error))
    if problems:
        raise TraceError("\n".join(problems))
    return programs


def _print_failure(verdict: Verdict) -> None:
    program, found = verdict.program, verdict.disagreement
    where = f"{program.file}:{program.line}: "
    if verdict.refused:
        print(f"{where}program {program.name}: {verdict.refused}", file=sys.stderr)
    if found is not None:
        print(f"{where}program {program.name}, op {found.number}: {found.op}")
        start = _cut(found.expected, found.got)
        print(f"  expected: {_shown(found.expected, start)}")
        print(f"  got:      {_shown(found.got, start)}")


def _cut(one: str, other: str) -> int:
    """From where on two answers are shown: a little before they differ, if they are too long for a line."""
    if max(len(one), len(other)) <= _WIDTH:
        return 0
    same = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), 0)
    return max(0, same - _WIDTH // 4)


def _shown(text: str, start: int) -> str:
    end = start + _WIDTH
    return ("..." if start else "") + text[start:end] + ("..." if len(text) > end else "")


def _print_unknowns(verdicts: list[Verdict]) -> None:
    free = sum(bool(verdict.inodes) for verdict in verdicts)
    if free:
        print(
            f"unknown of the recording: in {free} programs that interleave and share memory, the first inode "
            "number (modulo 12) was inferred"
        )


def _as_plain(verdicts: list[Verdict]) -> dict[str, Any]:
    listed = []
    for verdict in verdicts:
        program, found = verdict.program, verdict.disagreement
        entry: dict[str, Any] = {"file": program.file, "line": program.line, "program": program.name}
        entry["agrees"] = verdict.agrees
        if found is not None:
            entry |= {"number": found.number, "op": found.op, "expected": found.expected, "got": found.got}
        if verdict.refused:
            entry["refused"] = verdict.refused
        if verdict.inodes:
            entry["first_inodes"] = {str(cpu): number for cpu, number in verdict.inodes}
        listed.append(entry)
    return {
        "agreed": sum(verdict.agrees for verdict in verdicts),
        "programs": len(verdicts),
        "verdicts": listed,
    }
