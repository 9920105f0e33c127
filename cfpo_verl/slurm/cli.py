"""`cfpo-verl slurm`: render, submit, monitor and cancel jobs."""

import os
import sys
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from cfpo_verl import doctor
from cfpo_verl.doctor import report
from cfpo_verl.files import FileError
from cfpo_verl.progress import describe
from cfpo_verl.run_dir import RunDirError, read_metrics
from cfpo_verl.sites import JobError
from cfpo_verl.slurm import client, jobs
from cfpo_verl.slurm.client import QueueError
from cfpo_verl.terminal import App, epilog

app = App(
    "Run experiments as SLURM jobs, on one node or many. docs/slurm.md is a walkthrough.",
    no_args_is_help=True,
    epilog=epilog(
        "mkdir -p cluster && cfpo-verl slurm example > cluster/mysite.yaml",
        "cfpo-verl slurm submit experiment=math_8gpu topology=2x8 cluster=mysite run_dir=/shared/runs/a",
        "cfpo-verl slurm status /shared/runs/a",
    ),
)

Overrides = Annotated[
    list[str],
    typer.Argument(help="Overrides, as for cfpo-verl train, and cluster=NAME.", metavar="experiment=NAME cluster=NAME"),
]
Template = Annotated[
    Path | None, typer.Option(help="Your own Jinja2 template; it may extend job.sbatch.j2, see docs/slurm.md.")
]
ConfigDir = Annotated[Path, typer.Option(help="Folder that contains cluster/NAME.yaml for cluster=NAME.")]
Multirun = Annotated[
    bool,
    typer.Option("--multirun", help="Make a job array of all combinations, as in seed=0,1 policy_loss=cfpo,vanilla."),
]
Folder = Annotated[
    Path,
    typer.Argument(help="Run folder, or folder of a sweep.", metavar="RUN_DIR", exists=True, file_okay=False),
]
_ANYTHING = {"ignore_unknown_options": True}  # leaves overrides to Hydra


@app.command(epilog=epilog("mkdir -p cluster && cfpo-verl slurm example > cluster/mysite.yaml"))
def example() -> None:
    """Print a cluster file to fill in, with every key explained."""
    typer.echo((files("cfpo_verl.hydra_configs") / "cluster" / "example.yaml").read_text(), nl=False)


@app.command(
    context_settings=_ANYTHING,
    epilog=epilog("cfpo-verl slurm render experiment=math_8gpu topology=2x8 cluster=mysite run_dir=/shared/runs/a"),
)
def render(
    overrides: Overrides,
    template: Template = None,
    config_dir: ConfigDir = Path(),
    multirun: Multirun = False,
) -> None:
    """Write the batch script into the run folder; queue nothing.

    The resolved config and a manifest go beside it. Nothing leaves this machine.
    """
    typer.echo(jobs.write(*jobs.plan(overrides, config_dir, multirun), template))


@app.command(
    context_settings=_ANYTHING,
    epilog=epilog(
        "cfpo-verl slurm submit experiment=math_8gpu topology=2x8 cluster=mysite run_dir=/shared/runs/a",
        "cfpo-verl slurm submit experiment=gsm8k_1gpu cluster=mysite seed=0,1,2 policy_loss=cfpo,vanilla --multirun",
        exit_status="0 queued; 1 sbatch refused the job; 2 a check failed or invalid arguments, nothing was queued",
    ),
)
def submit(
    overrides: Overrides,
    template: Template = None,
    config_dir: ConfigDir = Path(),
    multirun: Multirun = False,
) -> None:
    """Check a run, write its batch script, queue it, print the job id.

    The checks are those of `cfpo-verl doctor --elsewhere`.
    """
    cluster, home, runs = jobs.plan(overrides, config_dir, multirun)
    for number, run in enumerate(runs, start=1):
        if len(runs) > 1:
            typer.echo(f"checking {number} of {len(runs)}: {run.run_dir.name}", err=True)
        os.environ.update(doctor.worker_env(run.config))
        findings = [finding for finding in doctor.examine(run.config, elsewhere=True) if finding.status != "ok"]
        if findings:
            typer.echo(f"{run.run_dir}:", err=True)
            report.print_table(findings, sys.stderr)
        if doctor.failures(findings):
            raise JobError("nothing was queued. Fix the failures above")
    job_id = client.submit(jobs.write(cluster, home, runs, template))
    typer.echo(job_id)
    try:
        jobs.note_submitted(home, runs, job_id)
    except FileError as error:
        raise QueueError(f"job {job_id} is queued, but could not be recorded: {error}") from error
    for command in ("status", "logs -f", "cancel"):
        typer.echo(f"cfpo-verl slurm {command} {home}", err=True)


@app.command(epilog=epilog("cfpo-verl slurm status runs/math_8gpu_cfpo"))
def status(folder: Folder) -> None:
    """Print the job's state, number of attempts and last training step."""
    job_id = jobs.last_job(folder)
    known = client.states(job_id)
    for job in known:
        reason = "" if job["Reason"] == "None" else f" ({job['Reason']})"
        where = f" on {job['NodeList']}" if job.get("NodeList", "(null)") != "(null)" else ""
        name = f"{job['ArrayJobId']}_{job['ArrayTaskId']}" if "ArrayTaskId" in job else job["JobId"]
        typer.echo(
            f"job {name}: {job['JobState']}{reason}{where}, {job['RunTime']} of {job['TimeLimit']}, "
            f"attempt {int(job.get('Restarts', 0)) + 1}, exit status {job['ExitCode'].split(':')[0]}"
        )
    if not known:
        typer.echo(f"job {job_id}: no longer known to SLURM, so it ended some time ago")
    for run_dir in jobs.run_dirs_of(folder):
        try:
            step, values = list(read_metrics(run_dir).items())[-1]
            typer.echo(f"{run_dir.name}: {describe(step, values)}")
        except RunDirError:
            typer.echo(f"{run_dir.name}: no step yet")
        if last := jobs.last_log_line(run_dir):
            typer.echo(f"  {last}")


@app.command(epilog=epilog("cfpo-verl slurm logs -f runs/math_8gpu_cfpo"))
def logs(
    folder: Folder,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Keep printing new lines until Ctrl-C.")] = False,
    lines: Annotated[int, typer.Option(help="Number of lines from each file.", min=1)] = 20,
) -> None:
    """Print the end of the latest attempt's logs.

    These are the logs of the job, of the driver, and of Ray on each node.
    """
    found = [file for run_dir in jobs.run_dirs_of(folder) for file in sorted(jobs.logs_of(run_dir).glob("*.txt"))]
    if not found:  # tail would read standard input
        raise JobError(f"{folder}: no logs yet; see `cfpo-verl slurm status {folder}`")
    os.execvp("tail", ["tail", "-n", str(lines), *(["-F"] if follow else []), *map(str, found)])


@app.command(epilog=epilog("cfpo-verl slurm cancel runs/math_8gpu_cfpo"))
def cancel(folder: Folder) -> None:
    """Cancel the job of a run folder.

    To save a checkpoint first, use `touch RUN_DIR/stop_requested`: the job saves, ends and requeues itself.
    """
    job_id = jobs.last_job(folder)
    client.cancel(job_id)
    typer.echo(f"job {job_id} is cancelled")
