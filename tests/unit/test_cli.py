"""The command line's frame: verbs, exit status, where messages go."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import types
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

from privmem.cluster import cli
from privmem.cluster.errors import CheckpointError, ConfigError, InvariantError, ParticipantLost, TraceError

SMALL = Path(__file__).parents[1] / "golden" / "small.yaml"

Verb = Callable[[Callable[[argparse.Namespace], int]], None]


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> Verb:
    """Installs a verb `do` that runs the given function."""

    def install(run: Callable[[argparse.Namespace], int]) -> None:
        module = types.ModuleType("privmem.cluster.cli.do")
        module.__dict__.update(add_arguments=lambda parser: parser.add_argument("--n", type=int), run=run)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(cli.VERBS, "do", ("do", "does"))

    return install


def raiser(error: BaseException) -> Callable[[argparse.Namespace], int]:
    def run(args: argparse.Namespace) -> int:
        raise error

    return run


def test_a_verb_gets_its_arguments_and_gives_the_status(verb: Verb) -> None:
    verb(lambda args: args.n)
    assert cli.main(["do", "--n", "7"]) == 7


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (ConfigError(["f:1: a", "f:2: b"]), 2, "f:1: a\nf:2: b\n"),
        (TraceError("t.pmtrace: byte 7: bad"), 2, "t.pmtrace: byte 7: bad\n"),
        (CheckpointError("of another run"), 2, "of another run\n"),
        (InvariantError("counters"), 1, "privmem: InvariantError: counters\n"),
        (ParticipantLost("host/h0"), 1, "privmem: ParticipantLost: host/h0\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_errors_become_a_status_and_a_message(
    verb: Verb, error: BaseException, status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    verb(raiser(error))
    assert cli.main(["do"]) == status
    assert capsys.readouterr() == ("", message)


def test_a_bug_is_not_swallowed(verb: Verb) -> None:
    verb(raiser(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        cli.main(["do"])


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        ([], 2, "the following arguments are required: VERB"),
        (["valdate"], 2, "invalid choice: 'valdate'"),
        (["validate"], 2, "the following arguments are required: FILE"),
        (["--version"], 0, f"privmem {metadata.version('privmem')}\n"),
        (["topo", "--help"], 0, "--set PATH=VALUE"),
    ],
)
def test_usage(arguments: list[str], status: int, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    captured = capsys.readouterr()
    assert caught.value.code == status
    assert text in captured.out + captured.err


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    listed = capsys.readouterr().out
    assert [verb for verb in cli.VERBS if f"\n    {verb}" not in listed] == []


def test_validate(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["validate", str(SMALL)]) == 0
    assert capsys.readouterr() == (f"{SMALL}: ok\n", "")


def test_validate_with_an_override(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["validate", str(SMALL), "--set", "seed=x"]) == 2
    expected = "--set seed: found 'x'; allowed: a whole number from 0 to 9223372036854775807\n"
    assert capsys.readouterr() == ("", expected)


def test_validate_checks_all_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["validate", str(tmp_path / "gone.yaml"), str(SMALL)]) == 2
    captured = capsys.readouterr()
    assert captured.out == f"{SMALL}: ok\n"
    assert captured.err == f"{tmp_path}/gone.yaml: cannot be read: No such file or directory\n"


def test_topo_of_a_broken_file_prints_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(SMALL.read_text().replace("hop: 14", "hop: 0"))
    assert cli.main(["topo", str(file)]) == 2
    expected = f"{file}:21: hosts.0.nodes.1.hop: found 0; allowed: a whole number from 1 to 244\n"
    assert capsys.readouterr() == ("", expected)


def test_schema_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["schema"]) == 0
    assert capsys.readouterr().out.startswith(
        '{\n  "$schema": "https://json-schema.org/draft/2020-12/schema",\n'
    )


def test_help_and_the_package_entry_load_no_verb() -> None:
    """Also checks `python -m privmem.cluster`: help must not wait for numpy, pydantic or Ray."""
    code = (
        "import runpy, sys\n"
        "sys.argv = ['privmem', '--help']\n"
        "try:\n"
        "    runpy.run_module('privmem.cluster', run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    assert end.code == 0, end.code\n"
        "print('heavy:', sorted({'numpy', 'pydantic', 'ray', 'numba', 'yaml'} & sys.modules.keys()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: privmem ")
    assert done.stdout.endswith("heavy: []\n")


def test_a_reader_that_leaves_is_no_error() -> None:
    """As `privmem validate FILE | head`, but the reader is gone before the first byte."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "privmem.cluster", "validate", str(SMALL)]
    # Buffered, as at a user's: unbuffered, nothing is left for the interpreter to fail on when it ends.
    env = {**os.environ, "PYTHONUNBUFFERED": ""}
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False, env=env)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")
