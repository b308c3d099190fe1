"""Every mistake that a configuration can hold, with the whole message that it gets.

`broken_configurations.txt` is the table. A case starts with `== NAME`; its `-` lines are looked up in `small.yaml`
and its `+` lines put in their place (several times, if it has several such pairs); `>` lines are the messages.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import pytest

from privmem.cluster.config import load_config
from privmem.cluster.errors import ConfigError

HERE = Path(__file__).parent
TABLE = "broken_configurations.txt"


@dataclass
class Case:
    """One entry of the table."""

    name: str
    edits: list[tuple[str, str]] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)

    def render(self, messages: list[str]) -> str:
        """The entry with these messages."""
        lines = [f"== {self.name}"]
        for old, new in self.edits:
            lines += [f"-{line}" for line in old.split("\n")] + [f"+{line}" for line in new.split("\n")]
        return "\n".join(lines + [f"> {message}" for message in messages]) + "\n"

    def broken(self, text: str) -> str:
        """The configuration with the mistake in it."""
        for old, new in self.edits:
            assert text.count(old) == 1, f"{self.name}: {old!r} must be in small.yaml once"
            text = text.replace(old, new)
        return text


def read_table() -> list[Case]:
    cases: list[Case] = []
    for sign, lines in groupby((HERE / TABLE).read_text().splitlines(), key=lambda line: line[0]):
        if sign == "=":
            cases += [Case(line.removeprefix("== ")) for line in lines]
        elif sign == ">":
            cases[-1].messages += [line.removeprefix("> ") for line in lines]
        elif sign == "-":
            old = "\n".join(line[1:] for line in lines)
        else:
            cases[-1].edits.append((old, "\n".join(line[1:] for line in lines)))
    return cases


CASES = read_table()


def messages_of(case: Case, folder: Path) -> list[str]:
    file = folder / "c.yaml"
    file.write_text(case.broken((HERE / "small.yaml").read_text()))
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    return [problem.replace(str(file), "c.yaml") for problem in caught.value.problems]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_messages(case: Case, tmp_path: Path) -> None:
    assert case.messages
    assert messages_of(case, tmp_path) == case.messages


def test_table_can_be_rewritten(golden: Callable[[str, str], None], tmp_path: Path) -> None:
    golden(TABLE, "".join(case.render(messages_of(case, tmp_path)) for case in CASES))


def test_the_table_starts_from_a_sound_configuration() -> None:
    assert load_config(HERE / "small.yaml").name == "small"
