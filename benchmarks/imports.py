"""Time and memory of `import verl` with and without the plugin, in fresh processes that take turns.

    python -m benchmarks.imports
    python -m benchmarks.imports --rounds 10 --out build/imports.json

A process that computes no loss (a reward worker, a vLLM server, an agent loop) imports verl, and should hardly notice
the plugin. One that computes losses imports verl's losses as well.
"""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import track

from benchmarks.tables import print_rows
from cfpo_verl.files import write_atomically
from cfpo_verl.terminal import App

PROCESSES = {"no loss": "import verl", "losses": "import verl, verl.workers.utils.losses"}
WITHOUT, WITH = "none", "auto"
# The largest resident size would include what the imports free again.
_CHILD = """
import time
began, began_cpu = time.perf_counter(), time.process_time()
{imports}
import json, psutil, sys
print(json.dumps([
    time.perf_counter() - began, time.process_time() - began_cpu, psutil.Process().memory_info().rss, len(sys.modules)
]))
"""


def measure(imports: str, plugins: str) -> tuple[float, float, float, int]:
    """Return wall time and processor time in seconds, resident memory in MB, and the number of modules."""
    environment = {**os.environ, "VERL_USE_EXTERNAL_PLUGINS": plugins}
    command = [sys.executable, "-c", _CHILD.format(imports=imports)]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    wall_s, cpu_s, resident, modules = json.loads(answer.stdout.splitlines()[-1])
    return wall_s, cpu_s, resident / 2**20, modules


app = App()


@app.command()
def _main(
    rounds: Annotated[int, typer.Option(min=1, help="Processes of each kind.")] = 7,
    out: Annotated[Path, typer.Option(help="JSON file to write.")] = Path("benchmarks/imports.json"),
) -> None:
    """Measure what the plugin adds to the start of a process that imports verl.

    Times and sizes are medians; ratios are those of processes that ran one after the other.
    """
    kinds = [(process, plugins) for process in PROCESSES for plugins in (WITHOUT, WITH)]
    measure(PROCESSES["losses"], WITH)  # reads the files once
    found: dict[tuple[str, str], list[tuple[float, float, float, int]]] = {kind: [] for kind in kinds}
    for number in track(range(rounds), description="imports"):
        for process, plugins in kinds if number % 2 else reversed(kinds):
            found[process, plugins].append(measure(PROCESSES[process], plugins))
    rows: list[dict[str, Any]] = []
    for process, plugins in kinds:
        wall_s, cpu_s, resident_mb, modules = map(statistics.median, zip(*found[process, plugins], strict=True))
        pairs = list(zip(found[process, plugins], found[process, WITHOUT], strict=True))
        rows.append(
            {
                "process": process,
                "plugin": "yes" if plugins == WITH else "no",
                "wall_s": wall_s,
                "cpu_s": cpu_s,
                "cpu_ratio": statistics.median(ours[1] / plain[1] for ours, plain in pairs),
                "resident_mb": resident_mb,
                "added_mb": statistics.median(ours[2] - plain[2] for ours, plain in pairs),
                "modules": int(modules),
            }
        )
    print_rows(rows, f"import verl, {rounds} processes of each kind")
    write_atomically(out, json.dumps({"python": sys.version.split()[0], "rows": rows}, indent=1))
    print(out)


if __name__ == "__main__":
    app()
