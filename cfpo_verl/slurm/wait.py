"""`python -m cfpo_verl.slurm.wait HOST...`: wait until every node of a job has joined its Ray cluster with its GPUs."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import typer

from cfpo_verl.terminal import App

# Ray label that the batch script sets on each node to the node's name in SLURM.
HOST_LABEL = "cfpo-verl-host"
# EX_UNAVAILABLE of sysexits.h.
UNAVAILABLE = 69
_POLL_S = 1.0

app = App()
Nodes = Sequence[Mapping[str, Any]]


def missing(hosts: Sequence[str], gpus_per_node: int, nodes: Nodes) -> list[str]:
    """Return the hosts that are still missing, or lack GPUs, each with the reason.

    Args:
        hosts: SLURM's names of the job's nodes.
        gpus_per_node: Required GPUs per node, logical ones on the CPU.
        nodes: The result of `ray.nodes()`.

    Example:
        >>> node = {"Alive": True, "Labels": {"cfpo-verl-host": "n1"}, "Resources": {"GPU": 8.0}}
        >>> missing(["n1", "n2"], 8, [node])
        ['n2 (not joined)']
        >>> missing(["n1"], 9, [node])
        ['n1 (8 of 9 GPUs)']
    """
    gpus = {node["Labels"].get(HOST_LABEL): int(node["Resources"].get("GPU", 0)) for node in nodes if node.get("Alive")}
    phrases = []
    for host in hosts:
        if host not in gpus:
            phrases.append(f"{host} (not joined)")
        elif gpus[host] < gpus_per_node:
            phrases.append(f"{host} ({gpus[host]} of {gpus_per_node} GPUs)")
    return phrases


def wait(hosts: Sequence[str], gpus_per_node: int, deadline_s: float, ask: Callable[[], Nodes | None]) -> list[str]:
    """Wait until all hosts have joined, and return those still missing at the deadline.

    Args:
        hosts: SLURM's names of the job's nodes.
        gpus_per_node: Required GPUs per node.
        deadline_s: Longest time to wait, in seconds.
        ask: Returns the nodes of the Ray cluster, None while there is no cluster.
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


@app.command()
def main(
    hosts: Annotated[list[str], typer.Argument(metavar="HOST...", help="SLURM's names of the job's nodes.")],
    gpus_per_node: Annotated[int, typer.Option(help="Required GPUs per node.")],
    deadline_s: Annotated[float, typer.Option(help="Longest time to wait, in seconds.")],
) -> None:
    """Wait until every node of a job has joined its Ray cluster with its GPUs."""
    left = wait(hosts, gpus_per_node, deadline_s, _ask_ray)
    if left:
        typer.echo(
            f"{len(left)} of {len(hosts)} nodes have not joined within {deadline_s:g} s: {', '.join(left)}. "
            "Their logs are the files ray-<node>.txt next to this one. Exclude faulty nodes with "
            "cluster.sbatch=[--exclude=...], or raise cluster.nodes_deadline_s"
        )
        raise typer.Exit(UNAVAILABLE)
    typer.echo(f"all {len(hosts)} nodes have joined, with {gpus_per_node} GPUs each")


if __name__ == "__main__":
    app(prog_name="python -m cfpo_verl.slurm.wait")
