"""The checks of a run before anything is started: one list, whose checks return findings.

`cfpo-verl train` refuses to start on a failure, `cfpo-verl doctor` shows all findings. docs/doctor.md explains each.
"""

import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from omegaconf import DictConfig

from cfpo_verl.demands import worker_env
from cfpo_verl.doctor import (
    algorithm,
    batches,
    cluster,
    composition,
    data,
    environment,
    machine,
    memory,
    model,
    tracking,
)
from cfpo_verl.doctor.finding import Finding, failed, ok

__all__ = ["CHECKS", "Check", "Finding", "examine", "examine_config", "failures", "worker_env"]


@dataclass(frozen=True)
class Check:
    """A named check.

    Args:
        name: As shown in the table.
        find: Returns the findings, none if nothing is wrong. It changes nothing, and raises only on bugs.
        about: "config" if it reads nothing but the config (and the model's config.json, if at hand), "run" if it also
            looks at files and packages that the run needs on any machine, "machine" if it looks at this one.
        waits: Whether it mainly waits for a process or the network; such checks run in parallel.
        comes_first: Whether its failure would make other checks fail too; then only that failure is reported.
    """

    name: str
    find: Callable[[DictConfig], Iterable[Finding]]
    about: Literal["config", "run", "machine"] = "config"
    waits: bool = False
    comes_first: bool = False


CHECKS = (
    Check("values", composition.check_values, comes_first=True),
    Check("engine", composition.check_engine, comes_first=True),
    Check("versions", environment.check_versions, "run"),
    Check("packages", environment.check_packages, "run"),
    Check("plugin", environment.check_plugin, "run", waits=True),
    Check("verl's rules", algorithm.check_verl_config),
    Check("one machine", composition.check_one_machine),
    Check("trainer mode", algorithm.check_trainer_mode),
    Check("loss options", algorithm.check_loss_options),
    Check("updates per rollout", algorithm.check_updates),
    Check("rollout correction", algorithm.check_rollout_correction),
    Check("advantages", algorithm.check_advantages),
    Check("agent loop", algorithm.check_agent_loop),
    Check("reference", algorithm.check_reference),
    Check("dynamic sampling", algorithm.check_filter_groups),
    Check("length penalty", algorithm.check_length_penalty),
    Check("sampling", algorithm.check_sampling),
    Check("batches", batches.check_batches),
    Check("token budgets", batches.check_token_budgets),
    Check("context", batches.check_context),
    Check("layout", batches.check_layout),
    Check("memory", memory.check_memory, "run"),
    Check("data", data.check_data, "run"),
    Check("steps", data.check_steps, "run"),
    Check("prompts", data.check_prompts, "run"),
    Check("reward", data.check_reward, "run"),
    Check("model", model.check_model, "run"),
    Check("hub", model.check_hub, "run", waits=True),
    Check("loggers", tracking.check_loggers, "run"),
    Check("checkpoints", machine.check_checkpoints, "run"),
    Check("run folder", machine.check_run_dir, "run"),
    Check("disk", machine.check_disk, "machine"),
    Check("ray", machine.check_ray, "machine"),
    Check("cpus", machine.check_cpus, "machine"),
    Check("gpus", machine.check_gpus, "machine"),
    Check("ports", machine.check_ports, "machine"),
    Check("open files", machine.check_limits, "machine"),
    Check("visible devices", machine.check_visible_devices, "machine"),
)
_CLUSTER = Check("nodes", cluster.check_nodes, "machine")


def examine(config: DictConfig, elsewhere: bool = False, nodes: bool = False) -> list[Finding]:
    """Make all checks.

    The environment must already be that of the run (`worker_env`): verl chooses its platform when it is imported.

    Args:
        config: A composed config of `cfpo-verl train`.
        elsewhere: Whether the run takes place on other machines, so that this one is not checked.
        nodes: Whether to check every node of the running Ray cluster too.

    Returns:
        The findings, at least one for each check, in the order of `CHECKS`. If a check that comes first fails, its
        findings alone.
    """
    chosen = [check for check in CHECKS if not (elsewhere and check.about == "machine")]
    return _make_all([*chosen, _CLUSTER] if nodes else chosen, config)


def examine_config(config: DictConfig) -> list[Finding]:
    """Make the checks that read nothing but the config, wherever they are made. See `examine`."""
    return _make_all([check for check in CHECKS if check.about == "config"], config)


def _make_all(checks: Sequence[Check], config: DictConfig) -> list[Finding]:
    found: dict[str, list[Finding]] = {}
    for check in checks:
        if check.comes_first:
            found[check.name] = _make(check, config)
            if failures(found[check.name]):
                return found[check.name]
    others = [check for check in checks if not check.comes_first]
    # verl prints that it accepts a config, on the stdout that a program may be reading.
    with ThreadPoolExecutor() as pool, redirect_stdout(sys.stderr):
        waiting = {check.name: pool.submit(_make, check, config) for check in others if check.waits}
        found |= {check.name: _make(check, config) for check in others if not check.waits}
        found |= {name: future.result() for name, future in waiting.items()}
    return [finding for check in checks for finding in found[check.name]]


def _make(check: Check, config: DictConfig) -> list[Finding]:
    """Make one check. An unforeseen error is a failure too, so that nothing passes by accident."""
    try:
        found = list(check.find(config)) or [ok("")]
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        found = [
            failed(
                f"could not be checked ({type(error).__name__}: {error}, in {Path(place.filename).name} line "
                f"{place.lineno})",
                "Usually a value of the wrong type: see the other failures and --cfg job. If all values are right, "
                "this is a bug in cfpo_verl: please report it",
            )
        ]
    return [replace(finding, check=check.name) for finding in found]


def failures(findings: Iterable[Finding]) -> list[Finding]:
    """Return the findings that forbid a start."""
    return [finding for finding in findings if finding.status == "failed"]
