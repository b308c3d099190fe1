"""Every configuration that comes with privmem loads, and says on its own page what it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from privmem.cluster.config import load_config

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_it_loads_and_bears_its_name(path: Path) -> None:
    if "recordings/" in path.read_text() and not any(CONFIGS.glob("recordings/*.pmtrace")):
        pytest.skip("there are no recordings yet")
    assert load_config(path).name == path.stem
    assert path.read_text().startswith("# ")


def test_there_are_some() -> None:
    assert {"quickstart", "synthetic"} <= {path.stem for path in CONFIGS.glob("*.yaml")}
