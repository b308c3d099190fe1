"""The Python API: one call, the same answer as the command line's parts give."""

from __future__ import annotations

from pathlib import Path

import pytest

import privmem.cluster
from privmem.cluster import load_config, run
from privmem.cluster.errors import ConfigError

RACK = Path(__file__).resolve().parents[1] / "simulation/rack.yaml"
SHORT = ["engine.duration=5ms"]


def test_run_a_file_or_a_configuration():
    by_file = run(RACK, overrides=SHORT, validate=True)
    by_config = run(load_config(RACK, tuple(SHORT)))
    assert by_file.digest == by_config.digest != ""
    assert by_file.summary == by_config.summary
    host = by_file.tables["host"]
    assert host.num_rows == 2 * 5
    assert host.column("accesses").to_pylist()[-1] > 0


def test_seed_and_overrides_matter():
    assert run(RACK, overrides=SHORT, seed=1).digest != run(RACK, overrides=SHORT, seed=2).digest


def test_mistakes_are_config_errors():
    with pytest.raises(ConfigError, match=r"--set engine\.epoch"):
        run(RACK, overrides=["engine.epoch=5"])


def test_public_names():
    for name in privmem.cluster.__all__:
        assert getattr(privmem.cluster, name) is not None
    with pytest.raises(AttributeError, match="has no 'frobnicate'"):
        privmem.cluster.frobnicate  # noqa: B018 - the access is the test


def test_the_pytest_fixture_runs_and_validates(privmem_run):
    assert privmem_run(RACK, overrides=SHORT).digest == run(RACK, overrides=SHORT).digest
