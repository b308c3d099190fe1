"""Running many litmus files, and the table that a reader sees."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from os.path import commonpath
from pathlib import Path

from privmem.cluster.litmus.runner import ERROR, FAILED, NOT_RUN, PASSED, Result, run_script
from privmem.cluster.litmus.script import Script

_MARKS = {PASSED: "ok", FAILED: "FAIL", NOT_RUN: "-", ERROR: "ERROR"}


def run_all(scripts: Sequence[Script], designs: Sequence[str], exitfirst: bool = False) -> list[Result]:
    """Every file under every design, in the order given."""
    results: list[Result] = []
    for script in scripts:
        for design in designs:
            result = run_script(script, design)
            if result.reasons:  # once more, with the stories of the pages
                result = run_script(script, design, story=True)
            result.world = None  # a kernel each would fill the memory
            results.append(result)
            if exitfirst and result.reasons:
                return results
    return results


def print_table(results: Sequence[Result], designs: Sequence[str], verbose: bool = False) -> None:
    """Files by designs, every failure's reason, and a line of sums."""
    by_file: dict[str, dict[str, Result]] = {}
    for result in results:
        by_file.setdefault(result.path, {})[result.design] = result
    base = _base(list(by_file))
    shown = {
        p: row
        for p, row in by_file.items()
        if verbose or len(by_file) <= 40 or any(r.reasons for r in row.values())
    }
    if shown:
        width = max(len(_short(path, base)) for path in shown)
        print("  ".join([" " * width, *designs]))
        for path, row in shown.items():
            marks = [(_MARKS[row[d].status] if d in row else "").ljust(len(d)) for d in designs]
            print("  ".join([_short(path, base).ljust(width), *marks]).rstrip())
    for path, row in by_file.items():
        _print_failures(path, row)
    counts = Counter(result.status for result in results)
    ran = sum(counts[status] for status in (PASSED, FAILED, ERROR))
    failed = counts[FAILED] + counts[ERROR]
    print(f"\n{len(by_file)} files under {len(designs)} designs: {counts[PASSED]} of {ran} held", end="")
    print(f", {failed} did not" if failed else "", end="")
    print(f" ({counts[NOT_RUN]} are not about the design)" if counts[NOT_RUN] else "")


def _print_failures(path: str, row: Mapping[str, Result]) -> None:
    """Why a file failed; designs under which the same went wrong in the same way are told together."""
    alike: dict[str, list[str]] = {}
    for design, result in row.items():
        lines = [f"\n{_MARKS[result.status]} {path} [{{designs}}] {result.title}"]
        for reason, story in zip(result.reasons, result.stories, strict=True):
            lines += [f"  {reason}", *(f"    | {line}" for line in story)]
        if result.reasons:
            alike.setdefault("\n".join(lines), []).append(design)
    for text, designs in alike.items():
        print(text.replace("{designs}", ", ".join(designs), 1))


def _base(paths: Sequence[str]) -> str:
    folders = [str(Path(path).parent) for path in paths]
    return commonpath(folders) if folders and len({Path(f).is_absolute() for f in folders}) == 1 else ""


def _short(path: str, base: str) -> str:
    return str(Path(path).relative_to(base)) if base and base != "." else path
