"""A real SLURM cluster of two nodes on this machine, for tests: Debian's slurmctld, slurmd and munge.

Each node is a slurmd in namespaces of its own: a network (10.98.N.1 and .2 on one bridge), a host name, and a /tmp.
What two machines do not share, these do not share either; what they do share is a folder, as a cluster's file system.
That the nodes are one machine is the only thing made up.
"""

import getpass
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

NODES = ("n1", "n2")
_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "ip", "nsenter", "unshare", "shellcheck")
_PROJECT = Path(__file__).parents[1]

_CONFIG = """\
ClusterName=cfpo
SlurmctldHost={host}({gateway})
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
# A requeued job may start again once the credential of its last start has expired: 120 s by default.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
ReturnToService=2
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdSpoolDir={folder}/spool-%n
StateSaveLocation={folder}/state
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_min_interval=100000
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
# So that a node that goes away is noticed soon.
SlurmdTimeout=20
MaxArraySize=100
{nodes}
PartitionName=main Nodes={names} Default=YES MaxTime=INFINITE State=UP OverSubscribe=YES
"""

# What a node shares with the machine under /tmp, where it has a folder of its own, is mounted there first.
_NODE = """\
set -e
hostname {name}
mount --bind {hosts} /etc/hosts
for shared in {shared}; do
    mkdir -p "{tmp}/${{shared#/tmp/}}"
    mount --rbind "$shared" "{tmp}/${{shared#/tmp/}}"
done
mount --rbind {tmp} /tmp
exec slurmd -D -N {name} -f {config}
"""


def missing_programs() -> str:
    """Say what this machine lacks for such a cluster, "" if nothing."""
    missing = [name for name in _PROGRAMS if shutil.which(name, path=_PATH) is None]
    if missing:
        return f"not installed: {', '.join(missing)} (make system-deps, as root)"
    return "" if os.getuid() == 0 else "network namespaces need root"


_PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"


@dataclass
class SlurmCluster:
    """The running cluster.

    Args:
        folder: SLURM's own files.
        shared: A folder that both nodes see under the same path, as a cluster's shared file system.
        env: The environment of commands that talk to it.
        slurmd: Each node's daemon.
    """

    folder: Path
    shared: Path
    env: dict[str, str]
    slurmd: dict[str, subprocess.Popen[bytes]]

    def run(self, *command: str | Path) -> str:
        """Run a command of SLURM and return what it prints."""
        result = subprocess.run(list(map(str, command)), env=self.env, capture_output=True, text=True)
        assert result.returncode == 0, f"{command}: {result.stderr}\n{self.logs()}"
        return result.stdout

    def state(self, job: str) -> str:
        """Return a job's state, for example RUNNING."""
        return self.job(job)["JobState"]

    def job(self, job: str) -> dict[str, str]:
        """Return what SLURM knows of a job."""
        shown = self.run("scontrol", "show", "job", "--oneliner", job)
        return dict(word.split("=", 1) for word in shown.split() if "=" in word)

    def wait_until(self, holds: Callable[[], bool], deadline_s: float, what: str) -> None:
        """Wait for something, and fail with the cluster's logs if it does not come."""
        end = time.monotonic() + deadline_s
        while not holds():
            assert time.monotonic() < end, f"{what}: not within {deadline_s:g} s\n{self.logs()}"
            time.sleep(0.2)

    def wait_for(self, job: str, states: Sequence[str], deadline_s: float) -> dict[str, str]:
        """Wait until a job is in one of the states, and return what SLURM knows of it."""
        self.wait_until(lambda: self.state(job) in states, deadline_s, f"job {job} in {'/'.join(states)}")
        return self.job(job)

    def processes(self, node: str) -> list[psutil.Process]:
        """Return all processes that are in a node's network, without its slurmd."""
        network = os.readlink(f"/proc/{self.slurmd[node].pid}/ns/net")
        found = []
        for process in psutil.process_iter():
            try:
                if os.readlink(f"/proc/{process.pid}/ns/net") == network and process.pid != self.slurmd[node].pid:
                    found.append(process)
            except OSError:
                continue
        return found

    def logs(self) -> str:
        """Return the last lines of SLURM's logs, for a failure."""
        parts = []
        for file in sorted(self.folder.glob("*.log")):
            parts += [f"--- {file.name}", *file.read_text(errors="replace").splitlines()[-15:]]
        return "\n".join(parts)


def _namespaces(number: int) -> tuple[str, list[str]]:
    """Return the bridge's name, and the names of the nodes' networks."""
    return f"cfpo{number}", [f"cfpo{number}-{name}" for name in NODES]


@contextmanager
def _networks(number: int) -> Iterator[str]:
    """Make a network for each node, joined by a bridge, and yield the bridge's address."""
    bridge, networks = _namespaces(number)

    def ip(*words: str, check: bool = True) -> None:
        subprocess.run(["ip", *words], env={**os.environ, "PATH": _PATH}, check=check, capture_output=not check)

    try:
        ip("link", "add", bridge, "type", "bridge")
        ip("addr", "add", f"10.98.{number}.254/24", "dev", bridge)
        ip("link", "set", bridge, "up")
        for last, network in enumerate(networks, start=1):
            ip("netns", "add", network)
            ip("link", "add", f"{bridge}v{last}", "type", "veth", "peer", "name", "eth0", "netns", network)
            ip("link", "set", f"{bridge}v{last}", "master", bridge, "up")
            ip("-n", network, "addr", "add", f"10.98.{number}.{last}/24", "dev", "eth0")
            ip("-n", network, "link", "set", "eth0", "up")
            ip("-n", network, "link", "set", "lo", "up")
        yield f"10.98.{number}.254"
    finally:
        for network in networks:
            ip("netns", "del", network, check=False)
        ip("link", "del", bridge, check=False)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def _seen_under_tmp(paths: Sequence[Path]) -> list[str]:
    """Return those folders that a node's own /tmp would hide, without those inside of others."""
    folders = sorted({path.resolve() for path in paths})
    return [
        str(path)
        for path in folders
        if Path("/tmp") in path.parents and not any(other in path.parents for other in folders)
    ]


@contextmanager
def _daemon(command: Sequence[str], log: Path, env: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=env)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def slurm_cluster(shared: Path, cpus: int = 8, memory_mb: int = 16000) -> Iterator[SlurmCluster]:
    """Start the cluster, and end it with all jobs that are left on it.

    Args:
        shared: Folder that stands for the file system that nodes share.
        cpus: CPUs that each node claims to have.
        memory_mb: Memory that each node claims to have.
    """
    folder = Path(tempfile.mkdtemp(prefix="cfpo-slurm-", dir="/var/tmp"))
    number = os.getpid() % 250
    env = {**os.environ, "PATH": _PATH, "SLURM_CONF": str(folder / "slurm.conf")}
    for name in [name for name in env if name.startswith(("SLURM_", "SBATCH_")) and name != "SLURM_CONF"]:
        del env[name]
    try:
        with _networks(number) as gateway:
            (folder / "hosts").write_text(
                "127.0.0.1 localhost\n"
                + "".join(f"10.98.{number}.{last} {name}\n" for last, name in enumerate(NODES, 1))
            )
            nodes = "\n".join(
                f"NodeName={name} NodeHostname={name} NodeAddr=10.98.{number}.{last} CPUs={cpus} RealMemory={memory_mb}"
                for last, name in enumerate(NODES, start=1)
            )
            (folder / "slurm.conf").write_text(
                _CONFIG.format(
                    host=os.uname().nodename,
                    gateway=gateway,
                    port=_free_port(),
                    user=getpass.getuser(),
                    folder=folder,
                    nodes=nodes,
                    names=",".join(NODES),
                )
            )
            key = folder / "munge.key"
            key.write_bytes(os.urandom(128))
            key.chmod(0o600)
            (folder / "state").mkdir()
            folder.chmod(0o755)
            munge = ["munged", "-F", "-f", f"--key-file={key}", f"--socket={folder}/munge.socket"]
            munge += [f"--pid-file={folder}/munged.pid", f"--seed-file={folder}/munged.seed"]
            with (
                _daemon(munge, folder / "munged.log", env),
                _daemon(["slurmctld", "-D", "-f", str(folder / "slurm.conf")], folder / "slurmctld-out.log", env),
            ):
                yield from _with_nodes(folder, shared, number, env)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _with_nodes(folder: Path, shared: Path, number: int, env: dict[str, str]) -> Iterator[SlurmCluster]:
    _bridge, networks = _namespaces(number)
    seen = _seen_under_tmp([shared, _PROJECT, Path(sys.prefix)])
    cluster = SlurmCluster(folder, shared, env, {})
    with _all(
        [
            _daemon(
                [
                    # Not `ip netns exec`, which mounts a /sys without control groups.
                    *("nsenter", f"--net=/run/netns/{network}"),
                    *("unshare", "--mount", "--uts", "--propagation", "private"),
                    *("bash", "-c", _node_script(folder, name, seen)),
                ],
                folder / f"slurmd-{name}-out.log",
                env,
            )
            for name, network in zip(NODES, networks, strict=True)
        ]
    ) as daemons:
        cluster.slurmd = dict(zip(NODES, daemons, strict=True))
        ready = lambda: cluster.run("sinfo", "-h", "-o", "%D %t").strip() == f"{len(NODES)} idle"  # noqa: E731
        time.sleep(1)
        cluster.wait_until(ready, 60, "both nodes idle")
        try:
            yield cluster
        finally:
            subprocess.run(["scancel", "--me"], env=env)
            time.sleep(1)
            for name in NODES:
                for process in cluster.processes(name):
                    try:
                        process.kill()
                    except psutil.NoSuchProcess:
                        continue


def _node_script(folder: Path, name: str, seen: Sequence[str]) -> str:
    tmp = folder / f"tmp-{name}"
    tmp.mkdir()
    return _NODE.format(
        name=name,
        hosts=folder / "hosts",
        shared=" ".join(map(shlex.quote, seen)),
        tmp=tmp,
        config=folder / "slurm.conf",
    )


@contextmanager
def _all(managers: Sequence[object]) -> Iterator[list[subprocess.Popen[bytes]]]:
    from contextlib import ExitStack

    with ExitStack() as stack:
        yield [stack.enter_context(manager) for manager in managers]  # type: ignore[arg-type]
