"""The machine with every class of memory at once, every workload running, under each isolation design."""

from __future__ import annotations

from pathlib import Path

import pytest

from privmem.cluster.assembly import make_plan
from privmem.cluster.audit.machine import machine_of
from privmem.cluster.audit.under_load import LoadedRun, audit_under_load
from privmem.cluster.audit.watch import Watch
from privmem.cluster.config import load_config
from privmem.scheduler import plain
from privmem.scheduler.isolation import select_designs

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "experiments" / "all_classes.yaml"
DESIGNS = [design.name for design in select_designs("all")]
SHORT = ("engine.duration=20ms",)


def config_of(design: str, *overrides: str, plugins: tuple[Path, ...] = ()):
    return load_config(CONFIG, (*SHORT, *overrides), design=design, plugins=plugins)


def to_the_end(run: LoadedRun, watch: Watch | None = None) -> LoadedRun:
    while not run.engine.done:
        run.epoch()
        if watch is not None:
            watch.look(run.hosts)
    return run


@pytest.mark.parametrize("design", DESIGNS)
def test_every_page_is_accounted_for_after_every_epoch_and_nobody_is_where_he_was_not_invited(design):
    config = config_of(design)
    watch = Watch({node.nid: node.wish for node in machine_of(config).private})
    run = to_the_end(LoadedRun(make_plan(config)), watch)
    assert watch.epochs == 20
    assert watch.leaks == 0
    for host in run.hosts:
        count = host.memory.vmstat.count
        assert (count["pgleak"], count["oom_kill"], count["driver_migrate_fail"]) == (0, 0, 0)
        assert min(program.accesses_done for program in host.programs) > 5000
        # Every class is used: the workloads' own ways, reclaim's, and the owners'.
        ways = (
            "pgdemote_kswapd",
            "pgdemote_owner",
            "pgpromote_success",
            "driver_migrate_in",
            "netbuf_device",
        )
        assert all(count[way] > 50 for way in ways), count
        dma = host.summary()["processes"]["train"]["calls"]
        in_place = design in ("gfp-private", "no-fallback", "caps")
        assert (dma["dma_pinned_on_node"], dma["dma_pinned_elsewhere"]) == ((32, 0) if in_place else (0, 32))
    used = {
        nid for host in run.hosts for nid, reads in enumerate(host.memory.nr_accesses.sum(axis=1)) if reads
    }
    assert used == {0, 1, 2, 3, 5, 6}


def test_a_run_that_is_stopped_goes_on_to_the_same_end():
    plan = make_plan(config_of("caps"))
    whole = LoadedRun(plan)
    for _ in range(11):
        whole.epoch()
    snapshot = plain.unpack(*plain.pack(whole.engine.snapshot()))
    to_the_end(whole)
    assert to_the_end(LoadedRun(plan, snapshot)).engine.digest() == whole.engine.digest()


def test_a_class_of_a_users_own_takes_the_place_of_another(tmp_path):
    """The plug-in of the documentation in place of CXL memory, among all the others."""
    page = (ROOT / "docs" / "plugins.md").read_text()
    plugin = tmp_path / "pcm.py"
    plugin.write_text(page.partition("```python\n")[2].partition("```")[0])
    memory = "hosts[h].nodes[2].memory={class: plugin, plugin: pcm, capacity: 4MiB}"
    run = to_the_end(LoadedRun(make_plan(config_of("private-zonelist", memory, plugins=(plugin,)))))
    host = run.hosts[0]
    assert host.memory.nr_accesses[2].sum() > 1000
    assert host.memory.nodes[2].device_ns[0] >= 350


@pytest.mark.full
@pytest.mark.parametrize("design", DESIGNS)
def test_the_matrix_holds_under_load(design):
    """Every activity, in the midst of the whole run: no cell leaks that does not on an idle machine."""
    (audit,) = audit_under_load(lambda name: load_config(CONFIG, design=name), [design])
    assert [cell.loaded.activity for cell in audit.cells if cell.opened] == []
    assert sum(row.uninvited + row.left for row in audit.seen) == audit.pgleak == audit.killed == 0
    assert audit.epochs == 60
    assert audit.after == 2 * len(audit.cells)
    assert sum(bool(cell.loaded.not_run) for cell in audit.cells) <= 2
    leaking = [cell for cell in audit.cells if cell.idle.leaks]
    assert sum(bool(cell.loaded.leaks) for cell in leaking) >= len(leaking) // 2
