"""`python -m cfpo_verl.slurm.supervise COMMAND...`: run a command and end every process that it started.

SLURM ends a step with a signal. Ray's processes detach from their parents, and only some clusters have control groups
that find them. This process adopts them as a subreaper and ends them, but no processes of other jobs.
"""

import subprocess
import sys

from cfpo_verl.processes import ending_what_it_starts


def main(command: list[str]) -> int:
    """Run the command and return its exit status, 128 + 15 if SIGTERM ended it."""
    # SLURM sends SIGKILL 30 s after SIGTERM by default.
    with ending_what_it_starts(grace_s=5):
        return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
