"""One private Ray instance for the whole session; the Ray runtime uses the connection that it finds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def ray_instance() -> Iterator[None]:
    from privmem.cluster.runtime.on_ray import private_instance

    with private_instance():
        yield
