"""What is checked before anything is started: one list of checks, each of which returns what it found.

`cfpo-verl train` refuses to start on a failure, `cfpo-verl doctor` shows all of it; docs/doctor.md has a row for each.
"""

import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from typing import Literal

from omegaconf import DictConfig

from cfpo_verl.doctor import algorithm, batches, cluster, data, environment, machine, memory, model, tracking
from cfpo_verl.doctor.environment import worker_env
from cfpo_verl.doctor.finding import Finding, failed, ok

__all__ = ["CHECKS", "Check", "Finding", "examine", "failures", "worker_env"]


@dataclass(frozen=True)
class Check:
    """A check with its name.

    Args:
        name: As the table shows it.
        find: Returns what it found, nothing if all is well. It changes nothing and raises nothing that it can foresee.
        about: "run" if it holds wherever the run takes place, "machine" if it looks at the machine it is made on.
        waits: Whether it mostly waits, for another process or the network, so that others can be made meanwhile.
    """

    name: str
    find: Callable[[DictConfig], Iterable[Finding]]
    about: Literal["run", "machine"] = "run"
    waits: bool = False


CHECKS = (
    Check("versions", environment.check_versions),
    Check("packages", environment.check_packages),
    Check("plugin", environment.check_plugin, waits=True),
    Check("verl's rules", algorithm.check_verl_config),
    Check("combinations", algorithm.check_combinations),
    Check("trainer mode", algorithm.check_trainer_mode),
    Check("loss options", algorithm.check_loss_options),
    Check("updates per rollout", algorithm.check_updates),
    Check("rollout correction", algorithm.check_rollout_correction),
    Check("advantages", algorithm.check_advantages),
    Check("reference", algorithm.check_reference),
    Check("dynamic sampling", algorithm.check_filter_groups),
    Check("sampling", algorithm.check_sampling),
    Check("batches", batches.check_batches),
    Check("token budgets", batches.check_token_budgets),
    Check("context", batches.check_context),
    Check("layout", batches.check_layout),
    Check("memory", memory.check_memory),
    Check("data", data.check_data),
    Check("steps", data.check_steps),
    Check("prompts", data.check_prompts),
    Check("reward", data.check_reward),
    Check("model", model.check_model),
    Check("hub", model.check_hub, waits=True),
    Check("loggers", tracking.check_loggers),
    Check("checkpoints", machine.check_checkpoints),
    Check("run folder", machine.check_run_dir),
    Check("engine packages", algorithm.check_engine_packages, "machine"),
    Check("disk", machine.check_disk, "machine"),
    Check("ray", machine.check_ray, "machine"),
    Check("cpus", machine.check_cpus, "machine"),
    Check("gpus", machine.check_gpus, "machine"),
    Check("ports", machine.check_ports, "machine"),
    Check("open files", machine.check_limits, "machine"),
    Check("visible devices", machine.check_visible_devices, "machine"),
)
_CLUSTER = Check("nodes", cluster.check_nodes)


def examine(config: DictConfig, elsewhere: bool = False, nodes: bool = False) -> list[Finding]:
    """Make all checks.

    The environment must already be that of the run (`worker_env`): verl settles its platform when it is imported.

    Args:
        config: A composed config of `cfpo-verl train`.
        elsewhere: Whether the run takes place on other machines, so that nothing is said about this one.
        nodes: Whether to look at every node of the running Ray cluster too.

    Returns:
        What was found, at least one finding for each check, in the order of `CHECKS`.
    """
    chosen = [check for check in CHECKS if check.about == "run" or not elsewhere]
    # verl prints that it is content, among results that may be read by a program.
    with ThreadPoolExecutor() as pool, redirect_stdout(sys.stderr):
        waiting = {check.name: pool.submit(_make, check, config) for check in chosen if check.waits}
        made = {check.name: _make(check, config) for check in chosen if not check.waits}
        made |= {name: future.result() for name, future in waiting.items()}
        found = [made[check.name] for check in chosen]
        if nodes:
            found.append(_make(_CLUSTER, config))
    return [finding for findings in found for finding in findings]


def _make(check: Check, config: DictConfig) -> list[Finding]:
    """Make one check; what it does not foresee is a failure too, so that nothing passes by accident."""
    try:
        found = list(check.find(config)) or [ok("")]
    except Exception as error:
        found = [
            failed(
                f"could not be checked ({type(error).__name__}: {error})",
                "Mostly a value of the wrong kind, see the other failures and --cfg job",
            )
        ]
    return [replace(finding, check=check.name) for finding in found]


def failures(findings: Iterable[Finding]) -> list[Finding]:
    """Return the findings that forbid a start."""
    return [finding for finding in findings if finding.status == "failed"]
