"""`cfpo-verl slurm`: render, submit, look after and cancel jobs."""

import os
import sys
from importlib.resources import files
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from cfpo_verl import doctor
from cfpo_verl.doctor import report
from cfpo_verl.progress import describe
from cfpo_verl.run_dir import RunDirError, read_metrics
from cfpo_verl.sites import JobError
from cfpo_verl.slurm import client, jobs
from cfpo_verl.slurm.cluster import Cluster
from cfpo_verl.train import explain

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Run experiments as SLURM jobs, on one node or many. docs/slurm.md goes from an empty file to a running job.",
)

Overrides = Annotated[
    list[str], typer.Argument(help="As for cfpo-verl train, and cluster=NAME.", metavar="experiment=NAME cluster=NAME")
]
Template = Annotated[
    Path | None, typer.Option(help="Jinja2 template of your own; it may extend job.sbatch.j2, see docs/slurm.md.")
]
ConfigDir = Annotated[Path, typer.Option(help="Folder whose cluster/NAME.yaml is meant by cluster=NAME.")]
Multirun = Annotated[
    bool, typer.Option("--multirun", help="One job of an array for each point, as in seed=0,1 algo=cfpo,grpo.")
]
Folder = Annotated[Path, typer.Argument(help="The run_dir of a run, or the folder of a sweep.", metavar="RUN_DIR")]
_ANYTHING = {"ignore_unknown_options": True}  # such as ~key


def _fail(command: str, error: object, status: int = 2) -> NoReturn:
    typer.echo(f"cfpo-verl slurm {command}: {error}", err=True)
    raise SystemExit(status)


def _plan(command: str, overrides: list[str], config_dir: Path, multirun: bool) -> tuple[Cluster, Path, list[jobs.Run]]:
    try:
        return jobs.plan(overrides, config_dir, multirun)
    except JobError as error:
        _fail(command, error)
    except (HydraException, OmegaConfBaseException) as error:
        known = [override for override in overrides if not override.startswith("cluster")]
        _fail(command, explain(str(error), known))


@app.command(epilog="Example: mkdir -p cluster && cfpo-verl slurm example > cluster/mysite.yaml")
def example() -> None:
    """Print a file of cluster facts, every key explained, to copy and fill in."""
    typer.echo((files("cfpo_verl.hydra_configs") / "cluster" / "example.yaml").read_text(), nl=False)


@app.command(
    context_settings=_ANYTHING,
    epilog="Example: cfpo-verl slurm render experiment=math_8gpu topology=2x8 cluster=mysite run_dir=/shared/runs/a",
)
def render(
    overrides: Overrides,
    template: Template = None,
    config_dir: ConfigDir = Path(),
    multirun: Multirun = False,
) -> None:
    """Write the batch script, the resolved config and a manifest into the run folder. Nothing leaves this machine."""
    cluster, home, runs = _plan("render", overrides, config_dir, multirun)
    try:
        typer.echo(jobs.write(cluster, home, runs, template))
    except (JobError, OSError) as error:
        _fail("render", error)


@app.command(
    context_settings=_ANYTHING,
    epilog="Examples: cfpo-verl slurm submit experiment=math_8gpu topology=2x8 cluster=mysite run_dir=/shared/runs/a;  "
    "cfpo-verl slurm submit experiment=gsm8k_1gpu cluster=mysite seed=0,1,2 algo=cfpo,grpo --multirun.  "
    "Exit status: 0 queued; 1 sbatch refused it; 2 a check failed or bad arguments, nothing was queued.",
)
def submit(
    overrides: Overrides,
    template: Template = None,
    config_dir: ConfigDir = Path(),
    multirun: Multirun = False,
) -> None:
    """Render, check the run as `cfpo-verl doctor --elsewhere` does, queue it, and print the job's id."""
    cluster, home, runs = _plan("submit", overrides, config_dir, multirun)
    for number, run in enumerate(runs, start=1):
        if len(runs) > 1:
            typer.echo(f"checking {number} of {len(runs)}: {run.run_dir.name}", err=True)
        os.environ.update(doctor.worker_env(run.config))
        findings = [finding for finding in doctor.examine(run.config, elsewhere=True) if finding.status != "ok"]
        if findings:
            typer.echo(f"{run.run_dir}:", err=True)
            report.print_table(findings, sys.stderr)
        if doctor.failures(findings):
            _fail("submit", "nothing was queued. Mend what failed above")
    try:
        script = jobs.write(cluster, home, runs, template)
    except (JobError, OSError) as error:
        _fail("submit", error)
    try:
        job_id = client.submit(script)
    except JobError as error:
        _fail("submit", error, status=1)
    typer.echo(job_id)
    try:
        jobs.note_submitted(home, runs, job_id)
    except OSError as error:
        _fail("submit", f"job {job_id} is queued, but could not be noted in its folder: {error}", status=1)
    for what in ("status", "logs -f", "cancel"):
        typer.echo(f"cfpo-verl slurm {what} {home}", err=True)


@app.command(epilog="Example: cfpo-verl slurm status runs/math_8gpu_cfpo")
def status(folder: Folder) -> None:
    """Print the job's state, its attempts and the last step."""
    try:
        job_id = jobs.last_job(folder)
        known = client.states(job_id)
    except (JobError, OSError) as error:
        _fail("status", error)
    for job in known:
        reason = "" if job["Reason"] == "None" else f" ({job['Reason']})"
        where = f" on {job['NodeList']}" if job.get("NodeList", "(null)") != "(null)" else ""
        name = f"{job['ArrayJobId']}_{job['ArrayTaskId']}" if "ArrayTaskId" in job else job["JobId"]
        typer.echo(
            f"job {name}: {job['JobState']}{reason}{where}, {job['RunTime']} of {job['TimeLimit']}, "
            f"attempt {int(job.get('Restarts', 0)) + 1}, exit status {job['ExitCode'].split(':')[0]}"
        )
    if not known:
        typer.echo(f"job {job_id}: SLURM has forgotten it, so it has ended some time ago")
    for run_dir in jobs.run_dirs_of(folder):
        try:
            step, values = list(read_metrics(run_dir).items())[-1]
            typer.echo(f"{run_dir.name}: {describe(step, values)}")
        except RunDirError:
            typer.echo(f"{run_dir.name}: no step yet")
        if last := jobs.last_words(run_dir):
            typer.echo(f"  {last}")


@app.command(epilog="Example: cfpo-verl slurm logs -f runs/math_8gpu_cfpo")
def logs(
    folder: Folder,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until Ctrl-C.")] = False,
    lines: Annotated[int, typer.Option(help="Of each file.", min=1)] = 20,
) -> None:
    """Print the ends of the last attempt's logs: the job's, the driver's, and Ray's of each node."""
    try:
        found = [file for run_dir in jobs.run_dirs_of(folder) for file in sorted(jobs.logs_of(run_dir).glob("*.txt"))]
    except (JobError, OSError) as error:
        _fail("logs", error)
    # The tool that everybody knows, in place of this process.
    os.execvp("tail", ["tail", "-n", str(lines), *(["-F"] if follow else []), *map(str, found)])


@app.command(epilog="Example: cfpo-verl slurm cancel runs/math_8gpu_cfpo")
def cancel(folder: Folder) -> None:
    """Cancel the folder's job. To save first: touch RUN_DIR/stop_requested, which also ends it, but queues it again."""
    try:
        job_id = jobs.last_job(folder)
        client.cancel(job_id)
    except (JobError, OSError) as error:
        _fail("cancel", error)
    typer.echo(f"job {job_id} is cancelled")
