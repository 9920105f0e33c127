"""`cfpo-verl data`: prepare, check, mix, clean and describe training data.

Each data set has a command `cfpo-verl data prepare NAME`; its file in this folder is the same command as a script.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress
from rich.table import Table

from cfpo_verl.data_prep.prepare import NEAR_DUPLICATES, Options, prepare
from cfpo_verl.data_prep.schema import DataError
from cfpo_verl.data_prep.source import Source
from cfpo_verl.data_prep.sources import SOURCES
from cfpo_verl.terminal import App, epilog, progress_console, wide_console

app = App(
    "Prepare data in verl's parquet schema.",
    no_args_is_help=True,
    epilog=epilog(
        "cfpo-verl data list",
        "cfpo-verl data prepare gsm8k --out data/gsm8k --split train",
        "cfpo-verl data validate data/gsm8k/train.parquet",
    ),
)
prepare_app = App(
    "Write parquet files from a data set or a generator.",
    no_args_is_help=True,
    epilog=epilog(
        "cfpo-verl data prepare gsm8k --out data/gsm8k --split train",
        "cfpo-verl data prepare arithmetic --out data/arithmetic",
        "cfpo-verl data prepare gsm8k --help",
    ),
)
app.add_typer(prepare_app, name="prepare")

_Tokenizer = Annotated[
    str | None, typer.Option(help="Model whose tokenizer measures the prompts (with its chat template).")
]


@prepare_app.command(epilog=epilog("cfpo-verl data prepare arithmetic --out data/arithmetic"))
def arithmetic(
    out: Annotated[Path, typer.Option(help="Output folder for train.parquet and test.parquet.")],
    operands: Annotated[int, typer.Option(help="Number of one-digit terms in each sum.")] = 3,
    held_out: Annotated[int, typer.Option(help="Problems in test.parquet; the others go to train.parquet.")] = 256,
    seed: Annotated[int, typer.Option(help="Seed for the order and for which problems are held out.")] = 0,
) -> None:
    """Write generated sums such as 3+4+5= with their answers."""
    from cfpo_verl.data_prep import arithmetic as source

    _print_paths(source.prepare(out, operands=operands, held_out=held_out, seed=seed))


@prepare_app.command(epilog=epilog("cfpo-verl data prepare few-shot-sums --out data/few_shot_sums --count 64"))
def few_shot_sums(
    out: Annotated[Path, typer.Option(help="Output folder for train.parquet and test.parquet.")],
    count: Annotated[int, typer.Option(help="Problems in train.parquet.")] = 1024,
    held_out: Annotated[int, typer.Option(help="Problems in test.parquet.")] = 64,
    largest: Annotated[int, typer.Option(help="Largest term; both terms are drawn from 1 to this.")] = 49,
    shots: Annotated[int, typer.Option(help="Worked examples before each sum.")] = 4,
    seed: Annotated[int, typer.Option(help="Seed for the problems and the worked examples.")] = 0,
) -> None:
    """Write sums, each with worked examples in front.

    They are for a pretrained model that follows no instructions.
    """
    from cfpo_verl.data_prep import few_shot_sums as source

    _print_paths(source.prepare(out, count=count, held_out=held_out, largest=largest, shots=shots, seed=seed))


@prepare_app.command(
    epilog=epilog("cfpo-verl data prepare reasoning-gym --task chain_sum --out data/chain_sum --count 2000"),
)
def reasoning_gym(
    task: Annotated[str, typer.Option(help="Name of a task in the package reasoning-gym.")],
    out: Annotated[Path, typer.Option(help="Output folder for train.parquet and test.parquet.")],
    count: Annotated[int, typer.Option(help="Problems in train.parquet.")] = 1024,
    held_out: Annotated[int, typer.Option(help="Problems in test.parquet.")] = 64,
    seed: Annotated[int, typer.Option(help="Seed for the problems and their order.")] = 0,
) -> None:
    """Write generated tasks of Reasoning Gym.

    Needs the package: pip install reasoning-gym.
    """
    from cfpo_verl.data_prep import reasoning_gym_tasks as source

    _print_paths(source.prepare(out, task=task, count=count, held_out=held_out, seed=seed))


def _print_paths(paths: list[Path]) -> None:
    for path in paths:
        typer.echo(path)


def _prepare_command(source: Source) -> Callable[..., None]:
    """Return a typer command for one data set."""

    def command(
        out: Annotated[Path, typer.Option(help="Output folder for SPLIT.parquet and SPLIT.manifest.json.")],
        origin: Annotated[
            str | None,
            typer.Option(
                "--source", help="Local .jsonl, .json or .parquet file, or hub id.", show_default=source.hub_id
            ),
        ] = None,
        split: Annotated[
            str, typer.Option(help=f"Split to read from the hub, and name of the output: {', '.join(source.splits)}.")
        ] = source.splits[0],
        limit: Annotated[int | None, typer.Option(help="Write at most LIMIT rows.")] = None,
        seed: Annotated[
            int | None, typer.Option(help="Shuffle the rows with this seed.", show_default="order of the source")
        ] = None,
        prompt_template: Annotated[
            str | None,
            typer.Option(help="plain, hashes, boxed, or a text that contains {problem}.", show_default=source.template),
        ] = None,
        tokenizer: _Tokenizer = None,
        max_prompt_tokens: Annotated[
            int | None, typer.Option(help="Drop prompts longer than this, chat template included.", min=1)
        ] = None,
        exclude: Annotated[
            str | None,
            typer.Option(
                help="File or hub id of problems to leave out.",
                hidden=source.excludes is None,
                show_default=source.excludes.hub_id if source.excludes else False,
            ),
        ] = None,
        near_duplicates: Annotated[
            float | None,
            typer.Option(
                help="Drop a problem that shares at least this fraction of its word triples, all its quantities and "
                "its answer with an earlier one; 0 keeps all.",
                show_default="0, keep all" if source.evaluation_only else str(NEAR_DUPLICATES),
            ),
        ] = None,
        engine: Annotated[
            str, typer.Option(help="local, or ray for parquet larger than one machine. The output is the same.")
        ] = "local",
    ) -> None:
        options = Options(split, limit, seed, prompt_template, tokenizer, max_prompt_tokens, exclude, near_duplicates)
        with progress_console().status(f"{source.name}: reading") as status:
            path, account = prepare(
                source,
                out,
                origin,
                options,
                lambda rows: status.update(f"{source.name}: {rows:,} rows read"),
                engine,
            )
        for reason, count in account.dropped.most_common():
            typer.echo(f"{count} rows left out: {reason}", err=True)
        typer.echo(f"{account.rows_out} of {account.rows_in} rows", err=True)
        typer.echo(path)

    note = " For evaluation only: training on it spoils a benchmark." if source.evaluation_only else ""
    minus = f" minus {source.excludes.name}" if source.excludes else ""
    command.__doc__ = f"Write {source.hub_id}{minus}.\n\nLicence: {source.licence}.{note}"
    return command


def _epilog(source: Source) -> str:
    split = source.splits[0]
    command = f"cfpo-verl data prepare {source.name} --out data/{source.name}"
    return epilog(f"{command} --split {split}", f"{command} --source {source.name}.jsonl --limit 1000 --seed 0")


for _source in SOURCES.values():
    prepare_app.command(_source.name, epilog=_epilog(_source))(_prepare_command(_source))


@app.command("list", epilog=epilog("cfpo-verl data list"))
def list_sources() -> None:
    """List the public data sets that `data prepare` knows."""
    table = Table("name", "use", "hub id", "splits", "licence", "prompt")
    for source in SOURCES.values():
        use = "evaluation" if source.evaluation_only else "training"
        table.add_row(source.name, use, source.hub_id, ", ".join(source.splits), source.licence, source.template)
    wide_console().print(table)


@app.command(
    epilog=epilog(
        "cfpo-verl data validate data/gsm8k/train.parquet",
        "cfpo-verl data validate train.parquet test.parquet --tokenizer models/tiny --max-prompt-tokens 1024",
    ),
)
def validate(
    files: Annotated[list[Path], typer.Argument(help="Parquet files to check.", metavar="FILE...")],
    tokenizer: _Tokenizer = None,
    max_prompt_tokens: Annotated[
        int | None, typer.Option(help="Report prompts longer than this many tokens.", min=1)
    ] = None,
) -> None:
    """Check every row of training data.

    Checks types, prompts, gold answers against the reward, data sources and repeated problems.
    """
    from cfpo_verl.data_prep.tokens import token_counter
    from cfpo_verl.data_prep.validate import validate as find_problems

    if (tokenizer is None) != (max_prompt_tokens is None):
        raise DataError("--tokenizer and --max-prompt-tokens go together. Give both or neither")
    count_tokens = token_counter(tokenizer) if tokenizer else None
    problems = [problem for file in files for problem in find_problems(file, count_tokens, max_prompt_tokens or 0)]
    if problems:
        raise DataError("\n".join(problems))
    typer.echo(f"{len(files)} files are fit for training")


@app.command(
    epilog=epilog("cfpo-verl data mix --out mixed.parquet data/gsm8k/train.parquet:0.7 data/math/train.parquet:0.3"),
)
def mix(
    parts: Annotated[list[str], typer.Argument(help="Files with their weights.", metavar="FILE:WEIGHT...")],
    out: Annotated[Path, typer.Option(help="Parquet file to write; a manifest is written beside it.")],
    rows: Annotated[
        int | None, typer.Option(help="Total number of rows.", show_default="as many as the weights allow")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed for which rows are drawn and their order.")] = 0,
) -> None:
    """Mix several files in given proportions.

    Rows are drawn without repetition and shuffled.
    """
    from cfpo_verl.data_prep import mix as mixing

    counts = mixing.mix([mixing.Part.parse(part) for part in parts], out, rows, seed)
    for file, count in counts.items():
        typer.echo(f"{count} rows from {file}", err=True)
    typer.echo(out)


@app.command(
    epilog=epilog(
        "cfpo-verl data decontaminate data/gsm8k/train.parquet --against data/gsm8k/test.parquet "
        "--against data/math500/test.parquet --out clean.parquet"
    ),
)
def decontaminate(
    train: Annotated[Path, typer.Argument(help="Parquet file to clean.", metavar="FILE")],
    against: Annotated[list[Path], typer.Option(help="Evaluation file. May be given several times.")],
    out: Annotated[Path, typer.Option(help="Parquet file to write; a report of the rows left out goes beside it.")],
    words: Annotated[int, typer.Option(help="Number of consecutive shared words that counts as contamination.")] = 8,
) -> None:
    """Remove training problems that overlap an evaluation set.

    A problem is removed if it shares a run of words with an evaluation problem.
    """
    from cfpo_verl.data_prep import decontaminate as cleaning

    with Progress(console=progress_console()) as bar:
        task = bar.add_task("comparing", total=None)
        report = cleaning.decontaminate(
            train, against, out, words, lambda done, rows: bar.update(task, completed=done, total=rows)
        )
    for removed in report.removed[:5]:
        typer.echo(
            f"row {removed.index}: {removed.evaluation_file}, row {removed.evaluation_index}: {removed.shared}",
            err=True,
        )
    typer.echo(f"{len(report.removed)} of {report.rows} rows left out, see {out.stem}.contaminated.json", err=True)
    typer.echo(out)


@app.command(
    epilog=epilog(
        "cfpo-verl data stats data/gsm8k/train.parquet",
        "cfpo-verl data stats data/gsm8k/train.parquet --tokenizer models/tiny --out lengths.png",
    ),
)
def stats(
    file: Annotated[Path, typer.Argument(help="Parquet file to describe.", metavar="FILE")],
    out: Annotated[
        Path | None, typer.Option(help="PNG file to draw.", show_default="beside the file, as .lengths.png")
    ] = None,
    tokenizer: _Tokenizer = None,
) -> None:
    """Describe each data source: rows, prompt lengths, answers.

    Prints a table and draws the prompt lengths.
    """
    from cfpo_verl.data_prep import stats as counting
    from cfpo_verl.data_prep.tokens import token_counter

    unit = "tokens" if tokenizer else "characters"
    picture = out or file.with_suffix(".lengths.png")
    found = counting.collect(file, token_counter(tokenizer) if tokenizer else None)
    counting.draw(found, unit, picture)
    table = Table("data source", "rows", f"prompt {unit}: median", "99 %", "longest", "numeric answers")
    for source, numbers in found.items():
        lengths = [str(counting.quantile(numbers.prompt_lengths, share)) for share in (0.5, 0.99, 1.0)]
        table.add_row(source, str(numbers.rows), *lengths, f"{numbers.numeric_answers / numbers.rows:.1%}")
    wide_console().print(table)
    typer.echo(picture, err=True)
