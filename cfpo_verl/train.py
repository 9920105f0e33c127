"""`cfpo-verl train`: compose the config, check it, hand it to verl's own trainer."""

import difflib
import os
import re
import shutil
import sys
import textwrap
import traceback
from contextlib import redirect_stderr, redirect_stdout
from importlib.util import find_spec
from pathlib import Path

import hydra
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

import cfpo_verl.resolvers  # noqa: F401 - what our config files calculate with
from cfpo_verl import config_groups, doctor, resume, run_dir
from cfpo_verl.checkpoints import Found, set_aside
from cfpo_verl.doctor import report
from cfpo_verl.doctor.finding import failed
from cfpo_verl.doctor.machine import nearest_folder
from cfpo_verl.processes import ending_what_it_starts
from cfpo_verl.progress import following

HELP = """\
usage: cfpo-verl train experiment=NAME [KEY=VALUE ...] [--dry-run] [--ray] [--cfg job] [--multirun]
       cfpo-verl train --config FILE [KEY=VALUE ...] [--dry-run] [--ray]

Check a run, then train it with verl's own trainer. What `cfpo-verl doctor` finds wrong is reported
before Ray starts.

  experiment=NAME    a named run; `cfpo-verl experiments` lists and searches them
  KEY=VALUE          any key of verl's config, see --cfg job
  --config FILE      a resolved config, for example that of an earlier run: RUN_DIR/config.1.yaml
  --dry-run          print the resolved config and the table of `cfpo-verl doctor`, start nothing
  --ray              also check every node of the running Ray cluster first, as `cfpo-verl doctor --ray` does
  run_dir=DIR        folder of the run (default: runs/<trainer.experiment_name>)

Each part of an experiment can be exchanged:

{groups}

Hydra's flags work: --cfg job prints the composed config and exits, --multirun trains several runs one
after the other, --info searchpath, --hydra-help. Completion of the shell: eval "$(cfpo-verl train -sc install=bash)"

examples:
  cfpo-verl train experiment=cpu_quickstart
  cfpo-verl train experiment=cpu_quickstart algo=grpo
  cfpo-verl train experiment=math_8gpu policy_model=qwen2.5_3b backend=megatron topology=1x4
  cfpo-verl train experiment=cpu_quickstart actor_rollout_ref.actor.policy_loss.epsilon=0.1 run_dir=runs/epsilon_0.1
  cfpo-verl train experiment=cpu_quickstart algo=cfpo,grpo seed=0,1 --multirun

To stop a run early and lose nothing: `touch RUN_DIR/stop_requested`. It saves a checkpoint at the end of its step,
and the same command goes on from there; see docs/checkpoints.md.

exit status: 0 trained; 1 failed while training; 2 refused before anything was started; 130 interrupted;
75 stopped on request after saving, run the same command again to go on
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


def verl_config_dir() -> str:
    """Find verl's YAML files without importing verl, which would settle its platform."""
    spec = find_spec("verl")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            "verl is not installed: pip install 'verl[vllm]', or on a CPU see requirements/cpu.txt"
        )
    return str(Path(spec.origin).parent / "trainer" / "config")


OmegaConf.register_new_resolver("verl_config_dir", verl_config_dir, replace=True)


class RefusedError(ValueError):
    """A run would fail or train the wrong thing; the message lists every failure that was found."""

    def __init__(self, findings: list[doctor.Finding]) -> None:
        """Keep the findings, one for each line of the message."""
        self.findings = findings
        super().__init__("\n".join(map(str, findings)))


class TrainingError(RuntimeError):
    """verl's trainer failed; the message has its last words and the path of the log."""


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
    run_dir.write_attempt(folder, attempt, OmegaConf.to_yaml(config, resolve=True))
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
    last_line = (str(error).strip().splitlines() or [repr(error)])[-1]
    if not _WRITE_FAILED.search(str(error)):
        return last_line
    free_gb = shutil.disk_usage(nearest_folder(str(checkpoints_dir))).free / 1e9
    return (
        f"{last_line}\nThat is a file that could not be written, mostly a checkpoint; {free_gb:,.1f} GB are free in "
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


def compose(overrides: list[str]) -> DictConfig:
    """Compose the config of a run, as Hydra does for `cfpo-verl train`.

    Raises:
        HydraException: If an override does not fit.
    """
    with hydra.initialize_config_module("cfpo_verl.hydra_configs", version_base=None):
        return hydra.compose("train", overrides=overrides)


def explain(message: str, overrides: list[str]) -> str:
    """Replace Hydra's advice to add a key that it does not know by the existing keys it resembles, if any."""
    refused = re.search(r"Could not override '([^']+)'", message)
    experiment = [override for override in overrides if override.startswith("experiment=")]
    if refused is None or not experiment:
        return message
    config = compose(experiment)

    def keys(node: object, prefix: str) -> list[str]:
        if not isinstance(node, dict):
            return [prefix]
        return [prefix, *(key for name, value in node.items() for key in keys(value, f"{prefix}.{name}"))]

    known = [key.lstrip(".") for key in keys(OmegaConf.to_container(config), "")]
    close = difflib.get_close_matches(refused[1], known, n=3, cutoff=0.8)
    return f"there is no key {refused[1]!r}. Did you mean: {', '.join(close)}?" if close else message


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


def _compose_and_train() -> int:
    """Let Hydra compose what the command line says, run it or each of its points, and return the exit status."""
    try:
        _hydra_main()
    except RunEndedError as error:  # of a point in another process; Hydra has said which
        print(
            f"cfpo-verl train: that run ended with exit status {error.status}. What it said is with its launcher: "
            "hydra/launcher=submitit_... keeps it in runs/multirun/.submitit/*/*_log.err",
            file=sys.stderr,
        )
        return error.status
    return 0


def _runs_elsewhere() -> bool:
    """Say whether a launcher runs this in a process of its own: that reports an exception, but no exit."""
    hydra_config = HydraConfig.get()
    basic = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
    return hydra_config.mode == RunMode.MULTIRUN and hydra_config.launcher["_target_"] != basic


def _train_and_report(config: DictConfig, nodes: bool = False) -> None:
    try:
        saved = train(config, nodes)
    except RefusedError as error:
        # Not left to Hydra, which would add a line of its own.
        for finding in error.findings:
            print(f"cfpo-verl train: {finding}", file=sys.stderr)
        raise SystemExit(_refused()) from None
    except TrainingError as error:
        print(f"cfpo-verl train: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    if saved is not None:
        print(
            f"cfpo-verl train: stopped on request; saved {saved}. The same command goes on from there", file=sys.stderr
        )
        raise SystemExit(STOPPED_ON_REQUEST)


def _refused() -> int:
    print("Nothing was started.", file=sys.stderr)
    return 2


class ConfigFileError(ValueError):
    """What follows --config is not the config of a run; the message names it and the way out."""


def read_config(file: Path, overrides: list[str]) -> DictConfig:
    """Read a resolved config and change keys that it has.

    Raises:
        ConfigFileError: If the file is no config of a run, or an override is none.
        OmegaConfBaseException: If it has no such key.
    """
    try:
        config = OmegaConf.load(file)
    except (OSError, yaml.YAMLError) as error:
        raise ConfigFileError(f"--config {file}: cannot be read ({error})") from error
    if not isinstance(config, DictConfig) or "run_dir" not in config or "trainer" not in config:
        raise ConfigFileError(f"--config {file}: not the config of a run, such as RUN_DIR/config.1.yaml")
    unfit = [override for override in overrides if "=" not in override or override.startswith(("-", "+", "~"))]
    if unfit:
        raise ConfigFileError(f"{unfit[0]}: with --config give KEY=VALUE, for keys that the file has")
    OmegaConf.set_struct(config, True)
    config.merge_with_dotlist(overrides)
    return config


def _dry_run(config: DictConfig, nodes: bool) -> int:
    """Print the resolved config and what the checks find."""
    os.environ.update(doctor.worker_env(config))
    print(OmegaConf.to_yaml(config, resolve=True))
    findings = doctor.examine(config, nodes=nodes)
    report.print_table(findings, sys.stdout)
    return _refused() if doctor.failures(findings) else 0


def _describe_group(group: str) -> str:
    members = textwrap.wrap(", ".join(config_groups.names(group)), width=80, break_on_hyphens=False)
    return f"  {f'{group}=':<19}" + f"\n{'':21}".join(members)


def _run(arguments: list[str]) -> int:
    """Train, or make a dry run, and return the exit status."""
    nodes, dry = "--ray" in arguments, "--dry-run" in arguments
    arguments = [argument for argument in arguments if argument not in ("--ray", "--dry-run")]
    if "--config" in arguments:
        before, after = arguments[: arguments.index("--config")], arguments[arguments.index("--config") + 1 :]
        if not after:
            raise ConfigFileError("--config: give a file after it")
        config = read_config(Path(after[0]), before + after[1:])
    elif nodes or dry:
        config = compose(arguments)
    else:
        return _compose_and_train()
    if dry:
        return _dry_run(config, nodes)
    _train_and_report(config, nodes)
    return 0


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
    except ConfigFileError as error:
        print(f"cfpo-verl train: {error}", file=sys.stderr)
        return _refused()
    except (HydraException, OmegaConfBaseException) as error:
        print(f"cfpo-verl train: {explain(str(error), arguments)}", file=sys.stderr)
        return _refused()
    except ValueError as error:
        # Hydra's own for a number where the name of a file in a group belongs.
        if not str(error).startswith("Config group override"):
            raise
        print(f"cfpo-verl train: {error}. For example updates=x4, topology=1x8", file=sys.stderr)
        return _refused()
    except KeyboardInterrupt:
        print("cfpo-verl train: interrupted; everything it had started is ended", file=sys.stderr)
        return 130
