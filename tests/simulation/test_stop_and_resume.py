"""Runs that are killed, interrupted or fail, inline, and go on: the digest is that of an undisturbed run."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from processes import digest_of, fake_run, privmem

RACK = Path(__file__).with_name("rack.yaml")
LONG = {"events": 400}  # 40 epochs


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    with fake_run(tmp_path_factory.mktemp("whole") / "run", plan=LONG) as process:
        assert process.wait() == 0
        return digest_of(process.out)


@pytest.mark.parametrize("die_at_epoch", [0, 4, 5, 23, 39])
def test_killed_and_resumed(undisturbed: str, tmp_path: Path, die_at_epoch: int) -> None:
    folder = tmp_path / "run"
    with fake_run(folder, plan=LONG, checkpoint_every=5, die_at_epoch=die_at_epoch) as process:
        assert process.wait() == -9
    assert json.loads((folder / "run.json").read_text())["status"] == "running"
    with fake_run(folder, plan=LONG) as process:
        assert process.wait() == 0
    assert digest_of(process.out) == undisturbed
    begins = die_at_epoch // 5 * 5
    assert process.err.startswith(f"going on from epoch {begins}," if begins else "no checkpoint yet")


def test_killed_twice(undisturbed: str, tmp_path: Path) -> None:
    for die_at_epoch in (8, 17):
        with fake_run(tmp_path / "r", plan=LONG, checkpoint_every=3, die_at_epoch=die_at_epoch) as process:
            assert process.wait() == -9
    with fake_run(tmp_path / "r", plan=LONG) as process:
        assert process.wait() == 0
    assert digest_of(process.out) == undisturbed


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_between_checkpoints_and_resumed(undisturbed: str, tmp_path: Path, number: int) -> None:
    folder = tmp_path / "run"
    with fake_run(folder, plan=LONG, signal_at_epoch=11, signals=[number]) as process:
        assert process.wait() == 130
    assert json.loads((folder / "run.json").read_text())["status"] == "interrupted"
    assert json.loads((folder / "summary.json").read_text())["epochs"] == 12
    with fake_run(folder, plan=LONG) as process:
        assert process.wait() == 0
    assert process.err == "going on from epoch 12, 12 us\n"
    assert digest_of(process.out) == undisturbed


def test_interrupted_twice_stops_in_the_middle_of_the_epoch(undisturbed: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    twice = [signal.SIGINT, signal.SIGINT]
    with fake_run(folder, plan=LONG, checkpoint_every=5, signal_at_epoch=11, signals=twice) as process:
        assert process.wait() == 130
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["status"], summary["epochs"], summary["hosts"]) == ("interrupted", 11, {})
    with fake_run(folder, plan=LONG) as process:
        assert process.wait() == 0
    assert process.err == "going on from epoch 10, 10 us\n"
    assert digest_of(process.out) == undisturbed


def test_damaged_checkpoint_falls_back_and_says_so(undisturbed: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with fake_run(folder, plan=LONG, checkpoint_every=5, die_at_epoch=13) as process:
        process.wait()
    newest = folder / "checkpoints" / "epoch-000010.ckpt"
    body = bytearray(newest.read_bytes())
    body[len(body) // 2] ^= 4
    newest.write_bytes(body)
    with fake_run(folder, plan=LONG) as process:
        assert process.wait() == 0
    assert f"{newest}: damaged" in process.err
    assert "going on from the older epoch-000005.ckpt" in process.err
    assert digest_of(process.out) == undisturbed


def test_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with fake_run(folder, plan=LONG, checkpoint_every=5, die_at_epoch=13) as process:
        process.wait()
    with fake_run(folder, plan=LONG | {"seed": 2}) as process:
        assert process.wait() == 2
    assert process.err.endswith("epoch-000010.ckpt: is of another run: its seed differs\n")


def test_a_failed_run_says_so_and_keeps_its_rounds(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with fake_run(folder, plan={"h1": {"fails_at": 30}}) as process:
        assert process.wait() == 2
    assert process.err == (f"the run failed; what it left is in {folder}\nProtocolError: asked to fail\n")
    assert json.loads((folder / "run.json").read_text())["status"] == "failed"
    assert (folder / "rounds.bin").stat().st_size > 0


def test_one_run_in_a_folder_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with fake_run(folder, plan={"events": 1_000_000}) as process:
        process.wait_for(folder / "run.json")
        with privmem("resume", folder) as other:
            assert other.wait() == 2
        assert other.err == f"{folder}: a run is in progress there\n"
        process.interrupt()
        assert process.wait(30) == 130


def test_privmem_run_killed_and_resumed(tmp_path: Path) -> None:
    """The real rack, by the command line; and what resume says of a run that is complete."""
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    with privmem("run", RACK, "--out", whole) as process:
        assert process.wait() == 0, process.err
        digest = digest_of(process.out)
        assert process.out.endswith(f"results: {whole}\ndigest: {digest}\n")
    with privmem("run", RACK, "--out", folder, "--checkpoint-every", "2") as process:
        process.wait_for(folder / "checkpoints" / "*.ckpt")
        process.popen.kill()
        process.wait()
    with privmem("resume", folder, "--quiet") as process:
        assert process.wait() == 0, process.err
        assert process.out.endswith(f"results: {folder}\ndigest: {digest}\n")
    with privmem("diff", whole, folder) as process:
        assert process.wait() == 0, process.out
    assert (whole / "summary.json").read_bytes() == (folder / "summary.json").read_bytes()
    with privmem("resume", folder) as process:
        assert process.wait() == 0
        assert process.out == (
            f"the run is complete; nothing is left to do\nresults: {folder}\ndigest: {digest}\n"
        )


def test_privmem_run_interrupted(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    slower = ["--set", "engine.slice=1us"]
    with privmem("run", RACK, "--out", folder, "--set", "engine.epoch=1us", *slower) as process:
        process.wait_for(folder / "run.json")
        process.interrupt()
        assert process.wait(30) == 130
    assert process.out == ""
    assert process.err.endswith(f"partial results: {folder}\nto go on: privmem resume {folder}\n")
    assert json.loads((folder / "summary.json").read_text())["status"] == "interrupted"


def test_json_alone_on_standard_output(tmp_path: Path) -> None:
    with privmem("run", RACK, "--out", tmp_path / "run", "--json", "--set", "engine.duration=5ms") as process:
        assert process.wait() == 0, process.err
    summary = json.loads(process.out)
    assert summary["digest"] == json.loads((tmp_path / "run" / "summary.json").read_text())["digest"] != ""
    assert summary["virtual_ns"] == 5_000_000
    assert process.err == f"results: {tmp_path / 'run'}\n"


def test_nothing_is_left_of_a_run_that_cannot_start(tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "x").touch()
    for arguments, text in (
        (["--out", full], f"--out: {full} is not empty\n"),
        (["--out", full / "x"], f"--out: {full / 'x'} is not a folder\n"),
        (["--pack", "2"], "--address and --pack: only with --runtime ray\n"),
    ):
        with privmem("run", RACK, *arguments) as process:
            assert process.wait() == 2
        assert process.err == text
    assert [path.name for path in full.iterdir()] == ["x"]
    with privmem("resume", full) as process:
        assert process.wait() == 2
    assert process.err == (
        f"{full / 'run.json'}: cannot be read: No such file or directory; is {full} a run's folder?\n"
    )
