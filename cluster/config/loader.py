"""Loads a configuration, or says everything that is wrong with it, one line a mistake.

Lines read `FILE:LINE: path.to.field: found X; allowed: Y; did you mean Z?`, sorted by line; what a
command-line option brought in is named by the option instead. The way of a file: text, `tree.py`, overrides,
pydantic (`models.py`), `problems.py`, `checks.py`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from privmem.cluster.config.checks import check_config
from privmem.cluster.config.checks_host import Mistake
from privmem.cluster.config.fields import wrong
from privmem.cluster.config.models import Config, PluginDevice
from privmem.cluster.config.overrides import apply_override, set_top, unshared
from privmem.cluster.config.problems import Broken, broken_places, problem_at, problems_of, repair
from privmem.cluster.config.shape import ModelShape
from privmem.cluster.config.tree import TEXT_BYTES_MAX, Problem, Tree, Unreadable, found, read_yaml
from privmem.cluster.errors import ConfigError

JSON_SCHEMA_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def load_config(
    path: Path | str,
    overrides: Sequence[str] = (),
    seed: int | None = None,
    design: str | None = None,
    plugins: Sequence[Path | str] = (),
) -> Config:
    """The configuration in a YAML file, with `--set` overrides, `--seed`, `--design` and the files of `--plugin`.
    Raises ConfigError.
    """
    path = Path(path)
    text = _read(path)
    return _load(text, str(path), path.parent, overrides, {"seed": seed, "design": design}, plugins)


def config_from_plain(
    plain: dict[str, Any], folder: Path | str = ".", plugins: Sequence[Path | str] = ()
) -> Config:
    """Inverse of `config_to_plain`; recordings are relative to `folder`. Raises ConfigError."""
    return _load(yaml.safe_dump(plain, sort_keys=False), "configuration", Path(folder), (), {}, plugins)


def config_to_plain(config: Config, folder: Path | None = None) -> dict[str, Any]:
    """The effective configuration, every default written out, as plain data that loads to an equal one.

    With `folder`, recordings become relative to it, for a copy of the configuration that is kept there.
    """
    plain: dict[str, Any] = config.model_dump(mode="json", by_alias=True, exclude_none=True)
    if folder is not None:
        for host in plain["hosts"]:
            for process in host["processes"]:
                workload = process["workload"]
                if workload["kind"] == "replay":
                    recording = config.folder / workload["recording"]
                    workload["recording"] = os.path.relpath(recording, folder)
    return plain


def config_to_yaml(config: Config, folder: Path | None = None) -> str:
    """The effective configuration as a YAML file's text."""
    text: str = yaml.safe_dump(config_to_plain(config, folder), sort_keys=False, width=100)
    return text


def json_schema() -> dict[str, Any]:
    """JSON schema of a configuration file, for editors."""
    schema = Config.model_json_schema(by_alias=True, mode="validation")
    return {"$schema": JSON_SCHEMA_DIALECT, **schema, "title": "privmem configuration"}


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            body = file.read(TEXT_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    if len(body) > TEXT_BYTES_MAX:
        text = wrong(f"more than {TEXT_BYTES_MAX >> 20} MiB of text", "a smaller file")
        raise ConfigError(f"{path}:1: {text}")
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError as error:
        line = body.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: {wrong('bytes that are not UTF-8', 'UTF-8 text')}") from None


def _load(
    text: str,
    name: str,
    folder: Path,
    overrides: Sequence[str],
    options: dict[str, int | str | None],
    plugins: Sequence[Path | str],
) -> Config:
    """`options`: fields that have an option of their own, by their names; None where it was not given."""
    try:
        root, problems = read_yaml(text)
    except Unreadable as error:
        raise ConfigError(_lines(name, [error.problem])) from None
    if root is None or not isinstance(root.value, dict):
        what = "nothing" if root is None else found(root)
        problem = Problem(1 if root is None else root.line, wrong(what, ModelShape(Config).describe()))
        raise ConfigError(_lines(name, [problem]))
    other = _other_kind(root.value)
    if other:
        raise ConfigError(_lines(name, [Problem(root.line, wrong(other, "a configuration of a run"))]))
    root = unshared(root)
    for override in overrides:
        refused = apply_override(root, override)
        problems += [refused] if refused else []
    for key, value in options.items():
        if value is not None:
            set_top(root, key, value, f"--{key}")
    config, more = _validate(root, folder, plugins)
    problems += more
    if config is None or problems:
        raise ConfigError(_lines(name, problems))
    return config


def _other_kind(keys: Mapping[str, Any]) -> str:
    """What a file is that is no configuration, said once and not field by field; empty for all others."""
    if {"schema", "name", "engine", "hosts"} & set(keys):
        return ""
    if {"title", "steps"} <= set(keys):
        return "a litmus test, which `privmem litmus` runs"
    return "a machine, which litmus tests name and `privmem audit` takes" if "nodes" in keys else ""


def _validate(root: Tree, folder: Path, plugins: Sequence[Path | str]) -> tuple[Config | None, list[Problem]]:
    """The configuration if there is one, even a repaired one, and all that is wrong with it."""
    plain = root.plain()
    broken: list[Broken] = []
    try:
        config = Config.model_validate(plain)
    except ValidationError as error:
        broken = broken_places(error, root)
        try:
            config = Config.model_validate(repair(plain, broken))
        except ValidationError:
            return None, problems_of(broken, root)
    config._folder = folder
    config._plugins = _plugin_classes(config, plugins)
    spoiled = [place.spoiled for place in broken if place.spoiled is not None]
    mistakes = [item for item in check_config(config) if not _rests_on(item, spoiled)]
    problems = problems_of(broken, root)
    return config, problems + [problem_at(root, item.path, item.text) for item in mistakes]


def _plugin_classes(config: Config, files: Sequence[Path | str]) -> dict[str, Any]:
    """Device classes of plug-ins, which are only run when a file is named or a device is of such a class."""
    own = [node.memory for host in config.hosts for node in host.nodes]
    if not files and not any(isinstance(d, PluginDevice) for d in (*config.devices.values(), *own)):
        return {}
    from privmem.cluster.plugins import (  # the models of devices take a while to load
        plugin_classes,
        read_plugins,
    )

    return dict(plugin_classes(read_plugins(files)))


def _rests_on(mistake: Mistake, spoiled: list[tuple[str | int, ...]]) -> bool:
    """Whether a mistake was concluded from a place that was only filled in."""
    for use in mistake.uses or (mistake.path,):
        for path in spoiled:
            shorter = min(len(use), len(path))
            if use[:shorter] == path[:shorter]:
                return True
    return False


def _lines(name: str, problems: list[Problem]) -> list[str]:
    """The lines of a ConfigError: options first, then by line; a problem that shows twice is said once."""
    lines: list[str] = []
    for problem in sorted(problems, key=lambda item: item.line):
        where = problem.origin or (f"{name}:{problem.line}" if problem.line else name)
        # An override whose path is the field's path need not say it twice.
        path = "" if not problem.path or where.removeprefix("--set ") == problem.path else f"{problem.path}: "
        line = f"{where}: {path}{problem.text}"
        if line not in lines:
            lines.append(line)
    return lines
