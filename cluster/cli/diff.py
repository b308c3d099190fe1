"""`privmem diff DIR1 DIR2`: find the first round and participant in which two runs differ."""

from __future__ import annotations

import argparse
from pathlib import Path

from privmem.cluster.progress import span
from privmem.cluster.rounds import RoundsLog, first_difference
from privmem.cluster.runner import ROUNDS_FILE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("first", metavar="DIR1", type=Path, help="results folder of a run")
    parser.add_argument(
        "second", metavar="DIR2", type=Path, help="results folder of the run to hold it against"
    )


def run(args: argparse.Namespace) -> int:
    """0 when all rounds are equal, 1 when one differs."""
    first, second = (RoundsLog.read(folder / ROUNDS_FILE) for folder in (args.first, args.second))
    if first.identity != second.identity:
        print("note: the runs are not of the same configuration, seed and versions")
    found = first_difference(first, second)
    if found is None:
        print(f"equal: {len(first.rounds)} rounds of {len(first.names)} participants")
        return 0
    what = found.what.replace("FIRST", str(args.first)).replace("SECOND", str(args.second))
    who = f"{found.participant}: " if found.participant else ""
    at = f"round {found.number}, epoch {found.epoch}, virtual time {span(found.horizon_ns)}"
    print(f"first difference: {at} ({found.horizon_ns} ns)")
    print(f"{who}{what}")
    return 1
