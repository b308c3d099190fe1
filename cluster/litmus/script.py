"""Reading litmus files: a title, a machine, steps. Every mistake is found before anything runs."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from privmem.cluster.config.tree import Problem, Tree, Unreadable, found, read_yaml
from privmem.cluster.errors import ConfigError
from privmem.cluster.litmus import expectations, steps
from privmem.cluster.litmus.grammar import Misread, nearest
from privmem.cluster.litmus.machine import Machine, Reader
from privmem.cluster.litmus.machines import FOLDER, SUFFIX, load_machine, machine_files, problem_error
from privmem.cluster.litmus.value_kinds import check_kind
from privmem.cluster.litmus.values import Names
from privmem.scheduler.isolation import select_designs

_KEYS = ("title", "says", "case", "designs", "machine", "processes", "steps")
#: Actors that are no process.
KERNEL, ADMIN, DRIVER = "kernel", "admin", "driver"
STEPS_MAX = 2000


@dataclass(frozen=True, slots=True)
class Step:
    """One step: somebody does something, or something must hold."""

    line: int
    actor: str
    text: str
    call: steps.Call | None
    #: What the step itself must come to; None: it must succeed.
    outcome: Tree | None
    #: What must hold (a step without an actor).
    claims: tuple[expectations.Claim, ...] = ()


@dataclass(frozen=True, slots=True)
class Script:
    """A litmus file that makes sense."""

    path: str
    title: str
    says: str
    cases: tuple[str, ...]
    designs: tuple[str, ...]
    machine: Machine
    #: Process -> (cpu, cgroup).
    processes: dict[str, tuple[int, str]]
    steps: tuple[Step, ...]


def load_script(path: str | Path) -> Script:
    """Read a file. Raises ConfigError with all that is wrong with it, one line each."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: found bytes that are not UTF-8; allowed: text") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    return parse_script(text, str(path))


def parse_script(text: str, path: str) -> Script:
    """Read the text of a file."""
    try:
        tree, problems = read_yaml(text)
    except Unreadable as unreadable:
        raise problem_error(path, [_hinted(unreadable.problem, text)]) from None
    reader = _Reader(path, problems)
    script = reader.read(tree)
    if reader.problems or script is None:
        raise problem_error(path, reader.problems)
    return script


def _hinted(problem: Problem, text: str) -> Problem:
    """What is often behind text that is no YAML: `[` in a flow mapping (`{pages of mem[0:4]: ...}`)."""
    lines = text.splitlines()
    line = lines[problem.line - 1] if 0 < problem.line <= len(lines) else ""
    if "{" in line and "[" in line[line.index("{") :]:
        hint = '; in braces, quote a subject that has brackets: {"pages of mem[0:4]": {P: 4}}'
    elif "\t" in line:
        hint = "; indent with blanks, not with tabs"
    elif "<block end>" in problem.text or "mapping values" in problem.text:
        hint = (
            "; steps begin with `- ` below each other, the `expect` of a step stands below the first letter of"
            " its actor, and text that holds `: ` is quoted"
        )
    else:
        return problem
    return replace(problem, text=problem.text + hint)


def find_scripts(paths: Sequence[str | Path]) -> list[Path]:
    """The files meant by files and folders, by name; hidden ones and those below `machines` are left out.

    Raises ConfigError for a path that is not there, and for a folder without a file.
    """
    chosen: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            below = [
                p
                for p in sorted(path.rglob(f"*{SUFFIX}"))
                if FOLDER not in p.relative_to(path).parts[:-1] and not p.name.startswith(".")
            ]
            if not below:
                raise ConfigError(f"{path}: holds no litmus test (*{SUFFIX})")
            chosen += below
        elif path.exists():
            chosen.append(path)
        else:
            raise ConfigError(f"{path}: no such file or folder")
    return list(dict.fromkeys(chosen))


#: Keys of files of other kinds -> what these are.
_OTHER_KINDS = {
    "hosts": "a configuration of a run, which `privmem run` takes",
    "nodes": "a machine, which a litmus test names (`machine: NAME`)",
}


@dataclass(slots=True)
class _Reader:
    path: str
    problems: list[Problem]
    names: Names = field(default_factory=lambda: Names({}))

    def read(self, tree: Tree | None) -> Script | None:
        if tree is None or not isinstance(tree.value, dict):
            self._wrong(tree, "", found(tree), "a mapping with title, machine and steps")
            return None
        top = tree.value
        other = [told for key, told in _OTHER_KINDS.items() if key in top and "steps" not in top]
        if other:
            self._wrong(tree, "", other[0], "a litmus test: title, machine, steps")
            return None
        for key, below in top.items():
            if key not in _KEYS:
                allowed = ", ".join(_KEYS) + nearest(key, _KEYS)
                self.problems.append(Problem(below.key_line, f"found {key!r}; allowed: {allowed}"))
        title = self._text(top.get("title"), "title")
        if not title:
            self._wrong(top.get("title") or tree, "title", "nothing", "one sentence")
        machine = self._machine(top.get("machine"), tree)
        designs = self._designs(top.get("designs"))
        if machine is None:
            return None
        self.names = Names(
            machine.nids, set(machine.files), cgroups=set(machine.cgroups), devices=set(machine.cram)
        )
        processes = self._processes(top.get("processes"), machine)
        listed = self._steps(top.get("steps"), tree)
        cases = top.get("case")
        found_cases = (
            tuple(map(str, cases.plain() if isinstance(cases.value, list) else [cases.value]))
            if cases
            else ()
        )
        says = self._text(top.get("says"), "says")
        return Script(self.path, title, says, found_cases, designs, machine, processes, tuple(listed))

    def _text(self, tree: Tree | None, key: str) -> str:
        if tree is None:
            return ""
        if isinstance(tree.value, dict | list):
            self._wrong(tree, key, found(tree), "text")
            return ""
        return str(tree.value)

    def _machine(self, tree: Tree | None, whole: Tree) -> Machine | None:
        if tree is None:
            tree = Tree(whole.line, "standard")
        if isinstance(tree.value, str):
            known = machine_files(Path(self.path))
            if tree.value in known:
                return load_machine(known[tree.value])
            hint = nearest(tree.value, list(known))
            self._wrong(tree, "machine", found(tree), f"a machine ({', '.join(known)}), or a mapping{hint}")
            return None
        reader = Reader()
        machine = reader.read(tree)
        self.problems += reader.problems
        return machine

    def _designs(self, tree: Tree | None) -> tuple[str, ...]:
        text = "all"
        if tree is not None:
            if isinstance(tree.value, dict) or not tree.value:
                self._wrong(tree, "designs", found(tree), "all, or a list of designs")
                return ()
            text = ",".join(map(str, tree.plain())) if isinstance(tree.value, list) else str(tree.value)
        try:
            chosen = select_designs(text)
        except KeyError as error:
            self.problems.append(Problem(tree.line if tree else 1, str(error.args[0]), "designs"))
            return ()
        # A test for all holds for every variant that somebody asks for.
        return ("every",) if text in ("all", "every") else tuple(d.name for d in chosen)

    def _processes(self, tree: Tree | None, machine: Machine) -> dict[str, tuple[int, str]]:
        if tree is None:
            return {}
        cpus = [cpu for node in machine.nodes.values() for cpu in node.cpus]
        chosen: dict[str, tuple[int, str]] = {}
        for name, below in (tree.value if isinstance(tree.value, dict) else {}).items():
            entry = below.plain() if isinstance(below.value, dict) else {}
            cpu, group = entry.get("cpu", cpus[0]), entry.get("cgroup", "")
            if not isinstance(below.value, dict) or set(entry) - {"cpu", "cgroup"}:
                self._wrong(below, f"processes.{name}", found(below), "a mapping with cpu and cgroup")
            elif cpu not in cpus:
                self._wrong(below, f"processes.{name}.cpu", str(cpu), f"a CPU of the machine ({cpus})")
            elif group and group not in self.names.cgroups:
                known = ", ".join(sorted(self.names.cgroups)) or "none is in machine.cgroups"
                self._wrong(below, f"processes.{name}.cgroup", repr(group), known)
            else:
                chosen[name] = (cpu, group)
            self.names.processes.add(name)
        return chosen

    def _steps(self, tree: Tree | None, whole: Tree) -> list[Step]:
        if tree is None or not isinstance(tree.value, list) or not 0 < len(tree.value) <= STEPS_MAX:
            self._wrong(tree or whole, "steps", found(tree), f"a list of 1 to {STEPS_MAX} steps")
            return []
        listed = []
        for item in tree.value:
            step = self._step(item)
            if step is not None:
                listed.append(step)
        return listed

    def _step(self, tree: Tree) -> Step | None:
        if not isinstance(tree.value, dict) or not tree.value:
            self._wrong(tree, "steps", found(tree), "`ACTOR: command`, or `expect:`")
            return None
        entries = dict(tree.value)
        expect = entries.pop("expect", None)
        if not entries:
            assert expect is not None
            return self._claims(tree, expect)
        if expect is not None and expect.value is None:
            self._wrong(expect, "expect", "nothing", "what must hold, indented deeper than `expect:`")
            return None
        for word in entries:
            if word not in self.names.processes and get_close_matches(word, ["expect"], 1, 0.8):
                self._wrong(tree, "steps", repr(word), "`ACTOR: command`, `expect:`; did you mean 'expect'?")
                return None
        if len(entries) > 1:
            self._wrong(tree, "steps", f"{len(entries)} actors", "one actor a step; begin the next with `- `")
            return None
        ((actor, command),) = entries.items()
        if isinstance(command.value, dict | list) or command.value is None:
            self._wrong(command, actor, found(command), "one command line")
            return None
        text = str(command.value)
        if expect is not None:
            self.problems += expectations.check_outcome(expect, self.names.nodes)
        try:
            words = shlex.split(text)
            call = steps.parse(actor, words, self.names)
        except (ValueError, Misread) as error:
            self.problems.append(Problem(command.line, f"{error}", f"{actor}: {text}"))
            return None
        return Step(command.line, actor, text, call, expect)

    def _claims(self, tree: Tree, expect: Tree) -> Step | None:
        if not isinstance(expect.value, dict) or not expect.value:
            self._wrong(expect, "expect", found(expect), "a mapping of what must hold")
            return None
        claims = []
        for subject, value in expect.value.items():
            try:
                claim = expectations.parse(subject, value, self.names)
                check_kind(claim.subject, value)
                claims.append(claim)
            except Misread as error:
                self.problems.append(Problem(value.key_line, f"{error}", f"expect: {subject}"))
        return Step(tree.line, "", "expect", None, None, tuple(claims))

    def _wrong(self, tree: Tree | None, path: str, what: str, allowed: str) -> None:
        line = tree.line if tree is not None else 1
        self.problems.append(Problem(line, f"found {what}; allowed: {allowed}", path))


def plain_steps(script: Script) -> list[dict[str, Any]]:
    """The steps as `--json` shows them."""
    return [{"line": step.line, "actor": step.actor, "text": step.text} for step in script.steps]
