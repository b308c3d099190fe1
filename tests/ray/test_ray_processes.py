"""Whole processes with a Ray of their own, or as guests of a cluster: what they leave behind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import digest_of, fake_run, privmem

pytestmark = pytest.mark.ray

RACK = Path(__file__).parents[1] / "simulation" / "rack.yaml"
LONG = {"events": 1_000_000}


def test_killed_and_resumed(tmp_path: Path) -> None:
    """SIGKILL leaves no Ray process for long, no Ray folder, and a run that goes on inline."""
    folder = tmp_path / "run"
    wish = {"checkpoint_every": 2, "die_at_epoch": 3}
    with fake_run(folder, runtime="ray", pack=4, **wish) as process:
        assert process.wait() == -9
        process.wait_until_nothing_is_left(20)
    with fake_run(folder) as process:
        assert process.wait() == 0
        resumed = digest_of(process.out)
    assert process.err == "going on from epoch 2, 2 us\n"
    with fake_run(tmp_path / "whole") as process:
        assert process.wait() == 0
        assert digest_of(process.out) == resumed


def test_interrupted(tmp_path: Path) -> None:
    """Ctrl-C reaches Ray's processes too; the run ends in good order all the same."""
    folder = tmp_path / "run"
    with fake_run(folder, runtime="ray", pack=4, plan=LONG) as process:
        process.wait_for(folder / "run.json")
        process.interrupt()
        assert process.wait(60) == 130
        process.wait_until_nothing_is_left(10)
    assert json.loads((folder / "run.json").read_text())["status"] == "interrupted"
    assert len(list((folder / "checkpoints").iterdir())) == 1
    lines = process.err.splitlines()
    assert lines == ["starting Ray ...", "5 participants in 3 processes on 1 Ray nodes"]


def test_interrupted_while_ray_starts(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with fake_run(folder, runtime="ray", pack=4, plan=LONG) as process:
        assert process.popen.stderr is not None
        assert process.popen.stderr.readline() == "starting Ray ...\n"
        process.interrupt()
        process.wait(60)
        process.wait_until_nothing_is_left(20)
    assert not folder.exists()


def test_nobody_answers(tmp_path: Path) -> None:
    for address, text in (
        ("127.0.0.1:1", "--address: nobody answers at 127.0.0.1:1: Connection refused\n"),
        ("here", "--address: found 'here'; allowed: HOST:PORT of a Ray cluster's head\n"),
    ):
        with privmem(
            "run", RACK, "--runtime", "ray", "--address", address, "--out", tmp_path / "x"
        ) as process:
            assert process.wait() == 2
        assert process.err.endswith(text)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def three_nodes() -> Iterator[str]:
    """Three Ray nodes on this machine, which nobody is connected to."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(num_cpus=1, include_dashboard=False)
    yield cluster.address
    cluster.shutdown()


@pytest.mark.parametrize("pack", [pytest.param(1, marks=pytest.mark.full), 4])
def test_three_nodes_give_the_digest_of_inline(three_nodes: str, tmp_path: Path, pack: int) -> None:
    """As guests, who leave the cluster as it was: the next run finds it."""
    with privmem("run", RACK, "--out", tmp_path / "inline") as process:
        assert process.wait() == 0, process.err
    arguments = ["--runtime", "ray", "--address", three_nodes, "--pack", str(pack)]
    with privmem("run", RACK, *arguments, "--out", tmp_path / "ray") as other:
        assert other.wait() == 0, other.err
    assert "on 3 Ray nodes\n" in other.err
    assert digest_of(other.out) == digest_of(process.out)
    with privmem("diff", tmp_path / "inline", tmp_path / "ray") as process:
        assert process.wait() == 0, process.out
