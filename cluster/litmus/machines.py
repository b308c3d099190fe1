"""Machines by name: those that come with the package, and those in a folder `machines` beside a litmus file."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from privmem.cluster.config.tree import Problem, Tree, Unreadable, read_yaml
from privmem.cluster.errors import ConfigError
from privmem.cluster.litmus.machine import Machine, Reader

SUFFIX = ".yaml"
#: The folder that holds machines; no litmus tests are looked for in it.
FOLDER = "machines"


def machine_files(beside: Path | None = None) -> dict[str, Path]:
    """Machine files by name. `beside`: a litmus file; machines in its folder or the one above go first."""
    spec = find_spec("privmem.configs")
    places = spec.submodule_search_locations if spec else None
    folders = [Path(place) / FOLDER for place in places or ()]
    if beside is not None:
        here = beside.resolve().parent
        folders += [here.parent / FOLDER, here / FOLDER]
    return {
        file.stem: file for folder in folders if folder.is_dir() for file in sorted(folder.glob(f"*{SUFFIX}"))
    }


def load_machine(path: Path) -> Machine:
    """Read a machine file. Raises ConfigError with all that is wrong with it, one line each."""
    try:
        tree, problems = read_yaml(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: found bytes that are not UTF-8; allowed: text") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except Unreadable as unreadable:
        raise problem_error(str(path), [unreadable.problem]) from None
    return machine_of_tree(tree, problems, str(path))


def machine_of_tree(tree: Tree | None, problems: list[Problem], path: str) -> Machine:
    """The machine that a file's tree describes."""
    reader = Reader()
    machine = reader.read(tree or Tree(1, None))
    if machine is None or problems:
        raise problem_error(path, [*problems, *reader.problems])
    return machine


def problem_error(path: str, problems: list[Problem]) -> ConfigError:
    """One line for each mistake, in the order of the file."""
    return ConfigError(
        [
            f"{path}:{p.line}: {p.path + ': ' if p.path else ''}{p.text}"
            for p in sorted(problems, key=lambda p: p.line)
        ]
    )
