"""Time a command and measure its peak memory, on an otherwise idle machine.

    python benchmarks/measure.py -- make quickstart

Prints one JSON line on stdout: seconds of wall time, the largest drop of the machine's available memory in GB
(10**9 bytes, shared memory included, reclaimable cache excluded), the exit status, and the machine. The command's
output goes to stderr.
"""

import json
import platform
import subprocess
import sys
import time

import psutil

_PERIOD_S = 0.5


def main() -> int:
    """Run the command after `--` and return its exit status."""
    _script, *arguments = sys.argv
    if arguments[:1] != ["--"] or len(arguments) == 1:
        print(__doc__, file=sys.stderr)
        return 2
    before = lowest = psutil.virtual_memory().available
    start = time.monotonic()
    process = subprocess.Popen(arguments[1:], stdout=sys.stderr)
    while process.poll() is None:
        lowest = min(lowest, psutil.virtual_memory().available)
        time.sleep(_PERIOD_S)
    result = {
        "command": " ".join(arguments[1:]),
        "wall_time_s": round(time.monotonic() - start, 1),
        "peak_memory_gb": round((before - lowest) / 1e9, 2),
        "exit_status": process.returncode,
        "cores": psutil.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(),
    }
    print(json.dumps(result))
    return process.returncode


if __name__ == "__main__":
    raise SystemExit(main())
