"""What a place of the configuration may hold, read off the models: in words, as a stand-in value, and by
path.

Messages, the documentation and the repair of broken files (`problems.py`) all ask here, so that the models
are the only place where a field is stated.
"""

from __future__ import annotations

import types
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from privmem.cluster.config.base import Model
from privmem.cluster.config.fields import Leaf

Path = tuple[str | int, ...]


class Shape:
    """Base of what a place may hold."""

    def describe(self) -> str:
        """In words, as messages say it after `allowed:`."""
        raise NotImplementedError

    def filler(self) -> Any:
        """Some value that is allowed there."""
        raise NotImplementedError

    def at(self, step: str | int) -> Shape | None:
        """The shape one step below, or None when there is none."""
        return None


@dataclass(frozen=True, slots=True)
class LeafShape(Shape):
    """A value with its own type, see `fields.py`."""

    leaf: Leaf

    def describe(self) -> str:
        return self.leaf.describe()

    def filler(self) -> Any:
        return self.leaf.filler()


@dataclass(frozen=True, slots=True)
class WordShape(Shape):
    """One of a few words."""

    words: tuple[str, ...]

    def describe(self) -> str:
        return ", ".join(self.words)

    def filler(self) -> Any:
        return self.words[0]


@dataclass(frozen=True, slots=True)
class PlainShape(Shape):
    """`true` or `false`, or a text."""

    python: type

    def describe(self) -> str:
        return "true, false" if self.python is bool else "a name"

    def filler(self) -> Any:
        return self.python()


@dataclass(frozen=True, slots=True)
class ListShape(Shape):
    """A list, of any length or with one shape for each place."""

    items: tuple[Shape, ...]
    fixed: bool
    length_min: int = 0
    length_max: int | None = None

    def describe(self) -> str:
        if self.fixed:
            return "a list [" + ", ".join(item.describe() for item in self.items) + "]"
        length = f" of {self.length_min} to {self.length_max} items" if self.length_max else ""
        return f"a list{length}, each {self.items[0].describe()}"

    def filler(self) -> Any:
        items = self.items if self.fixed else self.items * self.length_min
        return tuple(item.filler() for item in items)

    def at(self, step: str | int) -> Shape | None:
        if not isinstance(step, int):
            return None
        if not self.fixed:
            return self.items[0]
        return self.items[step] if step < len(self.items) else None


@dataclass(frozen=True, slots=True)
class MapShape(Shape):
    """A mapping of names that the user chooses."""

    key: Shape
    item: Shape

    def describe(self) -> str:
        return f"a mapping of names, each to {self.item.describe()}"

    def filler(self) -> Any:
        return {}

    def at(self, step: str | int) -> Shape | None:
        return self.item


@dataclass(frozen=True, slots=True)
class ModelShape(Shape):
    """A mapping with known fields."""

    model: type[Model]

    def fields(self) -> dict[str, FieldInfo]:
        """Fields by YAML key."""
        return {info.alias or name: info for name, info in self.model.model_fields.items()}

    def describe(self) -> str:
        return "a mapping with " + ", ".join(self.fields())

    def filler(self) -> Any:
        return {key: shape_of(info).filler() for key, info in self.fields().items() if info.is_required()}

    def at(self, step: str | int) -> Shape | None:
        info = self.fields().get(str(step))
        return None if info is None else shape_of(info)


@dataclass(frozen=True, slots=True)
class ChoiceShape(Shape):
    """A mapping whose fields depend on one of them, the tag (`kind`, `class`)."""

    tag_key: str
    members: dict[str, ModelShape]

    def describe(self) -> str:
        return f"a mapping with {self.tag_key}: {', '.join(self.members)}"

    def filler(self) -> Any:
        return next(iter(self.members.values())).filler()

    def at(self, step: str | int) -> Shape | None:
        """One step into a choice is the tag that pydantic puts into its error paths."""
        return self.members.get(str(step))


def shape_of(info: FieldInfo) -> Shape:
    """Shape of a model's field."""
    return _shape(info.annotation, tuple(info.metadata), info.discriminator)


def _shape(annotation: Any, metadata: tuple[Any, ...], discriminator: Any = None) -> Shape:
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        return _shape(inner, (*more, *metadata), discriminator)
    for item in metadata:
        if isinstance(item, Leaf):
            return LeafShape(item)
        if isinstance(item, FieldInfo) and item.discriminator:
            discriminator = item.discriminator
    if get_origin(annotation) in (Union, types.UnionType):
        members = [arg for arg in get_args(annotation) if arg is not type(None)]
        return (
            _shape(members[0], metadata, discriminator)
            if len(members) == 1
            else _choice(members, discriminator)
        )
    if get_origin(annotation) is Literal:
        return WordShape(tuple(get_args(annotation)))
    if get_origin(annotation) is tuple:
        return _list(get_args(annotation), metadata)
    if get_origin(annotation) is dict:
        key, item = get_args(annotation)
        return MapShape(_shape(key, ()), _shape(item, ()))
    if isinstance(annotation, type) and issubclass(annotation, Model):
        return ModelShape(annotation)
    return PlainShape(annotation)


def _list(args: tuple[Any, ...], metadata: tuple[Any, ...]) -> ListShape:
    if args[-1] is not Ellipsis:
        return ListShape(tuple(_shape(arg, ()) for arg in args), fixed=True)
    bounds = {"min_length": 0, "max_length": None}
    for item in metadata:
        for bound in bounds:
            bounds[bound] = getattr(item, bound, bounds[bound])
    return ListShape((_shape(args[0], ()),), False, bounds["min_length"] or 0, bounds["max_length"])


def _choice(members: list[Any], discriminator: Any) -> ChoiceShape:
    by_tag: dict[str, ModelShape] = {}
    tag_key = ""
    for member in members:
        info = member.model_fields[discriminator]
        tag_key = info.alias or discriminator
        for tag in get_args(info.annotation):
            by_tag[tag] = ModelShape(member)
    return ChoiceShape(tag_key, by_tag)
