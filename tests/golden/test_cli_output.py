"""What `privmem topo` and `privmem validate` print."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from privmem.cluster.cli import main

HERE = Path(__file__).parent


@pytest.mark.parametrize("name", ["small", "equal_hosts"])
def test_topo(name: str, golden: Callable[[str, str], None], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["topo", str(HERE / f"{name}.yaml")]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    golden(f"topo_{name}.txt", captured.out)


def test_validate_of_a_broken_file(
    golden: Callable[[str, str], None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(HERE)
    assert main(["validate", "small.yaml", "many_mistakes.yaml"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "small.yaml: ok\n"
    golden("validate_many_mistakes.txt", captured.err)
