"""The reference page: up to date, and complete."""

from __future__ import annotations

from pathlib import Path

from privmem.cluster.config.base import Model
from privmem.cluster.config.describe import markdown
from privmem.cluster.config.models import Config
from privmem.cluster.config.shape import ChoiceShape, ListShape, MapShape, ModelShape, Shape, shape_of

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def models_below(shape: Shape) -> list[type[Model]]:
    """Every model that a configuration can hold."""
    if isinstance(shape, ModelShape):
        below = [model for info in shape.fields().values() for model in models_below(shape_of(info))]
        return [shape.model, *below]
    if isinstance(shape, ChoiceShape):
        return [model for member in shape.members.values() for model in models_below(member)]
    if isinstance(shape, ListShape):
        return [model for item in shape.items for model in models_below(item)]
    return models_below(shape.item) if isinstance(shape, MapShape) else []


def test_the_page_is_what_the_models_say() -> None:
    """When this fails: `privmem schema --markdown > docs/configuration.md`."""
    assert PAGE.read_text(encoding="utf-8") == markdown()


def test_every_field_of_every_model_is_on_the_page() -> None:
    """Looked up by model, so that a model without a section of its own shows."""
    sections = PAGE.read_text(encoding="utf-8").split("\n## ")
    for model in models_below(ModelShape(Config)):
        summary = " ".join((model.__doc__ or "").split())
        section = next(
            (text for text in sections if f"\n{summary} At `" in text or f"\n{summary}\n" in text), ""
        )
        for key, info in ModelShape(model).fields().items():
            assert info.description, f"{model.__name__}.{key} has no description"
            assert f"| `{key}` |" in section, f"{model.__name__}.{key}"
