"""Litmus tests: an argument about placement as a small YAML file, run under every isolation design.

`script` reads a file, `machine` builds what it runs on, `steps` and `expectations` are the two vocabularies,
`runner` runs a file under a design. See docs/litmus.md.
"""

from __future__ import annotations

from privmem.cluster.litmus.runner import Result, run_script
from privmem.cluster.litmus.script import Script, find_scripts, load_script

__all__ = ["Result", "Script", "find_scripts", "load_script", "run_script"]
