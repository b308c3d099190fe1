"""docs/latency.md is what its command prints, and no figure that tests the model has moved away unseen."""

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def latency():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "tools" / "figures"))
        return importlib.import_module("latency")


def test_what_was_put_in_comes_out(latency):
    assert {row.what: row.distance for row in latency.setting() if abs(row.distance) > 0.06} == {}


def test_figures_that_nothing_was_fitted_to(latency):
    """Those that are farther off than a sixth are these, and the page says why."""
    far = {(row.what, row.source.partition(";")[0]) for row in latency.testing() if abs(row.distance) > 1 / 6}
    assert far == {
        ("DRAM at rest", "Colloid"),
        ("far memory at rest", "Colloid, other socket"),
        ("far over near memory", "Pond, Fig. 4, second machine"),
        ("CXL over DRAM, FPGA", "Nomad, Table 1, platform A"),
        ("CXL over DRAM, FPGA", "Nomad, Table 1, platform B"),
        ("DRAM under contention, over rest", "Colloid, up to"),
        ("contended DRAM over CXL at rest", "Colloid, abstract"),
    }


def test_no_source_that_tests_also_sets(latency):
    """But for Nomad's other platforms and Mess' other machine and traffic, which the page names."""
    setting = {row.source.partition(",")[0] for row in latency.setting()}
    testing = {row.source.partition(";")[0] for row in latency.testing()}
    both = {source for source in testing if source.partition(",")[0] in setting}
    assert both == {
        "Nomad, Table 1, platform A",
        "Nomad, Table 1, platform B",
        "Mess, Skylake DDR4, 78 % reads",
        "Mess, the same expander, 58 % reads",
    }


def test_the_page_is_what_the_command_prints(latency):
    """When this fails: `python tools/figures/latency.py > docs/latency.md`."""
    assert (ROOT / "docs" / "latency.md").read_text() == latency.page()


def test_a_device_moves_no_more_than_its_bandwidth(latency):
    ns, gb_s = latency.measured("cxl", latency.SATURATED)
    assert gb_s <= 83.0 and ns == pytest.approx(latency.SATURATED * 64 / 83, rel=0.01)
