"""The command that prepares a public data set, for `cfpo-verl data prepare NAME` and for each file here as a script."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from cfpo_verl.data_prep.prepare import NEAR_DUPLICATES, Options, prepare
from cfpo_verl.data_prep.schema import DataError
from cfpo_verl.data_prep.source import Source


def prepare_command(source: Source) -> Callable[..., None]:
    """Return a typer command for one data set."""

    def command(
        out: Annotated[Path, typer.Option(help="Folder for SPLIT.parquet and SPLIT.manifest.json.")],
        origin: Annotated[
            str | None,
            typer.Option(
                "--source", help="A local .jsonl, .json or .parquet file, or a hub id.", show_default=source.hub_id
            ),
        ] = None,
        split: Annotated[
            str, typer.Option(help=f"Name of the file to write and of the hub's split: {', '.join(source.splits)}.")
        ] = source.splits[0],
        limit: Annotated[int | None, typer.Option(help="Keep only LIMIT rows.")] = None,
        seed: Annotated[
            int | None, typer.Option(help="Shuffle the rows.", show_default="the order of the source")
        ] = None,
        prompt_template: Annotated[
            str | None,
            typer.Option(help="plain, hashes, boxed, or a text with {problem} in it.", show_default=source.template),
        ] = None,
        tokenizer: Annotated[str | None, typer.Option(help="Model whose tokenizer measures the prompts.")] = None,
        max_prompt_tokens: Annotated[
            int | None, typer.Option(help="Drop longer prompts, chat template included.", min=1)
        ] = None,
        exclude: Annotated[
            str | None,
            typer.Option(
                help="File or hub id of the problems to leave out.",
                hidden=source.excludes is None,
                show_default=source.excludes.hub_id if source.excludes else False,
            ),
        ] = None,
        near_duplicates: Annotated[
            float | None,
            typer.Option(
                help="Leave out problems that have this share of their word triples, all quantities and the answer "
                "in common with an earlier one; 0 keeps them.",
                show_default="0, keep them" if source.evaluation_only else str(NEAR_DUPLICATES),
            ),
        ] = None,
        engine: Annotated[
            str, typer.Option(help="local, or ray for parquet larger than one machine. The output is the same.")
        ] = "local",
    ) -> None:
        from rich.console import Console

        options = Options(split, limit, seed, prompt_template, tokenizer, max_prompt_tokens, exclude, near_duplicates)
        try:
            with Console(file=sys.stderr).status(f"{source.name}: reading") as status:
                path, account = prepare(
                    source,
                    out,
                    origin,
                    options,
                    lambda rows: status.update(f"{source.name}: {rows:,} rows read"),
                    engine,
                )
        except (DataError, OSError) as error:
            typer.echo(f"cfpo-verl data prepare {source.name}: {error}", err=True)
            raise SystemExit(2) from None
        for reason, count in account.dropped.most_common():
            typer.echo(f"{count} rows left out: {reason}", err=True)
        typer.echo(f"{account.rows_out} of {account.rows_in} rows", err=True)
        typer.echo(path)

    note = " Only for evaluation: training on it spoils a benchmark." if source.evaluation_only else ""
    command.__doc__ = f"Write {source.name} ({source.hub_id}, licence: {source.licence}).{note}"
    return command


def epilog(source: Source) -> str:
    """Return examples for the help."""
    split = source.splits[0]
    return (
        f"Examples: cfpo-verl data prepare {source.name} --out data/{source.name} --split {split};  "
        f"cfpo-verl data prepare {source.name} --out data/{source.name} --source {source.name}.jsonl "
        "--limit 1000 --seed 0"
    )


def run(source: Source) -> None:
    """Run one data set's file as a script."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command(epilog=epilog(source))(prepare_command(source))
    app()


def run_generated(name: str) -> None:
    """Run the file of generated problems as a script: `cfpo-verl data prepare NAME` under another name."""
    from cfpo_verl.cli import main

    sys.argv[1:1] = ["data", "prepare", name]
    main()
