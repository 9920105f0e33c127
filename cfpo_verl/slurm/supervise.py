"""`python -m cfpo_verl.slurm.supervise COMMAND...`: run a command, and let nothing of it live on.

A step of SLURM is ended by a signal. Ray's processes leave their parents behind, and not every cluster has control
groups that would find them; here they are adopted and ended, and nobody else's are.
"""

import subprocess
import sys

from cfpo_verl.processes import ending_what_it_starts


def main(command: list[str]) -> int:
    """Run the command and return its exit status, 128 + 15 if SIGTERM ended it."""
    # SLURM kills what is left 30 s after it has asked, by default.
    with ending_what_it_starts(grace_s=5):
        return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
