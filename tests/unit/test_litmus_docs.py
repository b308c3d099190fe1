"""docs/litmus.md says what happens: its examples are run, and print what the page shows."""

import re
from pathlib import Path

import pytest

from privmem.cluster.cli import main

pytest_plugins = ["pytester"]

PAGE = (Path(__file__).parents[2] / "docs/litmus.md").read_text()
FENCE = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)
BLOCKS = FENCE.findall(PAGE)


def first(language):
    return next(text for found, text in BLOCKS if found == language)


@pytest.fixture
def mine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Path("mine.yaml")


def test_the_first_example_holds_under_every_design(mine, capsys):
    mine.write_text(first("yaml"))
    assert main(["litmus", "mine.yaml", "--design", "every"]) == 0
    assert capsys.readouterr().out.endswith("1 files under 10 designs: 10 of 10 held\n")


def test_the_failure_is_what_the_page_shows(mine, capsys):
    mine.write_text(first("yaml").replace("pages of mem: {D0: 64}", "pages of mem: {P: 64}"))
    assert main(["litmus", "mine.yaml", "--design", "caps"]) == 1
    assert first("text") in capsys.readouterr().out


def test_the_machine_is_one(mine, capsys):
    machine = [text for language, text in BLOCKS if language == "yaml"][1]
    mine.write_text(
        "title: t\ndesigns: [private-zonelist:F0, private-zonelist, private-zonelist:F2]\n"
        + machine
        + "steps:\n  - A: touch_nothing = mmap 1 page\n"
    )
    assert main(["litmus", "mine.yaml", "--design", "every"]) == 0, capsys.readouterr()


def test_the_python_example_passes(pytester):
    pytester.makepyfile(first("python"))
    pytester.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(passed=1)
