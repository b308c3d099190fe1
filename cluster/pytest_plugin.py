"""The pytest plugin that comes with privmem: fixtures for tests of placement rules.

def test_nothing_spills(privmem_run):
    summary = privmem_run("rack.yaml", overrides=["engine.duration=10ms"]).summary
    assert summary["headline"]["oom_kill"] == 0
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from privmem.cluster.api import Emulation


@pytest.fixture(scope="session")
def privmem_run() -> Callable[..., Emulation]:
    """`privmem.cluster.run`, inline, with every invariant recounted after each epoch."""
    from privmem.cluster.api import run

    def run_checked(config: Any, **options: Any) -> Emulation:
        return run(config, **{"validate": True, **options})

    return run_checked


@pytest.fixture(scope="session")
def privmem_ray() -> Iterator[Callable[..., Emulation]]:
    """The same on one private local Ray instance, started once for the session and stopped after it."""
    from privmem.cluster.api import run
    from privmem.cluster.runtime.on_ray import private_instance

    with private_instance():

        def run_on_ray(config: Any, **options: Any) -> Emulation:
            return run(config, **{"runtime": "ray", **options})

        yield run_on_ray
