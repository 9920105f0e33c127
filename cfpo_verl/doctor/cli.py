"""`cfpo-verl doctor`: compose a run's config, make all checks, show what they found."""

import os
import sys
from typing import Annotated

import typer

from cfpo_verl import doctor
from cfpo_verl.composing import compose
from cfpo_verl.doctor import report
from cfpo_verl.terminal import App, epilog

app = App()


@app.command(
    context_settings={"ignore_unknown_options": True},  # such as ~key
    no_args_is_help=True,
    epilog=epilog(
        "cfpo-verl doctor experiment=cpu_quickstart",
        "cfpo-verl doctor experiment=math_8gpu topology=2x8 --elsewhere --json",
        "RAY_ADDRESS=head:6379 cfpo-verl doctor experiment=math_8gpu --ray",
        exit_status="0 nothing failed (there may be warnings); 1 a check failed; 2 invalid arguments",
    ),
)
def _doctor(
    overrides: Annotated[
        list[str],
        typer.Argument(help="Overrides, as for cfpo-verl train.", metavar="experiment=NAME [KEY=VALUE...]"),
    ],
    ray: Annotated[
        bool, typer.Option("--ray", help="Also check every node of the running Ray cluster (RAY_ADDRESS).")
    ] = False,
    elsewhere: Annotated[
        bool, typer.Option("--elsewhere", help="Skip the checks of this machine: the run is for other machines.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON list of objects with status, check, found and way_out.")
    ] = False,
) -> None:
    """Check a run without starting anything: versions, plugin, config, data, reward, model, this machine.

    `cfpo-verl train` runs the same checks and refuses to start if one fails. docs/doctor.md explains each.
    """
    options = [override for override in overrides if override.startswith("-")]
    if options:
        raise typer.BadParameter(f"no such option: {options[0]}")
    config = compose(overrides)
    os.environ.update(doctor.worker_env(config))
    findings = doctor.examine(config, elsewhere=elsewhere, nodes=ray)
    if as_json:
        typer.echo(report.to_json(findings))
    else:
        report.print_table(findings, sys.stdout)
    raise SystemExit(1 if doctor.failures(findings) else 0)
