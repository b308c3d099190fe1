"""The Ray runtime against the inline one: same digests, same rounds; and what it says when something dies."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fake_rack
import pytest
import yaml

from privmem.cluster.assembly import make_plan
from privmem.cluster.config import load_config
from privmem.cluster.engine import Engine
from privmem.cluster.errors import ConfigError, InvariantError, ParticipantLost, ProtocolError
from privmem.cluster.plan import Plan
from privmem.cluster.runtime import make_runtime
from privmem.cluster.runtime.base import DEFAULT_BUILD
from privmem.scheduler import plain

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_instance")]

RACK = Path(__file__).parents[1] / "simulation" / "rack.yaml"
EXPERIMENTS = Path(__file__).parents[2] / "configs" / "experiments"
#: Counters of every host that show that a run did what it is there for.
EXERCISED = {
    "rack": ("pgpromote_fence", "extents_granted", "literal_sent", "literal_returned"),
    "overloaded pool": ("extents_refused",),
    "fairness": ("extents_refused", "extents_granted"),
    "pond": ("extents_granted", "extents_released"),
}


@contextmanager
def engine_on(
    runtime_name: str, plan: Plan, build: str = fake_rack.BUILD, **options: Any
) -> Iterator[Engine]:
    runtime = make_runtime(runtime_name, **options)
    try:
        runtime.start(plan, build)
        yield Engine(plan, runtime)
    finally:
        runtime.stop()


@pytest.mark.parametrize("pack", [1, 4])
def test_digest_rounds_and_summary_are_those_of_inline(pack: int) -> None:
    plan = fake_rack.make_plan(events=30)
    with engine_on("inline", plan) as engine:
        engine.run()
        expected = engine.result()
    with engine_on("ray", plan, pack=pack) as engine:
        engine.run()
        assert engine.result() == expected


#: Configurations by what they exercise, shortened: [file, overrides].
WORLDS: dict[str, tuple[Path, tuple[str, ...]]] = {
    # One process has literal pages, the other described ones.
    "rack": (RACK, ("engine.duration=50ms", "hosts[h].processes[hotset].content.literal=true")),
    "overloaded pool": (
        RACK.with_name("pools.yaml"),
        ("engine.duration=40ms", "devices.pool.removals=[{at: 30ms, host: h1, size: 256KiB}]"),
    ),
    "fairness": (
        EXPERIMENTS / "fairness.yaml",
        (
            "engine.duration=40ms",
            "hosts.0.count=2",
            "devices.pool.weights={h0: 1, h1: 3}",
            "devices.pool.capacity=1280KiB",
            "hosts.0.processes.0.workload.size=2MiB",
        ),
    ),
}


def pond(folder: Path) -> Path:
    """Two servers for three days, at a quarter of the scale."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[2] / "tools" / "figures"))
        model = importlib.import_module("pond_demand")
    config = model.pond_configuration(model.Demand(2, days=3, server_pages=2048), day_ms=12)
    file = folder / "pond.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


@pytest.mark.parametrize("world", [*WORLDS, "pond"])
def test_digest_and_results_are_those_of_inline_packed_and_unpacked(world: str, tmp_path: Path) -> None:
    file, overrides = WORLDS.get(world) or (pond(tmp_path), ())
    plan = make_plan(load_config(file, overrides))
    results = []
    for name, options in (("inline", {}), ("ray", {"pack": 1}), ("ray", {"pack": 4})):
        with engine_on(name, plan, DEFAULT_BUILD, **options) as engine:
            engine.run()
            results.append(engine.result())
    assert results[1] == results[0]
    assert results[2] == results[0]
    hosts = results[0].summary["hosts"].values()
    for counter in EXERCISED[world]:
        assert all(host["vmstat"][counter] > 0 for host in hosts), counter


def test_a_plugin_travels_to_the_workers(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text()
    for name, language in (("pcm.py", "python"), ("rack.yaml", "yaml")):
        (tmp_path / name).write_text(page.partition(f"```{language}\n")[2].partition("```")[0])
    plan = make_plan(load_config(tmp_path / "rack.yaml", plugins=[tmp_path / "pcm.py"]))
    (tmp_path / "pcm.py").unlink()
    digests = []
    for name in ("inline", "ray"):
        with engine_on(name, plan, DEFAULT_BUILD) as engine:
            engine.run()
            digests.append(engine.result().digest)
    assert digests[0] == digests[1] != ""


@pytest.mark.parametrize(("first", "second"), [("ray", "inline"), ("inline", "ray")])
def test_a_run_goes_on_in_the_other_runtime(first: str, second: str) -> None:
    plan = fake_rack.make_plan(events=30)
    with engine_on("inline", plan) as engine:
        engine.run()
        expected = engine.result()
    options = {"inline": {}, "ray": {"pack": 4}}
    with engine_on(first, plan, **options[first]) as engine:
        engine.run_epoch()
        snapshot = plain.unpack(*plain.pack(engine.snapshot()))
    with engine_on(second, plan, **options[second]) as engine:
        engine.restore(snapshot)
        engine.run()
        assert engine.result() == expected


def test_a_dead_actor_is_a_lost_participant() -> None:
    plan = fake_rack.make_plan(events=30, h1={"dies_at": 5})
    with engine_on("ray", plan, pack=4) as engine, pytest.raises(ParticipantLost) as caught:
        engine.run()
    assert str(caught.value).startswith("host/h0, host/h1, host/h2: the process that carried it is gone: ")


def test_exceptions_keep_their_kind() -> None:
    plan = fake_rack.make_plan(events=30, h1={"fails_at": 5})
    with engine_on("ray", plan, pack=4) as engine, pytest.raises(ProtocolError, match=r"^asked to fail$"):
        engine.run()
    plan = fake_rack.make_plan(events=30, h1={"breaks_at": 5})
    with engine_on("ray", plan, pack=4) as engine, pytest.raises(InvariantError, match="asked to break"):
        engine.run()


def test_a_machine_with_another_privmem_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from privmem.cluster.runtime import on_ray

    real = on_ray.installed()
    monkeypatch.setattr(on_ray, "installed", lambda: real | {"source": "mine", "privmem": "9"})
    with pytest.raises(ConfigError) as caught, engine_on("ray", fake_rack.make_plan(hosts=1), pack=4):
        pass
    assert len(caught.value.problems) == 3
    machine, _, rest = caught.value.problems[0].partition(" (")
    assert machine.startswith("machine ")
    assert rest == (
        f"device/pool): privmem is {real['privmem']!r} there and '9' here; "
        f"source is {real['source']!r} there and 'mine' here"
    )


def test_options_are_checked() -> None:
    with pytest.raises(ConfigError, match="--pack: found 0"):
        make_runtime("ray", pack=0)
    with pytest.raises(ConfigError, match="connected to a Ray cluster already"):
        make_runtime("ray", address="127.0.0.1:1").start(fake_rack.make_plan(), fake_rack.BUILD)
