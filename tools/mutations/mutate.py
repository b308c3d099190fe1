"""Break one rule of the source at a time, and see that the litmus library notices.

    python tools/mutations/mutate.py [-k TEXT] [--list]

Each entry of mutations.yaml names a file, a text that occurs in it exactly once, and what to put in its place.
The packages are copied into a temporary folder, the change is made there, and `privmem litmus configs/litmus
--design all --exitfirst` runs on the copy. A mutation is caught when a litmus test fails. The script ends with
status 1 when one survives, or no longer applies.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PACKAGES = ("scheduler", "nodeagent", "cluster", "configs")
#: A mutation may make a test run for ever; that counts as caught.
TIMEOUT_S = 300


class Copy:
    """A copy of the packages under their import names."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for package in PACKAGES:
            shutil.copytree(
                ROOT / package, folder / "privmem" / package, ignore=shutil.ignore_patterns("__pycache__")
            )

    def litmus(self) -> tuple[int, str]:
        """Exit status and output of the litmus library on this copy."""
        environment = os.environ | {
            "PYTHONPATH": str(self.folder),
            # The compiled parts are the same in every copy: compile them once.
            "NUMBA_CACHE_DIR": str(self.folder.parent / "numba"),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        command = [sys.executable, "-m", "privmem.cluster", "litmus", "--design", "all", "--exitfirst"]
        command.append(str(self.folder / "privmem" / "configs" / "litmus"))
        try:
            run = subprocess.run(
                command,
                env=environment,
                cwd=self.folder,  # `-m` looks there first: not at some other checkout
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
            )
        except subprocess.TimeoutExpired:
            return 1, "ran for ever"
        return run.returncode, run.stdout + run.stderr

    def apply(self, mutation: dict[str, str]) -> str:
        """Make the change. Returns the original text, or raises ValueError."""
        path = self.folder / "privmem" / mutation["file"]
        text = path.read_text()
        if text.count(mutation["old"]) != 1:
            raise ValueError(
                f"{mutation['file']} holds the text {text.count(mutation['old'])} times, not once"
            )
        path.write_text(text.replace(mutation["old"], mutation["new"]))
        return text

    def restore(self, mutation: dict[str, str], text: str) -> None:
        (self.folder / "privmem" / mutation["file"]).write_text(text)


def judge(copy: Copy, mutation: dict[str, str]) -> tuple[bool, str]:
    """Whether the litmus library notices, and how."""
    try:
        text = copy.apply(mutation)
    except ValueError as problem:
        return False, f"does not apply: {problem}"
    try:
        status, output = copy.litmus()
    finally:
        copy.restore(mutation, text)
    reasons = [line.strip() for line in output.splitlines() if "FAIL" in line or "Error" in line]
    return status != 0, reasons[0][:140] if reasons else output.strip()[-140:]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-k", metavar="TEXT", default="", help="only mutations whose name holds this text")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    options = parser.parse_args()
    mutations = [m for m in yaml.safe_load((HERE / "mutations.yaml").read_text()) if options.k in m["name"]]
    if options.list:
        print("\n".join(m["name"] for m in mutations))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        copies = [Copy(Path(folder) / f"copy{n}") for n in range(min(os.cpu_count() or 1, len(mutations)))]
        status, output = copies[0].litmus()
        if status:
            print(f"the library fails without any mutation:\n{output[-2000:]}")
            return 1
        free = list(copies)

        def work(mutation: dict[str, str]) -> tuple[bool, str]:
            copy = free.pop()
            try:
                return judge(copy, mutation)
            finally:
                free.append(copy)

        survived = 0
        with ThreadPoolExecutor(len(copies)) as pool:
            for mutation, (caught, how) in zip(mutations, pool.map(work, mutations), strict=True):
                survived += not caught
                print(f"{'caught  ' if caught else 'SURVIVED'} {mutation['name']}: {how}", flush=True)
        print(f"{len(mutations) - survived} of {len(mutations)} mutations caught")
        return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
