"""Loading: defaults, round trips, overrides, unreadable files, and that nothing but ConfigError comes out."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from privmem.cluster.config import (
    Config,
    config_from_plain,
    config_to_plain,
    config_to_yaml,
    json_schema,
    load_config,
)
from privmem.cluster.config.models import CompressedRam, PlainDevice
from privmem.cluster.config.workload_models import (
    GeneratorContent,
    RecordingContent,
    ReplayWorkload,
    ZipfWorkload,
)
from privmem.cluster.errors import ConfigError
from privmem.cluster.traces import TraceHeader, distinct_rows, write_trace

CONFIGS = Path(__file__).parents[2] / "configs"
SMALL = Path(__file__).parents[1] / "golden" / "small.yaml"


@pytest.fixture(scope="module")
def small() -> Config:
    return load_config(SMALL)


def problems(file: Path, *overrides: str, seed: int | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(file, overrides, seed)
    return caught.value.problems


def test_values_arrive_typed(small: Config) -> None:
    assert (small.engine.duration_ns, small.engine.epoch_ns, small.engine.slice_ns) == (
        10**9,
        5 * 10**6,
        250_000,
    )
    pool = small.devices["pool"]
    assert isinstance(pool, PlainDevice)
    assert (pool.capacity_bytes, pool.extent_bytes, pool.quotas_bytes) == (
        64 << 20,
        1 << 20,
        {"h0": 32 << 20},
    )
    host = small.hosts[0]
    assert host.names == ("h0",)
    assert host.nodes[0].cpus == (0, 1)
    memory = host.nodes[2].memory
    assert isinstance(memory, CompressedRam)
    assert (memory.perceived_bytes, memory.codec, memory.level, memory.granule_bytes) == (
        12 << 20,
        "lz4",
        None,
        64,
    )
    process = host.processes[0]
    assert process.workload == ZipfWorkload.model_validate(
        {"kind": "zipf", "size": "16MiB", "accesses": 1000, "theta": 0.99}
    )
    assert isinstance(process.workload, ZipfWorkload)
    assert process.workload.theta_permille == 990
    assert process.content == GeneratorContent.model_validate({"kind": "generator"})


def test_kernel_knobs_default_to_linux_6_1(small: Config) -> None:
    knobs = small.hosts[0].sysctl
    assert knobs.model_dump() == {
        "numa_balancing": 0,
        "demotion_enabled": False,
        "watermark_scale_factor": 10,
        "min_free_kbytes": None,
        "numa_balancing_scan_period_min_ns": 10**9,
        "numa_balancing_scan_size_bytes": 256 << 20,
        "numa_balancing_hot_threshold_ns": 10**9,
        "numa_balancing_promote_rate_limit_bytes_per_s": 65536 << 20,
    }


def test_a_pool_without_extent_gets_a_pageblock(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(SMALL.read_text().replace("    extent: 1MiB\n", ""))
    assert load_config(file).devices["pool"].extent_bytes == 2 << 20


def test_count_names_the_hosts(small: Config) -> None:
    host = small.hosts[0].model_copy(update={"name": "web", "count": 3})
    assert host.names == ("web0", "web1", "web2")


def test_nothing_changes_after_loading(small: Config) -> None:
    with pytest.raises(ValueError, match="frozen"):
        small.name = "other"


# --- round trips


def test_the_effective_configuration_loads_to_an_equal_one(small: Config) -> None:
    plain = config_to_plain(small)
    again = config_from_plain(plain, small.folder)
    assert again == small
    assert config_to_plain(again) == plain
    assert json.loads(json.dumps(plain)) == plain


def test_the_effective_configuration_as_text(small: Config, tmp_path: Path) -> None:
    file = tmp_path / "again.yaml"
    file.write_text(config_to_yaml(small))
    assert config_to_plain(load_config(file)) == config_to_plain(small)


def test_recordings_are_relative_to_where_the_copy_is_kept(small: Config, tmp_path: Path) -> None:
    workload = {"kind": "replay", "recording": "recordings/x.pmtrace"}
    plain = config_to_plain(small)
    plain["hosts"][0]["processes"][0] |= {"workload": workload, "content": {"kind": "recording"}}
    config = Config.model_validate(_tuples(plain))
    config._folder = tmp_path / "configs"
    copied = config_to_plain(config, tmp_path / "results" / "run1")
    assert copied["hosts"][0]["processes"][0]["workload"]["recording"] == "../../configs/recordings/x.pmtrace"


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


# --- overrides


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("engine.duration=500ms", ("engine", "duration"), "500ms"),
        ("seed=0x10", ("seed",), 16),
        ("hosts.0.processes.0.threads=4", ("hosts", 0, "processes", 0, "threads"), 4),
        ("hosts[h0].processes[db].threads=4", ("hosts", 0, "processes", 0, "threads"), 4),
        ("hosts[h0].nodes[2].memory.codec=zstd", ("hosts", 0, "nodes", 2, "memory", "codec"), "zstd"),
        ("hosts.0.sysctl.numa_balancing=2", ("hosts", 0, "sysctl", "numa_balancing"), 2),
        ("results.sample_every = 10", ("results", "sample_every"), 10),
        ("devices.pool.quotas={}", ("devices", "pool", "quotas"), {}),
        ("hosts.0.processes.0.policy={mode: local}", ("hosts", 0, "processes", 0, "policy", "mode"), "local"),
        ("hosts.0.nodes.0.cpus[1]=1", ("hosts", 0, "nodes", 0, "cpus", 1), 1),
    ],
)
def test_an_override_changes_its_field_and_no_other(
    small: Config, override: str, path: tuple[str | int, ...], value: object
) -> None:
    expected = config_to_plain(small)
    place: Any = expected
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    if "policy" in path:
        place["nodes"] = []
    assert config_to_plain(load_config(SMALL, [override])) == expected


def test_overrides_apply_in_order_and_the_seed_last() -> None:
    config = load_config(SMALL, ["seed=1", "seed=2"], seed=3)
    assert config.seed == 3
    assert load_config(SMALL, ["seed=1", "seed=2"]).seed == 2


def test_an_override_of_an_anchored_node_leaves_its_aliases(tmp_path: Path) -> None:
    text = (
        SMALL.read_text()
        .replace("    nodes:\n", "    nodes: &nodes\n")
        .replace("quotas: {h0: 32MiB}", "quotas: {}")
    )
    file = tmp_path / "c.yaml"
    file.write_text(text + "  - {name: h1, cpus: 2, nodes: *nodes}\n")
    config = load_config(file, ["hosts[h1].nodes[1].hop=99"])
    assert [host.nodes[1].hop for host in config.hosts] == [14, 99]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("engine.duration", "--set engine.duration: found no '='; allowed: path.to.field=value"),
        (
            "engine..epoch=1ms",
            "--set engine..epoch: found the path 'engine..epoch'; allowed: names and numbers with dots between, "
            "and [name] for items",
        ),
        (
            "=5",
            "--set : found the path ''; allowed: names and numbers with dots between, and [name] for items",
        ),
        (
            "hosts[h9].cpus=1",
            "--set hosts[h9].cpus: found no item 'h9' in hosts; allowed: h0",
        ),
        (
            "hosts[h0].nodes[7].hop=1",
            "--set hosts[h0].nodes[7].hop: found no item '7' in hosts.h0.nodes; allowed: 0, 1, 2, 3",
        ),
        ("hosts.1.cpus=1", "--set hosts.1.cpus: found the index '1' in hosts; allowed: 0 to 0"),
        (
            "engine.epoch.x=1",
            "--set engine.epoch.x: found '5ms' at engine.epoch; allowed: a mapping or a list, to go further down",
        ),
        (
            "engine.epoch=2",
            "--set engine.epoch: found 2; allowed: a time such as 250us, from 1us to 3600s",
        ),
        (
            "hosts[h0].cpus=two",
            "--set hosts[h0].cpus: hosts.0.cpus: found 'two'; allowed: a whole number from 1 to 1024",
        ),
        (
            "engine.epcoh=2ms",
            "--set engine.epcoh: found an unknown field; allowed: duration, epoch, slice; did you mean epoch?",
        ),
        (
            "name=!!python/name:os.system",
            "--set name: found the tag !!python/name:os.system; allowed: no tags",
        ),
        (
            "name=[",
            "--set name: found text that is not YAML: expected the node content, but found '<stream end>'",
        ),
        (
            "hosts.0.nodes.0.memory={class: dram, capacity: 1KiB}",
            "--set hosts.0.nodes.0.memory: hosts.0.nodes.0.memory.capacity: found '1KiB'; allowed: a size such as "
            "64MiB, from 256KiB to 4TiB",
        ),
        ("engine.epoch=2s", "--set engine.epoch: found 2s; allowed: at most the duration, 1s"),
    ],
)
def test_a_wrong_override_is_named_by_its_option(override: str, message: str) -> None:
    assert problems(SMALL, override) == [message]


def test_a_wrong_seed_is_named_by_its_option() -> None:
    expected = "--seed: seed: found -1; allowed: a whole number from 0 to 9223372036854775807"
    assert problems(SMALL, seed=-1) == [expected]


def test_options_stand_before_the_lines_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(SMALL.read_text().replace("schema: 1", "schema: 3"))
    assert problems(file, "hosts.0.cpus=0", "x=1") == [
        "--set hosts.0.cpus: found 0; allowed: a whole number from 1 to 1024",
        "--set x: found an unknown field; allowed: schema, name, seed, design, engine, results, devices, hosts",
        f"{file}:1: schema: found 3; allowed: 1",
    ]


# --- files


TOP = "allowed: a mapping with schema, name, seed, design, engine, results, devices, hosts"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", f":1: found nothing; {TOP}"),
        (b"\n# nothing\n", f":1: found nothing; {TOP}"),
        (b"\n- 1\n- 2\n", f":2: found a list of 2; {TOP}"),
        (b"schema: 1\nname: \xff\n", ":2: found bytes that are not UTF-8; allowed: UTF-8 text"),
        (b"#" * ((1 << 20) + 1), ":1: found more than 1 MiB of text; allowed: a smaller file"),
    ],
    ids=["empty", "a comment", "a list", "not UTF-8", "too long"],
)
def test_a_file_that_is_no_configuration(body: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_bytes(body)
    assert problems(file) == [f"{file}{message}"]


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    assert problems(tmp_path / "c.yaml") == [f"{tmp_path}/c.yaml: cannot be read: No such file or directory"]
    assert problems(tmp_path) == [f"{tmp_path}: cannot be read: Is a directory"]


def test_a_missing_recording_gets_the_nearest_name(tmp_path: Path) -> None:
    (tmp_path / "recordings").mkdir()
    (tmp_path / "recordings" / "redis.pmtrace").write_bytes(b"")
    file = tmp_path / "c.yaml"
    workload = "{kind: replay, recording: recordings/reddis.pmtrace}"
    file.write_text(SMALL.read_text().replace("{kind: zipf, size: 16MiB, accesses: 1000}", workload))
    assert problems(file) == [
        f"{file}:33: hosts.0.processes.0.workload.recording: found 'recordings/reddis.pmtrace', no such file; "
        "allowed: a .pmtrace file; did you mean recordings/redis.pmtrace?"
    ]


@pytest.fixture
def replaying(tmp_path: Path) -> Path:
    """A configuration that replays `x.pmtrace`: five accesses, one page image."""
    write_trace(
        tmp_path / "x.pmtrace",
        TraceHeader(name="x", nr_pages=2, image_at=(0,)),
        np.array([0, 1, 2, 3, 0], np.uint32),
        distinct_rows([np.zeros((2, 4096), np.uint8)]),
    )
    file = tmp_path / "c.yaml"
    workload = "{kind: replay, recording: x.pmtrace, start: 4}"
    file.write_text(SMALL.read_text().replace("{kind: zipf, size: 16MiB, accesses: 1000}", workload))
    return file


def test_a_recording_is_found_beside_the_file(replaying: Path) -> None:
    config = load_config(replaying)
    workload = config.hosts[0].processes[0].workload
    assert isinstance(workload, ReplayWorkload)
    assert config.recording_path(workload) == replaying.parent / "x.pmtrace"
    assert isinstance(config.hosts[0].processes[0].content, RecordingContent)


def test_a_start_beyond_the_recording(replaying: Path) -> None:
    assert problems(replaying, "hosts.0.processes.0.workload.start=5") == [
        "--set hosts.0.processes.0.workload.start: found 5; allowed: less than the 5 accesses of the recording"
    ]


def test_pages_of_a_recording_without_pages(replaying: Path) -> None:
    trace = replaying.parent / "x.pmtrace"
    write_trace(trace, TraceHeader(name="x", nr_pages=2), np.zeros(5, np.uint32))
    assert problems(replaying) == [
        f"{replaying}:33: hosts.0.processes.0.workload.recording: found 'x.pmtrace', which holds no pages; "
        "allowed: with content of kind: generator"
    ]
    load_config(replaying, ["hosts.0.processes.0.content={kind: generator}"])


def test_a_damaged_recording_is_named_with_its_offset(replaying: Path) -> None:
    trace = replaying.parent / "x.pmtrace"
    trace.write_bytes(trace.read_bytes()[:10])
    assert problems(replaying) == [
        f"{replaying}:33: hosts.0.processes.0.workload.recording: found a file that is no recording "
        f"({trace}: offset 10: file ends inside the preamble, expected 20 bytes); allowed: a .pmtrace file"
    ]


# --- the schema


@pytest.mark.parametrize("path", [*sorted(CONFIGS.glob("*.yaml")), SMALL], ids=lambda path: path.stem)
def test_the_schema_accepts_what_loads(path: Path) -> None:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(yaml.safe_load(path.read_text()), schema)


@pytest.mark.parametrize(
    "override",
    [
        "engine.epoch=5",
        "engine.epohc=5ms",
        "hosts.0.cpus=0",
        "devices.pool.class=cx",
        "hosts.0.nodes.0.cpus=[a]",
    ],
)
def test_the_schema_refuses_what_does_not_load(override: str) -> None:
    path, _, value = override.partition("=")
    plain = yaml.safe_load(SMALL.read_text())
    place = plain
    *steps, last = [int(step) if step.isdigit() else step for step in path.split(".")]
    for step in steps:
        place = place[step]
    place[last] = yaml.safe_load(value)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(plain, json_schema())
    problems(SMALL, override)


# --- whatever is in the file, nothing but ConfigError comes out

JUNK = st.sampled_from(
    [None, True, -1, 0, 1, 7, 1.5, 1e30, "", "x", "64MiB", "-1s", [], [1], [[]], {}, {"kind": "scan"}]
)


def _places(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in items for place in _places(item, (*path, key)))]


PLAIN = yaml.safe_load(SMALL.read_text())
PLACES = _places(PLAIN)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(PLACES[1:]), JUNK, st.booleans()), min_size=1, max_size=4))
def test_any_change_loads_or_is_refused(changes: list[tuple[tuple[str | int, ...], Any, bool]]) -> None:
    plain = copy.deepcopy(PLAIN)
    for path, junk, remove in changes:
        place = plain
        try:
            for step in path[:-1]:
                place = place[step]
            if remove:
                del place[path[-1]]
            else:
                place[path[-1]] = junk
        except (TypeError, KeyError, IndexError):
            continue  # an earlier change has taken the place away
    try:
        config = config_from_plain(plain)
    except ConfigError as error:
        assert all(problem.startswith("configuration:") for problem in error.problems)
    else:
        assert config_from_plain(config_to_plain(config)) == config
