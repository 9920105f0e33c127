"""`python -m cfpo_verl.slurm.wait HOST...`: wait until every node of a job has joined its Ray cluster with its GPUs."""

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

# Ray's label that the batch script gives to each node: SLURM's name of it.
HOST_LABEL = "cfpo-verl-host"
# From sysexits.h, where EX_UNAVAILABLE says that something needed is not there.
UNAVAILABLE = 69
_POLL_S = 1.0

Nodes = Sequence[Mapping[str, Any]]


def missing(hosts: Sequence[str], gpus_per_node: int, nodes: Nodes) -> list[str]:
    """Return what is still missing, a phrase for each host.

    Args:
        hosts: SLURM's names of the job's nodes.
        gpus_per_node: GPUs, or logical ones, that each must have.
        nodes: As `ray.nodes()` returns them.

    Example:
        >>> node = {"Alive": True, "Labels": {"cfpo-verl-host": "n1"}, "Resources": {"GPU": 8.0}}
        >>> missing(["n1", "n2"], 8, [node])
        ['n2 (not there)']
        >>> missing(["n1"], 9, [node])
        ['n1 (8 of 9 GPUs)']
    """
    gpus = {node["Labels"].get(HOST_LABEL): int(node["Resources"].get("GPU", 0)) for node in nodes if node.get("Alive")}
    phrases = []
    for host in hosts:
        if host not in gpus:
            phrases.append(f"{host} (not there)")
        elif gpus[host] < gpus_per_node:
            phrases.append(f"{host} ({gpus[host]} of {gpus_per_node} GPUs)")
    return phrases


def wait(hosts: Sequence[str], gpus_per_node: int, deadline_s: float, ask: Callable[[], Nodes | None]) -> list[str]:
    """Wait until nothing is missing, and return what is missing at the deadline.

    Args:
        hosts: SLURM's names of the job's nodes.
        gpus_per_node: GPUs that each must have.
        deadline_s: Seconds to wait at most.
        ask: Returns the nodes of the Ray cluster, None as long as there is none.
    """
    end = time.monotonic() + deadline_s
    shown: list[str] = []
    while True:
        nodes = ask()
        left = missing(hosts, gpus_per_node, nodes or [])
        if not left or time.monotonic() >= end:
            return left
        if left != shown:
            print(f"waiting for {len(left)} of {len(hosts)} nodes: {', '.join(left)}", flush=True)
            shown = left
        time.sleep(_POLL_S)


def _ask_ray() -> Nodes | None:
    import ray

    if not ray.is_initialized():
        try:
            ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False, logging_level="CRITICAL")
        except (ConnectionError, RuntimeError, ValueError, TimeoutError):
            return None  # the head is still coming up
    return ray.nodes()


def main(arguments: Sequence[str]) -> int:
    """Wait as the batch script asks, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m cfpo_verl.slurm.wait", description=__doc__)
    parser.add_argument("hosts", nargs="+", metavar="HOST")
    parser.add_argument("--gpus-per-node", type=int, required=True)
    parser.add_argument("--deadline-s", type=float, required=True)
    options = parser.parse_args(arguments)
    left = wait(options.hosts, options.gpus_per_node, options.deadline_s, _ask_ray)
    if left:
        print(
            f"{len(left)} of {len(options.hosts)} nodes have not joined within {options.deadline_s:g} s: "
            f"{', '.join(left)}. Their logs are ray-<node>.txt beside this one. Give bad nodes to sbatch with "
            "cluster.sbatch=[--exclude=...], or raise cluster.nodes_deadline_s",
            flush=True,
        )
        return UNAVAILABLE
    print(f"all {len(options.hosts)} nodes are there, with {options.gpus_per_node} GPUs each", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
