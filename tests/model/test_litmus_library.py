"""Every file of the litmus library holds, under the default variant of each design; in the full part under all."""

from pathlib import Path

import pytest

from privmem.cluster.litmus import find_scripts, load_script, run_script
from privmem.scheduler.isolation import select_designs

LIBRARY = Path(__file__).parents[2] / "configs/litmus"
FILES = find_scripts([LIBRARY])


def reasons(path: Path, designs: str) -> list[str]:
    script = load_script(path)
    results = [run_script(script, design.name) for design in select_designs(designs)]
    return [f"[{result.design}] {reason}" for result in results for reason in result.reasons]


def test_the_library_is_as_large_as_it_should_be():
    assert len(FILES) >= 200


@pytest.mark.parametrize("path", FILES, ids=[str(p.relative_to(LIBRARY)) for p in FILES])
def test_it_holds(path):
    assert reasons(path, "all") == []


@pytest.mark.full
@pytest.mark.parametrize("path", FILES, ids=[str(p.relative_to(LIBRARY)) for p in FILES])
def test_it_holds_under_every_variant(path):
    assert reasons(path, "every") == []
