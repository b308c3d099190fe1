"""privmem from Python: one call runs a configuration and gives back what it found.

from privmem.cluster import run
result = run("configs/quickstart.yaml", overrides=["hosts.0.sysctl.numa_balancing=0"])
result.summary["headline"]["pgdemote_kswapd"], result.frame("host")
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from privmem.cluster.assembly import make_plan
from privmem.cluster.config import Config, load_config
from privmem.cluster.engine import Engine
from privmem.cluster.results.series import tables_of
from privmem.cluster.runtime import DEFAULT_RUNTIME, make_runtime
from privmem.cluster.runtime.base import DEFAULT_BUILD

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True)
class Emulation:
    """A finished run."""

    digest: str
    #: As in `summary.json`.
    summary: dict[str, Any]
    #: "host", "host_node", "device", "scheduler": time series as Arrow tables.
    tables: dict[str, pa.Table]

    def frame(self, table: str) -> Any:
        """A time series as a pandas DataFrame; needs pandas, which privmem does not."""
        return self.tables[table].to_pandas()


def run(
    config: str | os.PathLike[str] | Config,
    *,
    overrides: Sequence[str] = (),
    seed: int | None = None,
    runtime: str = DEFAULT_RUNTIME,
    validate: bool = False,
    plugins: Sequence[str | os.PathLike[str]] = (),
    **options: Any,
) -> Emulation:
    """Run a configuration (a file, or one that `load_config` gave) and write nothing.

    `overrides`, `seed` and `plugins` are those of the command line, for a file; `runtime` is "inline" or "ray", and
    `options` go to it (`address`, `pack`). `validate` recounts all state after every epoch. Raises
    ConfigError and TraceError for what is wrong with the files, InvariantError when privmem is.
    """
    if not isinstance(config, Config):
        files = [Path(file) for file in plugins]
        config = load_config(Path(config), tuple(overrides), seed, plugins=files)
    plan = make_plan(config)
    carrier = make_runtime(runtime, **options)
    try:
        carrier.start(plan, DEFAULT_BUILD)
        engine = Engine(plan, carrier, validate=validate)
        engine.run()
        result = engine.result()
    finally:
        carrier.stop()
    return Emulation(result.digest, result.summary, tables_of(result.samples))
