"""`cfpo-verl train`: compose the config, check it, and train with verl's own trainer."""

import argparse
import os
import re
import shutil
import sys
import textwrap
import traceback
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from cfpo_verl import doctor, resume, run_dir
from cfpo_verl.checkpoints import set_aside
from cfpo_verl.composing import ConfigError, choices, compose, explained, read_config, resolved_yaml
from cfpo_verl.doctor import report
from cfpo_verl.doctor.finding import failed
from cfpo_verl.errors import UserError, last_line
from cfpo_verl.files import FileError, nearest_folder
from cfpo_verl.processes import ending_what_it_starts
from cfpo_verl.progress import following
from cfpo_verl.resume import Found

HELP = """\
Usage: cfpo-verl train experiment=NAME [KEY=VALUE ...] [--dry-run] [--ray] [--cfg job] [--multirun]
       cfpo-verl train --config FILE [KEY=VALUE ...] [--dry-run] [--ray]

Check a run, then train it with verl's own trainer. The checks are those of `cfpo-verl doctor`; if one
fails, nothing is started.

  experiment=NAME    the experiment to run; `cfpo-verl experiments` lists and searches them
  KEY=VALUE          override any key of verl's config; --cfg job shows them all
  --config FILE      train a resolved config, for example an earlier run's: RUN_DIR/config.1.yaml
  --dry-run          print the resolved config and the results of the checks, and start nothing
  --ray              also check every node of the running Ray cluster, as `cfpo-verl doctor --ray` does
  run_dir=DIR        folder of the run (default: runs/<trainer.experiment_name>)

Replace any part of an experiment:

{groups}

Hydra's own flags also work: --cfg job prints the composed config and exits, --multirun trains several
runs one after another; --hydra-help lists them all. Shell completion: eval "$(cfpo-verl train -sc install=bash)"

Examples:
  cfpo-verl train experiment=cpu_quickstart
  cfpo-verl train experiment=cpu_quickstart algo=grpo
  cfpo-verl train experiment=math_8gpu policy_model=qwen2.5_3b backend=megatron topology=1x4
  cfpo-verl train experiment=cpu_quickstart actor_rollout_ref.actor.policy_loss.epsilon=0.1 run_dir=runs/epsilon_0.1
  cfpo-verl train experiment=cpu_quickstart policy_loss=cfpo,vanilla seed=0,1 --multirun

To stop a run without losing work: `touch RUN_DIR/stop_requested`. The run finishes its step, saves a
checkpoint and exits; the same command resumes it. See docs/checkpoints.md.

Exit status: 0 trained; 1 failed while training; 2 invalid input or a failed check, nothing was started;
75 stopped on request, run the same command again to resume; 130 interrupted.
"""

# Errors of a failed write. torch.save does not say that the disk is full, only that it is at another position than
# expected. Errno 5: input/output error, 28: no space, 30: read-only file system, 122: quota exceeded.
_WRITE_FAILED = re.compile(r"unexpected pos \d+ vs \d+|PytorchStreamWriter failed|\[Errno (?:5|28|30|122)\]")
# EX_TEMPFAIL of sysexits.h: temporary failure, try again.
STOPPED_ON_REQUEST = 75

# Config groups in the help text, in this order.
CHOICES = (
    "experiment",
    "algo",
    "policy_loss",
    "policy_model",
    "backend",
    "topology",
    "updates",
    "data_mix",
    "eval_sets",
    "tracking",
)


class RefusedError(UserError):
    """The checks of a run failed; the message lists every failure."""

    def __init__(self, findings: list[doctor.Finding]) -> None:
        """Store the failures, each of which is one line of the message."""
        self.findings = findings
        super().__init__("\n".join(map(str, findings)))


class TrainingError(UserError):
    """A run failed after it was started; the message has the last line of verl's error and the path of the log."""

    exit_status = 1


def train(config: DictConfig, nodes: bool = False) -> Path | None:
    """Check the config and run verl's trainer with it.

    Args:
        config: The composed config, see `compose`.
        nodes: Whether to also check every node of the running Ray cluster.

    Returns:
        The checkpoint that was saved when the run stopped on request, None if it reached its last step.

    Raises:
        RefusedError: If a check fails; Ray has not been started.
        TrainingError: If verl's trainer fails.
    """
    # verl selects its platform from these variables when it is imported.
    os.environ.update(doctor.worker_env(config))
    findings = doctor.examine(config, nodes=nodes)
    if doctor.failures(findings):
        raise RefusedError(doctor.failures(findings))
    for finding in findings:
        if finding.status == "warning":
            print(f"cfpo-verl: warning: {finding}", file=sys.stderr)
        elif finding.check == "nodes":
            print(f"cfpo-verl: {finding.found}", file=sys.stderr)

    folder = Path(config.run_dir).absolute()
    attempt = run_dir.next_attempt(folder)
    with open_dict(config):
        config.run_dir = str(folder)
    found = _find_checkpoint(config)
    run_dir.take_stop_request(folder)  # left by an earlier attempt
    # Saved before attempt-specific settings are added, so that the file can be reused for another run.
    run_dir.write_attempt(folder, attempt, resolved_yaml(config))
    # The loggers run in a Ray worker, so these must reach its environment.
    variables = {
        "VERL_FILE_LOGGER_PATH": str(run_dir.metrics_path(folder, attempt)),
        **resume.tracking_env(config, folder, doctor.worker_env(config)),
    }
    with open_dict(config):
        for name, value in variables.items():
            OmegaConf.update(config, f"ray_kwargs.ray_init.runtime_env.env_vars.{name}", value, force_add=True)
        _watch_for_stop_request(config)
    if found is not None:
        resume.use_checkpoint(config, found)
    log_path = run_dir.log_path(folder, attempt)
    print(
        f"cfpo-verl: attempt {attempt} in {folder}; the output of all processes goes to {log_path.name}",
        file=sys.stderr,
    )

    from verl.trainer.main_ppo import main as verl_main

    shown = following(run_dir.metrics_path(folder, attempt), config.trainer.total_training_steps, sys.stderr)
    with (
        shown,
        log_path.open("w", buffering=1) as log,
        redirect_stdout(log),
        redirect_stderr(log),
        ending_what_it_starts(),
    ):
        try:
            # The function inside verl's Hydra decorator, so the same code as verl's own entry point runs.
            verl_main.__wrapped__(config)
        except Exception as error:
            log.write(traceback.format_exc())
            failure = describe_failure(error, Path(config.trainer.default_local_dir))
            raise TrainingError(
                f"training failed: {failure}\nThe full output with all tracebacks is in {log_path}"
            ) from error
    try:
        return run_dir.take_stop_request(folder)
    except FileError as error:  # whose own exit status would say that nothing was started
        raise TrainingError(f"training ended, but {error}") from error


def describe_failure(error: Exception, checkpoints_dir: Path) -> str:
    """Describe the failure, and explain it where the error text does not.

    Args:
        error: The exception that verl's trainer raised. The text of Ray's exceptions is a worker's full traceback,
            whose last line is the error.
        checkpoints_dir: Folder of the checkpoints.
    """
    summary = last_line(error)
    if not _WRITE_FAILED.search(str(error)):
        return summary
    free_gb = shutil.disk_usage(nearest_folder(str(checkpoints_dir))).free / 1e9
    return (
        f"{summary}\nA file could not be written, probably a checkpoint: {free_gb:,.1f} GB are free in "
        f"{checkpoints_dir}. Free some space (remove folders *.incomplete<N>, set trainer.max_actor_ckpt_to_keep=2) "
        "and run the same command again: it resumes from the newest complete checkpoint"
    )


def _find_checkpoint(config: DictConfig) -> Found | None:
    """Choose the checkpoint that verl loads and report it; None where verl or the user chooses.

    Newer incomplete ones are renamed, unless the run starts at step 1: its saves then replace them, see
    `mismatch.leftover`.
    """
    chosen = resume.chosen_checkpoint(config)
    if chosen is not None:
        # verl reads the step from the last part of the path; a trailing slash would break that.
        config.trainer.resume_from_path = str(chosen.path)
    found = resume.find_checkpoint(config)
    if description := resume.describe(chosen or found or Found(None)):
        print(f"cfpo-verl: {description}", file=sys.stderr)
    for checkpoint in found.skipped if found is not None and found.path else ():
        try:
            set_aside(checkpoint)
        except OSError as error:
            problem = f"{checkpoint} is incomplete and cannot be renamed ({error.strerror})"
            raise RefusedError([failed(problem, "Rename or remove it by hand, or choose another run_dir")]) from error
    return found


def _watch_for_stop_request(config: DictConfig) -> None:
    """Register our checkpoint callback with verl's trainer; it calls the user's own callback."""
    config.checkpoint_callback_class = config.trainer.get("checkpoint_callback_class")
    config.trainer.checkpoint_callback_class = "cfpo_verl.stop_request.StopOnRequest"


def _separate_runs(config: DictConfig) -> None:
    """Give each run of a --multirun a folder of its own."""
    hydra_config = HydraConfig.get()
    chosen = [override for override in hydra_config.overrides.task if not override.startswith("experiment=")]
    if hydra_config.mode != RunMode.MULTIRUN or any(override.startswith("run_dir=") for override in chosen):
        return
    config.run_dir = run_dir.point_dir(config.run_dir, chosen)


class RunEndedError(RuntimeError):
    """A run of a --multirun, launched in another process, ended with a non-zero exit status."""

    def __init__(self, status: int) -> None:
        """Store the exit status of the run."""
        self.status = status
        super().__init__(status)


@hydra.main(config_path="pkg://cfpo_verl.hydra_configs", config_name="train", version_base=None)
def _hydra_main(config: DictConfig) -> None:
    _separate_runs(config)
    try:
        _train_and_report(config)
    except SystemExit as ended:
        if _runs_elsewhere():
            raise RunEndedError(int(ended.code or 0)) from None
        raise


def _compose_and_train(overrides: list[str]) -> int:
    """Let Hydra compose the config and train it, or each run of a --multirun, and return the exit status."""
    try:
        with explained(overrides):
            _hydra_main()
    except RunEndedError as error:  # Hydra has printed the overrides of that run
        print(
            f"cfpo-verl train: that run ended with exit status {error.status}. Its launcher has its output: "
            "hydra/launcher=submitit_... keeps it in runs/multirun/.submitit/*/*_log.err",
            file=sys.stderr,
        )
        return error.status
    return 0


def _runs_elsewhere() -> bool:
    """Return whether a launcher runs this in another process, which passes on an exception but no exit status."""
    hydra_config = HydraConfig.get()
    return hydra_config.mode == RunMode.MULTIRUN and hydra_config.runtime.choices["hydra/launcher"] != "basic"


def _train_and_report(config: DictConfig, nodes: bool = False) -> None:
    """Train, and exit with the status of the help text.

    SystemExit passes through Hydra as it is; to any other exception Hydra would add a message of its own.
    """
    try:
        saved = train(config, nodes)
    except UserError as error:
        _show(error)
        raise SystemExit(error.exit_status) from None
    if saved is not None:
        print(
            f"cfpo-verl train: stopped on request; saved {saved}. Run the same command again to resume from it",
            file=sys.stderr,
        )
        raise SystemExit(STOPPED_ON_REQUEST)


def _show(error: UserError) -> None:
    for message in error.findings if isinstance(error, RefusedError) else [error]:
        print(f"cfpo-verl train: {message}", file=sys.stderr)
    if error.exit_status == UserError.exit_status:
        print("Nothing was started.", file=sys.stderr)


def _dry_run(config: DictConfig, nodes: bool) -> int:
    """Print the resolved config and the results of the checks, and return the exit status."""
    os.environ.update(doctor.worker_env(config))
    print(resolved_yaml(config))
    findings = doctor.examine(config, nodes=nodes)
    report.print_table(findings, sys.stdout)
    if not doctor.failures(findings):
        return 0
    print("Nothing was started.", file=sys.stderr)
    return UserError.exit_status


def _describe_group(group: str) -> str:
    members = textwrap.wrap(", ".join(choices(group)), width=80, break_on_hyphens=False)
    return f"  {f'{group}=':<19}" + f"\n{'':21}".join(members)


def _run(arguments: list[str]) -> int:
    """Train or do a dry run, and return the exit status."""
    ours, overrides = _parse(arguments)
    if ours.config is not None:
        config = read_config(ours.config, overrides)
    elif ours.ray or ours.dry_run:
        config = compose(overrides)
    else:
        return _compose_and_train(overrides)
    if ours.dry_run:
        return _dry_run(config, ours.ray)
    _train_and_report(config, ours.ray)
    return 0


def _parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Separate our own options from the overrides and flags that Hydra parses.

    Raises:
        ConfigError: If one of our options has a value it does not take, lacks one, or is combined with a Hydra flag.
    """
    for option in ("--ray", "--dry-run"):
        for argument in arguments:
            if argument.startswith(f"{option}="):
                raise ConfigError(f"{option} takes no value, got {argument}. Give {option} alone")
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--ray", action="store_true")
    parser.add_argument("--dry-run", action="store_true")
    try:
        ours, others = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise ConfigError(f"{error.argument_name}: {error.message}. Give {error.argument_name} FILE") from None
    chosen = [f"--{name.replace('_', '-')}" for name, value in vars(ours).items() if value]
    flags = [argument for argument in others if argument.startswith("-")]
    if chosen and flags:
        way_out = "Give one run at a time" if {"-m", "--multirun"} & set(flags) else "Leave one of them out"
        raise ConfigError(f"{chosen[0]} and {flags[0]} cannot be combined. {way_out}")
    return ours, others


def main(arguments: list[str]) -> int:
    """Run `cfpo-verl train` with the given command-line arguments and return the exit status."""
    if {"-h", "--help"} & set(arguments):
        print(HELP.format(groups="\n".join(_describe_group(group) for group in CHOICES)), end="")
        return 0
    # Hydra registers shell completion for the program's name, without the subcommand.
    completes = {"-sc", "--shell-completion"} & set(arguments)
    sys.argv = ["cfpo-verl" if completes else "cfpo-verl train", *arguments]
    # Makes Hydra raise its errors instead of printing them and exiting.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        return _run(arguments)
    except UserError as error:
        _show(error)
        return error.exit_status
    except KeyboardInterrupt:
        print("cfpo-verl train: interrupted; all processes it had started have ended", file=sys.stderr)
        return 130
