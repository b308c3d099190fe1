"""Pydantic's errors as one line each, and a stand-in for the broken parts so that the rest can be checked
too.

Every line reads `path: found X; allowed: Y; did you mean Z?`. A mistake in one field must not hide a
mistake in another: `repair` puts some allowed value in each broken place, and the checks that span fields
(`checks.py`) run on the repaired configuration; what they say about a broken place is dropped.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from privmem.cluster.config.fields import nearest, wrong
from privmem.cluster.config.models import Config
from privmem.cluster.config.shape import ChoiceShape, MapShape, ModelShape, Path, PlainShape, Shape, WordShape
from privmem.cluster.config.tree import Problem, Tree, found


@dataclass(frozen=True, slots=True)
class Broken:
    """A place that pydantic refused."""

    path: Path
    text: str
    #: What may stand there; None for a field that must not be there at all.
    shape: Shape | None
    #: For a field that is missing: True. Then its line is that of the mapping around it.
    missing: bool = False
    #: For a field that must not be there: the place that it probably misspells.
    meant: Path = ()

    @property
    def spoiled(self) -> Path | None:
        """The place that nothing may be concluded from, if there is one."""
        if isinstance(self.shape, ChoiceShape) and self.path and self.path[-1] == self.shape.tag_key:
            return self.path[:-1]
        return self.meant or (self.path if self.shape is not None else None)


def dotted(path: Path) -> str:
    """A path as messages print it and as `--set` takes it."""
    return ".".join(str(step) for step in path)


def broken_places(error: ValidationError, root: Tree) -> list[Broken]:
    """What pydantic refused, one entry a place."""
    places: list[Broken] = []
    for item in error.errors(include_url=False, include_input=False):
        # Of a list whose items are wrong, pydantic also says that it is too short without them.
        tree = _tree_at(root, _locate(item["loc"])[0])
        if item["type"] == "too_short" and tree is not None and isinstance(tree.value, list) and tree.value:
            continue
        places.append(_broken(dict(item), root))
    return places


def problems_of(places: list[Broken], root: Tree) -> list[Problem]:
    """The problems of broken places. A misspelt required field is one mistake, not two."""
    meant = {place.meant for place in places}
    return [_problem(root, place) for place in places if not (place.missing and place.path in meant)]


def problem_at(root: Tree, path: Path, text: str) -> Problem:
    """A problem with the line, or the option, that its place comes from."""
    tree, line, origin = root, root.line, root.origin
    for step in path:
        below = tree.child(step)
        if below is None:
            break
        tree, line, origin = below, below.line, below.origin
    return Problem(line, text, dotted(path), origin)


def repair(plain: Any, places: Iterable[Broken]) -> Any:
    """The plain configuration with an allowed value, or nothing, in each broken place."""
    for place in places:
        plain = _replaced(plain, place.path, place.shape)
    return plain


def _problem(root: Tree, place: Broken) -> Problem:
    """The problem of a broken place. An unknown field stands at its key, which may be lines above its
    value.
    """
    problem = problem_at(root, place.path, place.text)
    tree = _tree_at(root, place.path)
    if place.shape is None and tree is not None and tree.key_line and not tree.origin:
        return Problem(tree.key_line, problem.text, problem.path, problem.origin)
    return problem


def _broken(item: dict[str, Any], root: Tree) -> Broken:
    path, shape, owner = _locate(item["loc"])
    tree = _tree_at(root, path)
    kind = item["type"]
    if kind == "extra_forbidden":
        known = list(owner.fields()) if isinstance(owner, ModelShape) else []
        hint = nearest(path[-1], known)
        meant = (*path[:-1], hint) if hint else ()
        return Broken(path, wrong("an unknown field", ", ".join(known), hint), None, meant=meant)
    if item["loc"] and item["loc"][-1] == "[key]":
        assert isinstance(owner, MapShape)
        text = wrong(f"the name {found(path[-1])}", owner.key.describe())
        return Broken(path, text, None, meant=path)
    assert shape is not None, f"no field of the models is at {item['loc']}"
    if kind == "missing":
        return Broken(path, wrong("nothing", shape.describe(), ""), shape, missing=True)
    if isinstance(shape, ChoiceShape) and tree is not None and isinstance(tree.value, dict):
        return _broken_tag(path, shape, tree)
    hint = str(item.get("ctx", {}).get("hint", ""))
    if not hint and tree is not None:
        hint = _hint(shape, tree.value)
    return Broken(path, wrong(found(tree), shape.describe(), hint), shape)


def _hint(shape: Shape, value: object) -> str:
    if isinstance(shape, WordShape):
        return nearest(value, list(shape.words))
    if isinstance(shape, PlainShape) and shape.python is bool:
        # Words of YAML 1.1.
        return {"yes": "true", "on": "true", "no": "false", "off": "false"}.get(str(value).lower(), "")
    return ""


def _broken_tag(path: Path, shape: ChoiceShape, tree: Tree) -> Broken:
    """A mapping whose `kind` or `class` is missing or unknown: nothing else in it can be judged."""
    tag = tree.child(shape.tag_key)
    words = list(shape.members)
    hint = nearest(tag.value, words) if tag is not None else ""
    text = wrong(found(tag) if tag is not None else "nothing", ", ".join(words), hint)
    return Broken((*path, shape.tag_key), text, shape)


def _locate(loc: tuple[str | int, ...]) -> tuple[Path, Shape | None, Shape]:
    """Path, shape and the shape around it of a pydantic error path, which also holds the tags of choices."""
    path: list[str | int] = []
    owner: Shape = ModelShape(Config)
    shape: Shape | None = owner
    for step in loc:
        if step == "[key]":
            break
        if shape is None:
            path.append(step)
            continue
        owner = shape
        if isinstance(shape, ChoiceShape):
            shape = shape.at(step)
            continue
        path.append(step)
        shape = shape.at(step)
    return tuple(path), shape, owner


def _tree_at(root: Tree, path: Path) -> Tree | None:
    tree: Tree | None = root
    for step in path:
        tree = tree.child(step) if tree is not None else None
    return tree


def _replaced(value: Any, path: Path, shape: Shape | None) -> Any:
    """`value` with the place at `path` filled, or removed when no shape is given."""
    if (
        isinstance(shape, ChoiceShape)
        and len(path) == 1
        and isinstance(value, dict)
        and path[0] == shape.tag_key
    ):
        return shape.filler()
    if not path:
        return shape.filler() if shape is not None else value
    step, rest = path[0], path[1:]
    if isinstance(value, dict) and isinstance(step, str):
        if not rest and shape is None:
            return {key: item for key, item in value.items() if key != step}
        return {**value, step: _replaced(value.get(step), rest, shape)}
    if isinstance(value, tuple) and isinstance(step, int):
        return tuple(_replaced(item, rest, shape) if n == step else item for n, item in enumerate(value))
    return value
