"""Reads recorded programs: JSON lines, plain or gzip, one program a line (docs/oracle.md).

A program is checked whole before it runs: a damaged line, a field that is missing, an op that is not known, or
an argument out of its range is an error with file, line and field. Nothing is skipped.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from privmem.cluster.errors import TraceError
from privmem.cluster.oracle.ops import Op, parse_op

_GZIP_MAGIC = b"\x1f\x8b"
_FIELDS = ("name", "kernel", "ops", "results")
#: Settings of `machine`: the type of each, and what it is on the machine of the first recordings.
#: `_ALLOWED` has the values that the emulated machine can be given.
SETTINGS: dict[str, int | bool | str] = {
    "read_ahead_kb": 0,
    "fault_around_bytes": 4096,
    "swap": "none",
    "page_cluster": 0,
    "slow_nodes": 0,
    "demotion_enabled": False,
}
_ALLOWED: dict[str, Collection[Any]] = {
    "read_ahead_kb": range(0, (1 << 20) + 1, 4),
    "fault_around_bytes": [4096 << order for order in range(10)],
    "swap": ("none", "ram", "disk"),
    "page_cluster": range(32),
    "slow_nodes": range(3),  # the others have the CPUs
}
#: Mistakes that one message lists.
_PROBLEMS_MAX = 20


@dataclass(frozen=True, slots=True)
class Program:
    """One recorded program: what was called, and what the kernel answered."""

    file: str
    line: int
    name: str
    kernel: str  # version, such as 6.1.176
    ops: tuple[Op, ...]
    results: tuple[str, ...]
    #: Settings of the machine that are not the usual ones.
    machine: Mapping[str, int | bool | str]


def read_recording(path: Path) -> list[Program]:
    """All programs of a file. Raises TraceError with one line for each mistake."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror or error}") from None
    return parse_recording(content, str(path))


def parse_recording(content: bytes, path: str) -> list[Program]:
    """The same of bytes, plain or gzip, that came from `path`."""
    programs: list[Program] = []
    problems: list[str] = []
    for number, line in enumerate(_text(content, path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            programs.append(_program(path, number, line))
        except ValueError as error:
            problems.extend(f"{path}:{number}: {text}" for text in str(error).splitlines())
    if not programs and not problems:
        problems.append(f"{path}: holds no program")
    if len(problems) > _PROBLEMS_MAX:
        problems[_PROBLEMS_MAX:] = [f"{path}: and {len(problems) - _PROBLEMS_MAX} more mistakes"]
    if problems:
        raise TraceError("\n".join(problems))
    return programs


def _text(content: bytes, path: str) -> str:
    try:
        if content.startswith(_GZIP_MAGIC):
            content = gzip.decompress(content)
        return content.decode("utf-8-sig")
    except (gzip.BadGzipFile, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise TraceError(f"{path}: cannot be read: {error}") from None


def _program(path: str, number: int, line: str) -> Program:
    """Raises ValueError with one line for each mistake."""
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise ValueError(f"no JSON: {error}") from None
    except RecursionError:
        raise ValueError("no JSON that can be read: nested too deeply") from None
    if not isinstance(fields, dict):
        raise ValueError(f"expected an object with {', '.join(_FIELDS)}, found {_kind(fields)}")
    problems = [f"{key}: missing" for key in _FIELDS if key not in fields]
    allowed = (*_FIELDS, "machine")
    problems += [
        f"{key}: no such field; allowed: {', '.join(allowed)}" for key in fields if key not in allowed
    ]
    for key in ("name", "kernel"):
        if key in fields and not isinstance(fields[key], str):
            problems.append(f"{key}: expected a string, found {_kind(fields[key])}")
        elif not _is_text(fields.get(key, "")):
            problems.append(f"{key}: half a character (a lone surrogate)")
    for key in ("ops", "results"):
        if key in fields:
            problems += _check_strings(key, fields[key])
    problems += _check_machine(fields.get("machine", {}))
    if problems:
        raise ValueError("\n".join(problems))
    if len(fields["ops"]) != len(fields["results"]):
        raise ValueError(
            f"results: {len(fields['results'])} for {len(fields['ops'])} ops, expected one for each"
        )
    ops: list[Op] = []
    for at, text in enumerate(fields["ops"]):
        try:
            ops.append(parse_op(text))
        except ValueError as error:
            problems.append(f"ops[{at}]: program {fields['name']}: {error}")
    if problems:
        raise ValueError("\n".join(problems))
    ops_of, results = tuple(ops), tuple(fields["results"])
    machine = fields.get("machine", {})
    return Program(path, number, fields["name"], fields["kernel"], ops_of, results, machine)


def _check_machine(machine: Any) -> list[str]:
    if not isinstance(machine, dict):
        return [f"machine: expected an object, found {_kind(machine)}"]
    problems = []
    for key, value in machine.items():
        if key not in SETTINGS:
            problems.append(f"machine.{key}: no such setting; allowed: {', '.join(SETTINGS)}")
        elif type(value) is not type(SETTINGS[key]):
            problems.append(f"machine.{key}: expected {_kind(SETTINGS[key])}, found {_kind(value)}")
        elif key in _ALLOWED and value not in _ALLOWED[key]:
            problems.append(f"machine.{key}: found {value!r}; allowed: {_listed(_ALLOWED[key])}")
    return problems


def _listed(values: Collection[Any]) -> str:
    if isinstance(values, range):
        step = f" in steps of {values.step}" if values.step > 1 else ""
        return f"{values[0]} to {values[-1]}{step}"
    return ", ".join(map(str, values))


def _is_text(value: str) -> bool:
    """Not with a half of a pair of surrogates, which JSON can have but no output can."""
    return not any("\ud800" <= character <= "\udfff" for character in value)


def _check_strings(key: str, value: Any) -> list[str]:
    if not isinstance(value, list):
        return [f"{key}: expected a list of strings, found {_kind(value)}"]
    problems = []
    for at, entry in enumerate(value):
        if not isinstance(entry, str):
            problems.append(f"{key}[{at}]: expected a string, found {_kind(entry)}")
        elif not _is_text(entry):
            problems.append(f"{key}[{at}]: half a character (a lone surrogate)")
    return problems


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
