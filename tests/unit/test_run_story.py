"""Stories of a run's pages: kept beside the state, the same whatever interrupts the run, read by `privmem why`."""

import gzip
from pathlib import Path

import pytest

from privmem.cluster import load_config
from privmem.cluster.assembly import make_plan
from privmem.cluster.cli import main
from privmem.cluster.engine import Engine
from privmem.cluster.results.stories import read_story
from privmem.cluster.runtime import make_runtime
from privmem.cluster.runtime.base import DEFAULT_BUILD

RACK = Path(__file__).resolve().parents[1] / "simulation/rack.yaml"
SHORT = "engine.duration=5ms"


def engine_of(story_events):
    plan = make_plan(load_config(RACK, (SHORT,)), story_events)
    runtime = make_runtime("inline")
    runtime.start(plan, DEFAULT_BUILD)
    return Engine(plan, runtime)


@pytest.fixture(scope="module")
def undisturbed():
    engine = engine_of(3000)
    engine.run()
    return engine.result()


def stories(result):
    return {name: host["story"] for name, host in result.summary["hosts"].items()}


def test_a_story_changes_nothing(undisturbed):
    engine = engine_of(0)
    engine.run()
    assert engine.result().digest == undisturbed.digest
    assert all(told["number"] > 100 for told in stories(undisturbed).values())


def test_a_resumed_run_tells_the_same_story(undisturbed):
    first = engine_of(3000)
    first.run_epoch()
    first.run_epoch()
    second = engine_of(3000)
    second.restore(first.snapshot())
    second.run()
    assert stories(second.result()) == stories(undisturbed)


def test_a_story_is_bounded(undisturbed):
    engine = engine_of(100)
    engine.run()
    for name, told in stories(engine.result()).items():
        whole = stories(undisturbed)[name]
        assert 50 <= len(told["events"]) <= 100
        assert told["number"] == whole["number"]
        assert told["events"] == whole["events"][-len(told["events"]) :]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("story") / "run"
    assert main(["run", str(RACK), "--set", SHORT, "--out", str(out), "--quiet", "--story"]) == 0
    return out


def test_why_tells_it(folder, capsys):
    host, *_ = sorted(path.name.removesuffix(".jsonl.gz") for path in (folder / "story").iterdir())
    story = read_story(folder, host)
    process, space = next(iter(story.processes.items()))
    page = next(e.place[1] for e in story.events if e.what == "mapped" and e.place[0] == space) - (1 << 20)
    capsys.readouterr()
    assert main(["why", str(folder), host, process, str(page)]) == 0
    when, asked, mapped, *_ = capsys.readouterr().out.splitlines()
    assert when.endswith(f": {process}")
    assert asked.startswith("  allocated a fault ")
    assert "zonelist of node" in asked
    assert mapped.startswith("  mapped    a ")
    assert f"by {process} of a page that is not mapped: a page of its own, on node" in mapped
    assert "story" not in (folder / "summary.json").read_text()


@pytest.mark.parametrize(
    ("page", "message"),
    [
        (["nobody", "p", "0"], "no story of the host 'nobody'; hosts with a story: "),
        (["HOST", "nothing", "0"], "found 'nothing'; allowed: a process of "),
        (["HOST", "PROCESS", "-1"], "found '-1'; allowed: the number of a page of "),
        (["HOST", "PROCESS"], "allowed: HOST PROCESS NUMBER"),
    ],
)
def test_what_why_refuses(folder, capsys, page, message):
    host = next((folder / "story").iterdir()).name.removesuffix(".jsonl.gz")
    names = {"HOST": host, "PROCESS": next(iter(read_story(folder, host).processes))}
    capsys.readouterr()
    assert (
        main(["why", str(folder), *(["--"] if "-1" in page else []), *(names.get(p, p) for p in page)]) == 2
    )
    assert message in capsys.readouterr().err


def test_why_without_a_story_and_with_a_damaged_one(tmp_path, capsys):
    assert main(["why", str(tmp_path), "h", "p", "0"]) == 2
    assert "it was not run with --story" in capsys.readouterr().err
    (tmp_path / "story").mkdir()
    file = tmp_path / "story" / "h.jsonl.gz"
    for content in (
        b"no gzip",
        gzip.compress(b"{"),
        gzip.compress(b'{"schema": 1}\n[3]'),
        gzip.compress(b"[]"),
    ):
        file.write_bytes(content)
        assert main(["why", str(tmp_path), "h", "p", "0"]) == 2
        assert f"{file}: damaged: " in capsys.readouterr().err
    file.write_bytes(gzip.compress(b'{"schema": 9}'))
    assert main(["why", str(tmp_path), "h", "p", "0"]) == 2
    assert "of schema 9; this privmem reads 1" in capsys.readouterr().err
