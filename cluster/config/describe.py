"""The reference page of the configuration, `docs/configuration.md`, written from the models.

`privmem schema --markdown` prints it; a test fails when the page in the repository is not what it prints.
"""

from __future__ import annotations

from collections.abc import Iterator

from pydantic.fields import FieldInfo

from privmem.cluster.config import models, workload_models
from privmem.cluster.config.base import Model
from privmem.cluster.config.shape import (
    ChoiceShape,
    LeafShape,
    ListShape,
    MapShape,
    ModelShape,
    Shape,
    shape_of,
)

_SECTIONS: tuple[tuple[str, str, type[Model]], ...] = (
    ("The file", "", models.Config),
    ("engine", "engine", models.EngineConfig),
    ("results", "results", models.ResultsConfig),
    ("Devices: dram, cxl, gpu, nic, slow-distributed", "devices.NAME or nodes.N.memory", models.PlainDevice),
    ("Devices: compressed-ram", "devices.NAME or nodes.N.memory", models.CompressedRam),
    ("Devices: plugin", "devices.NAME or nodes.N.memory", models.PluginDevice),
    ("Forced removals", "devices.NAME.removals.N", models.RemovalConfig),
    ("Hosts", "hosts.N", models.HostConfig),
    ("Nodes", "hosts.N.nodes.N", models.NodeConfig),
    ("Kernel knobs", "hosts.N.sysctl", models.SysctlConfig),
    ("Processes", "hosts.N.processes.N", models.ProcessConfig),
    ("Memory policy", "hosts.N.processes.N.policy", models.PolicyConfig),
    ("Workload: replay", "hosts.N.processes.N.workload", workload_models.ReplayWorkload),
    ("Workload: zipf", "hosts.N.processes.N.workload", workload_models.ZipfWorkload),
    ("Workload: uniform", "hosts.N.processes.N.workload", workload_models.UniformWorkload),
    ("Workload: scan", "hosts.N.processes.N.workload", workload_models.ScanWorkload),
    ("Workload: hotset", "hosts.N.processes.N.workload", workload_models.HotSetWorkload),
    ("Workload: gpu", "hosts.N.processes.N.workload", workload_models.GpuWorkload),
    ("Workload: messages", "hosts.N.processes.N.workload", workload_models.MessagesWorkload),
    ("Content: recording", "hosts.N.processes.N.content", workload_models.RecordingContent),
    ("Content: generator", "hosts.N.processes.N.content", workload_models.GeneratorContent),
    ("Content: phases", "hosts.N.processes.N.content.phases.N", workload_models.ContentPhase),
)

_INTRODUCTION = """\
# Configuration

<!-- Printed by `privmem schema --markdown`. Change cluster/config/models.py, then print it again. -->

A run is one YAML file. `privmem validate FILE` checks it, `privmem topo FILE` prints the machines that it
describes, and `privmem schema` prints its JSON schema; an editor with a YAML language server completes and
checks with

```yaml
# yaml-language-server: $schema=privmem.schema.json
```

as the file's first line, after `privmem schema > privmem.schema.json`. `configs/quickstart.yaml` is an
example.

## Values

- A **size** is a whole number of bytes with a unit: `B`, `KiB`, `MiB`, `GiB`, `TiB`, or the decimal `kB`,
`MB`, `GB`, `TB`. A **time** has `ns`, `us`, `ms` or `s`; a **rate** is a size a second, as in `12GiB/s`. A
blank between number and unit is allowed, and so is a fraction that comes out whole: `1.5KiB`. A number
without unit is a mistake. - **Shares** and exponents have at most three decimals, because they are kept as
whole thousandths. - Text is YAML 1.2: `1e6` is a number, and `on`, `off`, `yes` and `no` are plain words.
Anchors, aliases and merge keys (`<<`) work. Tags, several documents and repeated keys are refused, as is a
file of more than 1 MiB. - Paths are relative to the folder of the file.

All mistakes of a file are reported at once, one a line, with exit status 2 and nothing started:

```
FILE:LINE: path.to.field: found X; allowed: Y; did you mean Z?
```

## Overrides

`--set path.to.field=value` changes one value before the file is checked, and can be given several times.
Steps of the path are separated by dots. A number is an index of a list; `[x]` picks the item with this
`name`, or for nodes this `id`:

```
--set engine.duration=500ms
--set hosts.0.cpus=4
--set 'hosts[h0].nodes[2].memory.codec=zstd'
--set 'hosts[h0].processes[db].policy={mode: bind, nodes: [0, 1]}'
```

`--seed N` is short for `--set seed=N`. Each run keeps the configuration that it really had, with every
default written out, beside its results.
"""


def markdown() -> str:
    """The page."""
    return "\n".join([_INTRODUCTION, *_sections()])


def _sections() -> Iterator[str]:
    for title, place, model in _SECTIONS:
        yield f"## {title}\n"
        where = f" At `{place}`." if place else ""
        yield f"{' '.join((model.__doc__ or '').split())}{where}\n"
        yield "| field | allowed | default | meaning |"
        yield "| --- | --- | --- | --- |"
        for key, info in ModelShape(model).fields().items():
            cells = (f"`{key}`", _allowed(shape_of(info)), _default(info), info.description or "")
            yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
        yield ""


def _allowed(shape: Shape) -> str:
    """As messages say it, but with a word instead of the fields of what has its own section."""
    if isinstance(shape, ModelShape):
        return "a mapping, see below"
    if isinstance(shape, ChoiceShape):
        return f"a mapping with `{shape.tag_key}`: {', '.join(shape.members)}"
    if isinstance(shape, MapShape):
        return f"a mapping of names, each to {_allowed(shape.item)}"
    if isinstance(shape, ListShape) and not shape.fixed:
        length = f" of {shape.length_min} to {shape.length_max}" if shape.length_max else ""
        return f"a list{length}, each {_allowed(shape.items[0])}"
    return shape.describe()


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    value = info.get_default(call_default_factory=True, validated_data={})
    if value is None:
        return "none"
    if isinstance(value, Model):
        return "as below"
    shape = shape_of(info)
    if isinstance(shape, LeafShape):
        value = shape.leaf.plain(value)
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{list(value) if isinstance(value, tuple) else value}`"
