"""cfpo_verl.processes: everything a run started is ended, and nothing else."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import psutil
import pytest

from cfpo_verl import processes

# Ignores SIGTERM, and is orphaned at once by a parent in a session of its own.
STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("up", flush=True)
time.sleep(600)
"""
ORPHANING = f"""
import subprocess, sys
print(subprocess.Popen([sys.executable, "-c", {STUBBORN!r}], start_new_session=True).pid, flush=True)
"""
FAMILY = f"""
import subprocess, sys, time
from cfpo_verl.processes import ending_what_it_starts
with ending_what_it_starts(grace_s=2):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    middle = subprocess.Popen([sys.executable, "-c", {ORPHANING!r}], stdout=subprocess.PIPE, text=True)
    orphan = middle.stdout.readline().strip()
    assert middle.stdout.readline() == "up\\n"
    middle.wait()
    print(child.pid, orphan, flush=True)
    BODY
"""


@pytest.fixture
def start():
    """Start a family whose parent already had a child, as a batch script that execs the trainer may have."""
    started = []

    def start(body):
        code = FAMILY.replace("BODY", body)
        command = ["bash", "-c", 'sleep 600 & echo $!; exec "$0" -c "$1"', sys.executable, code]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        bystander = int(process.stdout.readline())
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert len(pids) == 2
        started.extend([process.pid, bystander, *pids])
        return process, bystander, pids

    yield start
    for pid in started:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("body", "sent", "status"),
    [
        pytest.param("pass", None, 0, id="normal-end"),
        pytest.param("raise ValueError", None, 1, id="error"),
        pytest.param("time.sleep(600)", signal.SIGINT, -signal.SIGINT, id="ctrl-c"),
        pytest.param("time.sleep(600)", signal.SIGTERM, 143, id="sigterm"),
    ],
)
def test_ends_orphans_and_the_stubborn_and_spares_others(start, body, sent, status):
    process, bystander, pids = start(body)
    if sent is not None:
        time.sleep(0.5)
        process.send_signal(sent)
    assert process.wait(timeout=60) == status
    assert [psutil.pid_exists(pid) for pid in pids] == [False, False]
    assert psutil.pid_exists(bystander)


def test_gives_up_on_what_cannot_be_ended(monkeypatch):
    class Unkillable:
        """A fake at the edge: a process that waits for a device cannot be had on demand."""

        def terminate(self):
            pass

        def kill(self):
            looks.append("killed")
            assert len(looks) < 5, "still trying"

    looks = []
    stuck = [Unkillable()]
    monkeypatch.setattr(processes, "_descendants", lambda _spared: stuck)
    monkeypatch.setattr(psutil, "wait_procs", lambda given, timeout: ([], list(given)))
    processes.end_descendants(grace_s=0)
    assert looks == ["killed"]
