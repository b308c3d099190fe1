"""What a pool saves: the demand model by hand, the emulator beside it, and the page that states both."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from privmem.cluster import run

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "experiments.md"


def module(name: str) -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "tools" / "figures"))
        return importlib.import_module(name)


@pytest.fixture(scope="module")
def pond() -> ModuleType:
    return module("pond_demand")


@pytest.fixture(scope="module")
def pools() -> ModuleType:
    return module("pools")


def test_a_pool_holds_the_peak_of_the_sum_not_the_sum_of_peaks(pond, monkeypatch):
    """Two servers of 100 pages, half of them local: the first day asks the pool for 45 and 20, the second for
    30 and 40.
    """
    demand = pond.Demand(2, server_pages=100)
    monkeypatch.setattr(pond.Demand, "pages", lambda self: pond.np.array([[95, 70], [80, 90]]))
    assert demand.least_pages == 75
    assert demand.pool_pages() == 45 + 25  # the first has its first day, the second what it always needs
    assert demand.saved(70) == pytest.approx(0.15)  # 50 + 50 + 70 of 200
    assert demand.saved(100) == 0


def test_servers_change_one_after_the_other(pond, monkeypatch):
    """The first has its high second day while the second has its high first one still."""
    demand = pond.Demand(2, server_pages=100)
    monkeypatch.setattr(pond.Demand, "pages", lambda self: pond.np.array([[75, 95], [95, 75]]))
    assert demand.pool_pages() == 45 + 45


def test_hosts_hold_whole_extents_and_give_one_back_an_epoch(pond, monkeypatch):
    """One server of 8192 pages, half of them local, which always needs 6144."""
    demand = pond.Demand(1, days=3)
    monkeypatch.setattr(pond.Demand, "pages", lambda self: pond.np.array([[8000], [6400], [6400]]))
    assert demand.pool_pages() == 8000 - 4096
    assert (
        demand.held_pages() == 62 * 64
    )  # 3904 behind, 5 that stay free in local memory, 35 of the low watermark
    monkeypatch.setattr(pond.Demand, "pages", lambda self: pond.np.array([[6145], [6145], [6145]]))
    assert demand.held_pages() == 33 * 64


def test_demand_keeps_to_its_range(pond):
    pages = pond.Demand(16).pages()
    assert pages.shape == (75, 16)
    assert (int(pages.min()), int(pages.max())) == (6148, 8191)
    assert (pond.Demand(16, stranded_max=0.15).pages() >= 8192 * 0.85).all()


def test_the_configuration_is_what_the_model_writes(pond):
    """When this fails: `python tools/figures/pools.py pond-config 16 > configs/experiments/pond.yaml`."""
    assert (ROOT / "configs" / "experiments" / "pond.yaml").read_text() == pond.pond_text(pond.Demand(16))


def emulate(pond: ModuleType, folder: Path, **demand: int) -> tuple[float, float, float]:
    """(saved as emulated, by arithmetic in whole extents, of the demand alone)."""
    asked = pond.Demand(**demand)
    file = folder / "pond.yaml"
    file.write_text(yaml.safe_dump(pond.pond_configuration(asked)))
    result = run(file)
    pool = result.summary["scheduler"]["devices"]["pool"]
    for host in result.summary["hosts"].values():
        assert [host["vmstat"][e] for e in ("oom_kill", "extents_refused", "pswpout")] == [0, 0, 0]
    pages = (pool["peak_total_pages"], asked.held_pages(), asked.pool_pages())
    emulated, in_extents, alone = map(asked.saved, pages)
    return emulated, in_extents, alone


def test_emulated_and_by_arithmetic(pond, pools, tmp_path):
    emulated, in_extents, alone = emulate(pond, tmp_path, hosts=3, days=2)
    assert abs(emulated - in_extents) < pools.BOUND
    assert 0 < emulated < alone


@pytest.mark.full
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_other_draws_lie_as_near(pond, pools, tmp_path, seed):
    emulated, in_extents, alone = emulate(pond, tmp_path, hosts=8, days=10, seed=seed)
    assert abs(emulated - in_extents) < pools.BOUND
    assert 0 < emulated < alone


@pytest.mark.full
@pytest.mark.timeout(900)  # a busy machine is not a fault of the code
def test_the_page_states_what_came_out(pools, monkeypatch):
    """The two runs, which take two minutes of CPU time. When this fails: `python tools/figures/pools.py pond`."""
    monkeypatch.syspath_prepend(str(ROOT / "tools" / "figures"))  # for the processes that run them
    page = PAGE.read_text()
    assert [line for line in pools.pond() if line.rstrip() not in page] == []


def test_the_page_states_what_the_model_gives(pools):
    """When this fails: `python tools/figures/pools.py sensitivity`."""
    page = PAGE.read_text()
    assert [line for line in pools.sensitivity() if line.rstrip() not in page] == []
