"""tools/oracle, as far as it goes without a kernel: programs, images, and what it reads from the machine."""

from __future__ import annotations

import gzip
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from privmem.cluster.oracle.ops import OPS, parse_op
from privmem.cluster.oracle.recording import SETTINGS, read_recording

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools/oracle"


def load(name: str) -> ModuleType:
    """A module of the tool: its folder is no package, and another tool has a record.py too."""
    sys.path.insert(0, str(TOOL))
    try:
        spec = importlib.util.spec_from_file_location(f"oracle_tool_{name}", TOOL / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(TOOL))


record = load("record")
boot, image, kinds = record.boot, record.image, record.kinds


@pytest.mark.parametrize("kind", list(kinds.KINDS))
def test_programs_follow_from_kind_and_seed(kind: str) -> None:
    made = kinds.programs(kind, 30, seed=3)
    assert made == kinds.programs(kind, 30, seed=3)
    assert made[:10] == kinds.programs(kind, 10, seed=3)
    assert made != kinds.programs(kind, 30, seed=4)
    for _, ops in made:
        for op in ops:
            parse_op(op)


def test_the_recordings_are_of_these_kinds() -> None:
    named = {path.name.split("_", 1)[1].split(".")[0] for path in (ROOT / "tests/data").glob("*.jsonl.gz")}
    assert named == set(kinds.KINDS)


def test_the_guest_knows_every_op() -> None:
    source = (ROOT / "tools/oracle/guest.c").read_text()
    assert [name for name in OPS if f'{{"{name}", op_' not in source] == []


def test_settings_are_those_that_privmem_reads() -> None:
    assert vars(boot.Setup()) == SETTINGS
    assert boot.Setup().plain() == {}
    assert boot.Setup(swap="ram", page_cluster=3).plain() == {"swap": "ram", "page_cluster": 3}


def test_initramfs(tmp_path: Path) -> None:
    image.write_initramfs(tmp_path / "i", {"init": b"abc", "modules/x.ko": b"12345"})
    archive = gzip.decompress((tmp_path / "i").read_bytes())
    found, at = {}, 0
    while True:
        assert archive[at : at + 6] == b"070701" and at % 4 == 0
        mode, size, length = (int(archive[at + k : at + k + 8], 16) for k in (14, 54, 94))
        name = archive[at + 110 : at + 110 + length - 1].decode()
        at += -(-(110 + length) // 4) * 4
        if name == "TRAILER!!!":
            break
        found[name] = (mode, archive[at : at + size])
        at += -(-size // 4) * 4
    assert found == {
        "modules": (0o40755, b""),
        "init": (0o100755, b"abc"),
        "modules/x.ko": (0o100755, b"12345"),
    }


def test_modules_are_loaded_after_what_they_need(tmp_path: Path) -> None:
    needs = {"ext4": "jbd2,mbcache,crc-x", "jbd2": "", "mbcache": "", "crc_x": ""}
    for name, depends in needs.items():
        (tmp_path / f"{name}.ko").write_bytes(b"\0depends=" + depends.encode() + b"\0")
    kernel = image.Kernel("6.1", tmp_path, {name: tmp_path / f"{name}.ko" for name in needs})
    assert kernel.load_order(["mbcache", "ext4", "built_in"]) == ["mbcache", "jbd2", "crc_x", "ext4"]


def test_swap_header(tmp_path: Path) -> None:
    image.make_disk(tmp_path / "swap", 64 << 12, "swap")
    content = (tmp_path / "swap").read_bytes()
    assert (len(content), content[4086:4096], content[1024:1032]) == (
        64 << 12,
        b"SWAPSPACE2",
        b"\1\0\0\0\77\0\0\0",
    )


def test_answers_of_the_machine(tmp_path: Path) -> None:
    text = "fact a b\r\nprogram p\r\ncpu 0\r\nend\r\nprogram q\r\ndied 8b00\r\nend\r\nbye\r\n"
    answers = boot._parse(text, tmp_path / "console")
    assert (answers.facts, answers.results, answers.deaths) == (
        ["a b"],
        {"p": ["cpu 0"], "q": []},
        {"q": "8b00"},
    )
    (tmp_path / "console").write_text("Kernel panic\n")
    with pytest.raises(SystemExit, match=r"(?s)in or after 'q'.*Kernel panic"):
        boot._parse(text.replace("bye", ""), tmp_path / "console")


def test_programs_that_boots_disagree_on_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    orders = []

    def answer(kernel: object, folder: Path, programs: Any, setup: Any) -> Any:
        orders.append([name for name, _ in programs])
        results = {
            name: ["cpu 0", f"free {len(orders)}" if name == "b" else "free 7"] for name, _ in programs
        }
        results["c"] = ["cpu 0"]  # it died
        return boot.Answers(results=results)

    monkeypatch.setattr(boot, "boot", answer)
    programs = [(name, ["cpu 0", "free 1"]) for name in "abcd"]
    kernel = image.Kernel("6.1.176", tmp_path, {})
    lines = record.record(kernel, tmp_path, programs, boot.Setup(read_ahead_kb=128), 2)
    assert sorted(orders[0]) == sorted(orders[1]) and orders[0] != orders[1]
    assert "left out b: boots differ at 'free 1': free 1 / free 2" in capsys.readouterr().err
    file = tmp_path / "r.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [(p.name, p.kernel, p.machine, p.results) for p in read_recording(file)] == [
        (name, "6.1.176", {"read_ahead_kb": 128}, ("cpu 0", "free 7")) for name in "ad"
    ]
