"""`cfpo-verl train`: compose the config, check it, hand it to verl's own trainer."""

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
from cfpo_verl.checkpoints import Found, set_aside
from cfpo_verl.composing import ConfigError, choices, compose, explained, read_config, resolved_yaml
from cfpo_verl.doctor import report
from cfpo_verl.doctor.finding import failed
from cfpo_verl.errors import UserError, last_line
from cfpo_verl.files import nearest_folder, writing
from cfpo_verl.processes import ending_what_it_starts
from cfpo_verl.progress import following

HELP = """\
Usage: cfpo-verl train experiment=NAME [KEY=VALUE ...] [--dry-run] [--ray] [--cfg job] [--multirun]
       cfpo-verl train --config FILE [KEY=VALUE ...] [--dry-run] [--ray]

Check a run, then train it with verl's own trainer. What `cfpo-verl doctor` finds wrong is reported
before Ray starts.

  experiment=NAME    a named run; `cfpo-verl experiments` lists and searches them
  KEY=VALUE          any key of verl's config, see --cfg job
  --config FILE      a resolved config, for example that of an earlier run: RUN_DIR/config.1.yaml
  --dry-run          print the resolved config and the table of `cfpo-verl doctor`, start nothing
  --ray              also check every node of the running Ray cluster first, as `cfpo-verl doctor --ray` does
  run_dir=DIR        folder of the run (default: runs/<trainer.experiment_name>)

Each part of an experiment can be replaced:

{groups}

Hydra's flags work: --cfg job prints the composed config and exits, --multirun trains several runs one
after the other, --info searchpath, --hydra-help. Shell completion: eval "$(cfpo-verl train -sc install=bash)"

Examples:
  cfpo-verl train experiment=cpu_quickstart
  cfpo-verl train experiment=cpu_quickstart algo=grpo
  cfpo-verl train experiment=math_8gpu policy_model=qwen2.5_3b backend=megatron topology=1x4
  cfpo-verl train experiment=cpu_quickstart actor_rollout_ref.actor.policy_loss.epsilon=0.1 run_dir=runs/epsilon_0.1
  cfpo-verl train experiment=cpu_quickstart algo=cfpo,grpo seed=0,1 --multirun

To stop a run early without losing work: `touch RUN_DIR/stop_requested`. The run saves a checkpoint at the end of its
step and exits; the same command resumes it. See docs/checkpoints.md.

Exit status: 0 trained; 1 failed while training; 2 refused before anything was started; 130 interrupted;
75 stopped on request after saving (run the same command again to resume)
"""

# How torch.save (which does not say that the disk is full) and the system report a file that cannot be written:
# input or output error, no space, read-only, quota.
_WRITE_FAILED = re.compile(r"unexpected pos \d+ vs \d+|PytorchStreamWriter failed|\[Errno (?:5|28|30|122)\]")
# EX_TEMPFAIL of sysexits.h: try again later.
STOPPED_ON_REQUEST = 75

# Groups that a user chooses from, in the order of the help.
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
    """A run would fail or train the wrong thing; the message lists every failure that was found."""

    def __init__(self, findings: list[doctor.Finding]) -> None:
        """Keep the findings, one for each line of the message."""
        self.findings = findings
        super().__init__("\n".join(map(str, findings)))


class TrainingError(UserError):
    """verl's trainer failed; the message has its last words and the path of the log."""

    exit_status = 1


def train(config: DictConfig, nodes: bool = False) -> Path | None:
    """Check the config and run verl's trainer with it.

    Args:
        config: As `compose` returns it.
        nodes: Whether to check every node of the running Ray cluster first.

    Returns:
        The checkpoint that was saved before the run stopped on request, None if it went on to its last step.

    Raises:
        RefusedError: Before Ray starts, with every failure that was found.
        TrainingError: If verl's trainer fails.
    """
    # Before verl is imported anywhere in this process: it settles its platform then.
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
    # Before what holds for this attempt alone is put in, so that the file serves for another run.
    with writing(folder):
        run_dir.write_attempt(folder, attempt, resolved_yaml(config))
    # Loggers read these in another process.
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
            # The function inside verl's Hydra decorator: the very code that verl's own entry point runs.
            verl_main.__wrapped__(config)
        except Exception as error:
            log.write(traceback.format_exc())
            failure = describe_failure(error, Path(config.trainer.default_local_dir))
            raise TrainingError(
                f"training failed: {failure}\nAll output up to there, tracebacks included, is in {log_path}"
            ) from error
    return run_dir.take_stop_request(folder)


def describe_failure(error: Exception, checkpoints_dir: Path) -> str:
    """Say what went wrong, and what it means where that is not to be seen.

    Args:
        error: What the trainer raised. Ray's errors are whole tracebacks of a worker; the last line is what counts.
        checkpoints_dir: Where checkpoints are saved.
    """
    last_words = last_line(error)
    if not _WRITE_FAILED.search(str(error)):
        return last_words
    free_gb = shutil.disk_usage(nearest_folder(str(checkpoints_dir))).free / 1e9
    return (
        f"{last_words}\nThat is a file that could not be written, mostly a checkpoint; {free_gb:,.1f} GB are free in "
        f"{checkpoints_dir}. Make room (trainer.max_actor_ckpt_to_keep=2, folders *.incomplete<N>), then run the same "
        "command: it goes on from the newest checkpoint that is whole"
    )


def _find_checkpoint(config: DictConfig) -> Found | None:
    """Choose the checkpoint that verl loads, say which, and set aside those that are not whole."""
    if config.trainer.resume_mode == "resume_path":
        # verl takes the step from the end of the path, where a slash would be in its way.
        config.trainer.resume_from_path = str(Path(config.trainer.resume_from_path).absolute())
    found = resume.find_checkpoint(config)
    if found is None:
        return None
    if description := resume.describe(found):
        print(f"cfpo-verl: {description}", file=sys.stderr)
    for checkpoint in found.skipped:
        try:
            set_aside(checkpoint)
        except OSError as error:
            found_it = f"{checkpoint} is not whole and cannot be renamed ({error.strerror})"
            raise RefusedError([failed(found_it, "Rename or remove it by hand, or choose another run_dir")]) from error
    return found


def _watch_for_stop_request(config: DictConfig) -> None:
    """Let verl's trainer build our checkpoint callback, which calls the user's own."""
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
    """A run of a --multirun in another process ended otherwise than trained."""

    def __init__(self, status: int) -> None:
        """Keep the exit status of the run."""
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
    """Let Hydra compose what the command line says, run it or each of its points, and return the exit status."""
    try:
        with explained(overrides):
            _hydra_main()
    except RunEndedError as error:  # of a point in another process; Hydra has said which
        print(
            f"cfpo-verl train: that run ended with exit status {error.status}. Its output is with its launcher: "
            "hydra/launcher=submitit_... keeps it in runs/multirun/.submitit/*/*_log.err",
            file=sys.stderr,
        )
        return error.status
    return 0


def _runs_elsewhere() -> bool:
    """Say whether a launcher runs this in a process of its own: that reports an exception, but no exit."""
    hydra_config = HydraConfig.get()
    return hydra_config.mode == RunMode.MULTIRUN and hydra_config.runtime.choices["hydra/launcher"] != "basic"


def _train_and_report(config: DictConfig, nodes: bool = False) -> None:
    """Train, and exit as the help says, here and not in Hydra, which would add a line of its own."""
    try:
        saved = train(config, nodes)
    except UserError as error:
        _show(error)
        raise SystemExit(error.exit_status) from None
    if saved is not None:
        print(
            f"cfpo-verl train: stopped on request; saved {saved}. Run the same command again to resume from there",
            file=sys.stderr,
        )
        raise SystemExit(STOPPED_ON_REQUEST)


def _show(error: UserError) -> None:
    for line in [*map(str, error.findings)] if isinstance(error, RefusedError) else [str(error)]:
        print(f"cfpo-verl train: {line}", file=sys.stderr)
    if error.exit_status == UserError.exit_status:
        print("Nothing was started.", file=sys.stderr)


def _dry_run(config: DictConfig, nodes: bool) -> int:
    """Print the resolved config and what the checks find, and return the exit status."""
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
    """Train, or make a dry run, and return the exit status."""
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
    """Split the options that are ours from the overrides and flags, which Hydra parses.

    Raises:
        ConfigError: If one of ours has a value that it does not take, or goes with a flag of Hydra's that it cannot.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--ray", action="store_true")
    parser.add_argument("--dry-run", action="store_true")
    for argument in arguments:
        flag, equals, _value = argument.partition("=")
        if equals and flag in ("--ray", "--dry-run"):
            raise ConfigError(f"{argument}: {flag} takes no value. Give it alone, or leave it out")
    try:
        ours, others = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise ConfigError(f"{error.argument_name}: {error.message}") from None
    chosen = [f"--{name.replace('_', '-')}" for name, value in vars(ours).items() if value]
    flags = [argument for argument in others if argument.startswith("-")]
    if chosen and flags:
        way_out = "Check one point at a time" if {"-m", "--multirun"} & set(flags) else "Leave one of them out"
        raise ConfigError(f"{chosen[0]} and {flags[0]} cannot be combined. {way_out}")
    return ours, others


def main(arguments: list[str]) -> int:
    """Run `cfpo-verl train` with Hydra's arguments and return the exit status."""
    if {"-h", "--help"} & set(arguments):
        print(HELP.format(groups="\n".join(_describe_group(group) for group in CHOICES)), end="")
        return 0
    # Completion is a matter of the whole program.
    completes = {"-sc", "--shell-completion"} & set(arguments)
    sys.argv = ["cfpo-verl" if completes else "cfpo-verl train", *arguments]
    # Hydra then raises its errors instead of printing them and exiting, so that they look like all others.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        return _run(arguments)
    except UserError as error:
        _show(error)
        return error.exit_status
    except KeyboardInterrupt:
        print("cfpo-verl train: interrupted; every process it started has ended", file=sys.stderr)
        return 130
