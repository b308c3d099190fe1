"""Plug-ins: Python files with device classes of a user's own.

A file is only ever taken because the command line names it (`--plugin FILE`), or because an installed package has
an entry point in the group `privmem.plugins`; never because a configuration or a data file says so. Its text
travels with the plan to wherever a device is built, and its hash is part of the run's identity.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from privmem.cluster.errors import ConfigError
from privmem.nodeagent.device.device import Device
from privmem.nodeagent.device.plugin import DeviceClass

GROUP = "privmem.plugins"
#: More text than this is no device class.
SOURCE_BYTES_MAX = 1 << 20


@dataclass(frozen=True, slots=True)
class Plugin:
    """One file: its name for messages, and its text."""

    name: str
    source: str

    @property
    def digest(self) -> str:
        """What the run's identity holds of it."""
        return hashlib.blake2b(self.source.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class PluginClass:
    """A device class, and the plug-in that it is from."""

    plugin: Plugin
    device_class: DeviceClass

    def spec(self) -> list[str]:
        """What a device's spec carries, for `make_device` anywhere."""
        return [self.plugin.name, self.plugin.source, self.device_class.name]


def read_plugins(files: Iterable[Path | str]) -> list[Plugin]:
    """The plug-ins of installed packages, by name, then these files. Raises ConfigError for what cannot be read."""
    found = []
    for entry in sorted(metadata.entry_points(group=GROUP), key=lambda entry: entry.name):
        spec = importlib.util.find_spec(entry.module)
        if spec is None or spec.origin is None:
            raise ConfigError(f"plug-in {entry.name}: its module {entry.module} is not there")
        found.append(Plugin(entry.module, _read(Path(spec.origin))))
    return found + [Plugin(str(file), _read(Path(file))) for file in files]


def plugin_classes(plugins: Sequence[Plugin]) -> dict[str, PluginClass]:
    """Device classes by name. Runs the plug-ins; raises ConfigError when one fails or hands over what is none."""
    found: dict[str, PluginClass] = {}
    for plugin in plugins:
        for device_class in _classes_of(plugin):
            before = found.get(device_class.name)
            if before is not None:
                both = f"{before.plugin.name} and {plugin.name}"
                raise ConfigError(f"{both} both have a device class {device_class.name!r}")
            found[device_class.name] = PluginClass(plugin, device_class)
    return found


def make_device(spec: dict[str, Any], resources: dict[str, np.ndarray]) -> Device:
    """The device of a spec, here or on another machine: one of ours, or what the plug-in in its spec makes."""
    if "plugin" not in spec:
        return Device(spec, resources)
    name, source, wanted = spec["plugin"]
    for device_class in _classes_of(Plugin(name, source)):
        if device_class.name == wanted:
            return device_class.make(spec, resources)
    raise ConfigError(f"{name}: it has no device class {wanted!r} here")


def _classes_of(plugin: Plugin) -> list[DeviceClass]:
    listed = getattr(_run(plugin.name, plugin.source), "DEVICE_CLASSES", None)
    if not isinstance(listed, list | tuple) or not listed:
        raise ConfigError(
            f"{plugin.name}: found no list DEVICE_CLASSES; allowed: one with at least a DeviceClass"
        )
    for item in listed:
        if not isinstance(item, DeviceClass):
            raise ConfigError(f"{plugin.name}: DEVICE_CLASSES: found {item!r}; allowed: DeviceClass(...)")
    return list(listed)


@functools.cache
def _run(name: str, source: str) -> ModuleType:
    """The module that the text makes. Once a process: classes of one plug-in are the same objects."""
    module = ModuleType(f"privmem_plugin_{hashlib.blake2b(source.encode(), digest_size=8).hexdigest()}")
    module.__file__ = name
    sys.modules[module.__name__] = module  # dataclasses look their module up
    try:
        exec(compile(source, name, "exec", dont_inherit=True), module.__dict__)
    except Exception as error:
        del sys.modules[module.__name__]
        line = error.lineno if isinstance(error, SyntaxError) else _line_in(name, error)
        raise ConfigError(f"{name}{f':{line}' if line else ''}: {type(error).__name__}: {error}") from error
    return module


def _line_in(name: str, error: BaseException) -> int:
    """The last line of the plug-in that the error passed; 0 for none."""
    line, trace = 0, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == name:
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            body = file.read(SOURCE_BYTES_MAX + 1)
        text = body.decode("utf-8")
    except OSError as error:
        raise ConfigError(f"--plugin: {path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(
            f"--plugin: {path}: found bytes that are not UTF-8; allowed: a Python file"
        ) from None
    if len(body) > SOURCE_BYTES_MAX:
        raise ConfigError(
            f"--plugin: {path}: found more than {SOURCE_BYTES_MAX >> 20} MiB; allowed: a Python file"
        )
    return text
