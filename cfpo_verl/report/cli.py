"""`cfpo-verl report`: read runs, draw the page, print the table."""

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from cfpo_verl.report import build
from cfpo_verl.terminal import App, epilog, progress_console, wide_console

app = App()


@app.command(
    epilog=epilog(
        "cfpo-verl report runs/cpu_quickstart_cfpo_seed0",
        "cfpo-verl report runs/*cfpo_seed? runs/*vanilla_seed? evals/cfpo --out compare",
        "cfpo-verl report tensorboard_log/project wandb_export.csv --out old_runs --figures figures",
        "cfpo-verl report runs/cpu_quickstart_cfpo_seed0 --watch",
        exit_status="0 written; 2 invalid input",
    ),
)
def report(
    inputs: Annotated[
        list[Path],
        typer.Argument(
            help="Run folders of cfpo-verl train, .jsonl files from verl's file logger, TensorBoard folders, "
            "W&B exports (CSV, JSON or parquet), or evaluations from cfpo-verl eval.",
            metavar="RUN...",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Path of the output without extension: writes NAME.html, .png, .svg and .md.",
            metavar="NAME",
            show_default="report, inside RUN if there is only one",
        ),
    ] = None,
    figures: Annotated[Path | None, typer.Option(help="Also save each figure as PNG and SVG in this folder.")] = None,
    responses: Annotated[
        int, typer.Option(help="Number of responses to show for each run and evaluation.", min=0)
    ] = 100,
    watch: Annotated[
        bool, typer.Option("--watch", help="Rewrite the report until every run has finished; the page reloads itself.")
    ] = False,
    every_s: Annotated[float, typer.Option(help="Seconds between updates with --watch.", min=1)] = 30,
) -> None:
    """Draw runs and evaluations on one HTML page, with a verdict on stability, and print a table (docs/report.md)."""
    stem = build.stem(inputs, out)
    try:
        while True:
            with progress_console().status("reading and drawing"):
                found = build.collect(inputs, responses)
                goes_on = watch and build.may_go_on(found)
                written = build.write(found, stem, figures, every_s if goes_on else None)
            if not goes_on:
                break
            for name, run in found.runs.items():
                typer.echo(
                    f"{name}: {run.state.detail or f'step {run.last_step}'}, {found.verdicts[name].summary}", err=True
                )
            typer.echo(f"{written[0]}; next update in {every_s:g} s, Ctrl-C to stop", err=True)
            time.sleep(every_s)
    except KeyboardInterrupt:
        typer.echo(f"stopped; the last report is {stem}.html", err=True)
        return
    console = wide_console()
    header, rows = found.table
    table = Table(*map(escape, header))
    for row in rows:
        table.add_row(*map(escape, row))
    if rows:
        console.print(table)
    for name, verdict in found.verdicts.items():
        console.print(f"{escape(name)}: {escape(verdict.summary)}", highlight=False, soft_wrap=True)
    typer.echo(f"{written[0]}, also as {', '.join(path.suffix for path in written[1:4])}", err=True)
