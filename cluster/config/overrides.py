"""`--set path.to.field=value`: one value of the configuration, changed on the command line.

A path's steps are separated by dots; a number is an index of a list, and `[x]` picks the item of a list by
its `name` or `id`: `hosts.0.cpus`, `hosts[h0].processes[db].threads`, `hosts[h0].nodes[1].hop`. The value is
YAML on one line (`4GiB`, `[0, 1]`, `{kind: scan}`). Mappings on the way that are not there yet are made.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from privmem.cluster.config.fields import nearest, wrong
from privmem.cluster.config.tree import Problem, Tree, Unreadable, found, read_yaml

_STEP = re.compile(r"(?:^|\.)([A-Za-z0-9_-]+)|\[([^\[\]]+)\]")


@dataclass(frozen=True, slots=True)
class _Step:
    text: str
    #: Whether it stood in brackets: picks an item by its name or id.
    picks: bool


class _Refused(Exception):
    """The override cannot be applied; the text says why."""


def apply_override(root: Tree, text: str) -> Problem | None:
    """Apply one override to the tree, in place. Returns what is wrong with it, if anything is."""
    path, equals, value_text = text.partition("=")
    origin = f"--set {path.strip()}"
    if not equals:
        return Problem(0, wrong("no '='", "path.to.field=value"), origin=origin)
    try:
        steps = _steps(path.strip())
        _assign(root, steps, _value(value_text, origin), origin)
    except _Refused as error:
        return Problem(0, str(error), origin=origin)
    return None


def set_top(root: Tree, key: str, value: int | str, origin: str) -> None:
    """Set a field of the whole configuration that has an option of its own."""
    assert isinstance(root.value, dict)
    root.value[key] = Tree(0, value, origin=origin)


def unshared(tree: Tree) -> Tree:
    """A copy in which aliases no longer share what an override may change."""
    copy = Tree(tree.line, tree.value, tree.key_line, tree.origin, tree.weight, tree.height)
    if isinstance(tree.value, dict):
        copy.value = {key: unshared(item) for key, item in tree.value.items()}
    elif isinstance(tree.value, list):
        copy.value = [unshared(item) for item in tree.value]
    return copy


def _steps(path: str) -> list[_Step]:
    steps: list[_Step] = []
    end = 0
    for match in _STEP.finditer(path):
        if match.start() != end:
            break
        end = match.end()
        steps.append(_Step(match[1] or match[2], match[1] is None))
    if not steps or end != len(path) or steps[0].picks:
        raise _Refused(
            wrong(f"the path {path!r}", "names and numbers with dots between, and [name] for items")
        )
    return steps


def _value(text: str, origin: str) -> Tree:
    try:
        tree, problems = read_yaml(text.strip())
    except Unreadable as error:
        raise _Refused(error.problem.text) from None
    if problems:
        raise _Refused(problems[0].text)
    if tree is None:
        tree = Tree(0, None)
    tree = unshared(tree)
    _mark(tree, origin)
    return tree


def _mark(tree: Tree, origin: str) -> None:
    tree.line, tree.key_line, tree.origin = 0, 0, origin
    if isinstance(tree.value, dict | list):
        for item in tree.value.values() if isinstance(tree.value, dict) else tree.value:
            _mark(item, origin)


def _assign(root: Tree, steps: list[_Step], value: Tree, origin: str) -> None:
    tree = root
    done: list[str] = []
    for step in steps[:-1]:
        tree = _descend(tree, step, ".".join(done), origin)
        done.append(step.text)
    last, where = steps[-1], ".".join(done)
    if isinstance(tree.value, list):
        tree.value[_index(tree.value, last, where)] = value
    elif isinstance(tree.value, dict):
        tree.value[last.text] = value
    else:
        raise _Refused(wrong(f"{found(tree)} at {where}", "a mapping or a list, to go further down"))


def _descend(tree: Tree, step: _Step, where: str, origin: str) -> Tree:
    if isinstance(tree.value, list):
        return tree.value[_index(tree.value, step, where)]
    if not isinstance(tree.value, dict):
        raise _Refused(wrong(f"{found(tree)} at {where}", "a mapping or a list, to go further down"))
    below = tree.value.get(step.text)
    if below is None or below.value is None:
        below = Tree(0, {}, origin=origin)
        tree.value[step.text] = below
    return below


def _index(items: list[Tree], step: _Step, where: str) -> int:
    """Index of the item that a step picks."""
    if step.picks:
        names = [_name(item) for item in items]
        if step.text in names:
            return names.index(step.text)
        known = [name for name in names if name]
        if known:
            raise _Refused(
                wrong(f"no item {step.text!r} in {where}", ", ".join(known), nearest(step.text, known))
            )
    if not step.text.isdecimal() or int(step.text) >= len(items):
        allowed = f"0 to {len(items) - 1}" if items else "none, as the list is empty"
        raise _Refused(wrong(f"the index {step.text!r} in {where}", allowed))
    return int(step.text)


def _name(item: Tree) -> str:
    for key in ("name", "id"):
        tree = item.child(key)
        if tree is not None and isinstance(tree.value, str | int):
            return str(tree.value)
    return ""
