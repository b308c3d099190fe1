"""The folder of a run: its name, its record, its lock."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from privmem.cluster.errors import ConfigError
from privmem.cluster.folder import RunFolder, RunRecord, create, read_record


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_first_free_name_is_taken(here: Path) -> None:
    folders = [create(None, "rack") for _ in range(3)]
    assert [str(folder.path) for folder in folders] == ["results/rack", "results/rack-2", "results/rack-3"]
    for folder in folders:
        folder.release()


def test_record_moves_with_the_folder(here: Path) -> None:
    folder = create(here / "a" / "b", "rack")
    folder.write(RunRecord("rack", {"x": 1}, str(here / "configs"), 5))
    assert json.loads((here / "a/b/run.json").read_text()) == {
        "name": "rack",
        "config": {"x": 1},
        "config_folder": "../../configs",
        "checkpoint_every": 5,
        "story_events": 0,
        "status": "running",
        "digest": "",
        "schema": 1,
    }
    folder.release()
    (here / "elsewhere").mkdir()
    (here / "a").rename(here / "elsewhere" / "a")
    record = read_record(here / "elsewhere" / "a" / "b")
    assert record == RunRecord("rack", {"x": 1}, str(here / "elsewhere" / "configs"), 5)


def test_one_lock_at_a_time(here: Path) -> None:
    folder = create(None, "rack")
    with pytest.raises(ConfigError, match="a run is in progress there"):
        RunFolder(folder.path)
    folder.release()
    RunFolder(folder.path).release()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "run.json: damaged: "),
        ("[]", "run.json: damaged: "),
        ('{"schema": 1, "nam": 2}', "run.json: damaged: "),
        ('{"schema": 2}', "run.json: of schema 2; this privmem reads 1"),
    ],
)
def test_other_records_are_refused(here: Path, text: str, says: str) -> None:
    (here / "run.json").write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_record(here)
    assert says in str(caught.value)


def test_a_place_that_cannot_be_written(here: Path) -> None:
    (here / "file").touch()
    with pytest.raises(ConfigError, match=r"--out: .* cannot be made: Not a directory"):
        create(here / "file" / "run", "rack")
