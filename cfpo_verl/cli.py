"""The console script `cfpo-verl`. Each command imports what it needs when it runs, so that --help is quick."""

import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Train language models with Clipping-Free Policy Optimization (CFPO) in verl.",
)
data_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Prepare data in verl's parquet schema.")
prepare_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Write parquet files from a source.")
eval_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Measure a model: accuracy with intervals, from its own responses.",
)
app.add_typer(data_app, name="data")
app.add_typer(eval_app, name="eval")
data_app.add_typer(prepare_app, name="prepare")


def _fail(command: str, error: Exception) -> NoReturn:
    typer.echo(f"cfpo-verl {command}: {error}", err=True)
    raise SystemExit(2)


def _check_antlr(command: str) -> None:
    """Before anything imports Hydra, which fails with a wrong antlr in a way that nobody can read."""
    from cfpo_verl.compat import UnsupportedAntlrError, check_antlr_version

    try:
        check_antlr_version()
    except UnsupportedAntlrError as error:
        _fail(command, error)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
def train(context: typer.Context) -> None:
    """Train a policy: cfpo-verl train experiment=NAME [KEY=VALUE ...]. See cfpo-verl train --help."""
    _check_antlr("train")
    from cfpo_verl import train as training

    raise SystemExit(training.main(context.args))


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
def doctor(context: typer.Context) -> None:
    """Check a run and start nothing: cfpo-verl doctor experiment=NAME [KEY=VALUE ...]. See cfpo-verl doctor --help."""
    _check_antlr("doctor")
    from cfpo_verl.doctor import command

    raise SystemExit(command.main(context.args))


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
def slurm(context: typer.Context) -> None:
    """Run as SLURM jobs: cfpo-verl slurm submit experiment=NAME cluster=NAME. See cfpo-verl slurm --help."""
    _check_antlr("slurm")
    from cfpo_verl.slurm.command import app as slurm_app

    slurm_app(context.args, prog_name="cfpo-verl slurm")


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
def k8s(context: typer.Context) -> None:
    """Run on Kubernetes: cfpo-verl k8s render experiment=NAME kubernetes=NAME. See cfpo-verl k8s --help."""
    _check_antlr("k8s")
    from cfpo_verl.k8s.command import app as k8s_app

    k8s_app(context.args, prog_name="cfpo-verl k8s")


@app.command(
    epilog="Examples: cfpo-verl experiments;  cfpo-verl experiments 7b 8gpu megatron;  "
    "cfpo-verl experiments gsm8k --json",
)
def experiments(
    words: Annotated[
        list[str] | None,
        typer.Argument(help="Only those with all of these, for example 7b, 8gpu, megatron, dapo.", metavar="[WORD...]"),
    ] = None,
    memory: Annotated[
        bool, typer.Option(help="Estimate the peak memory of a GPU, for which each run is composed (docs/plan.md).")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list with every choice.")] = False,
) -> None:
    """List the named runs, and search them by model, GPUs, backend, algorithm and data.

    Any choice can be exchanged on the command line of `cfpo-verl train`: policy_model=, backend=, topology=, algo=,
    updates=, data_mix=, eval_sets=, tracking=. Exit status 1 if no run has all of the words.
    """
    import json

    from rich.console import Console
    from rich.table import Table

    from cfpo_verl.experiments import find, peak_memory_gb

    found = find(words or [])
    with Console(file=sys.stderr).status("estimating memory"):
        peaks_gb = {experiment.name: peak_memory_gb(experiment.name) for experiment in found} if memory else {}
    if as_json:
        estimate = {"peak_memory_gb": peaks_gb} if memory else {}
        rows = [
            {**experiment.as_dict(), **{key: peaks[experiment.name] for key, peaks in estimate.items()}}
            for experiment in found
        ]
        typer.echo(json.dumps(rows, indent=2))
    elif found:
        gb_column = ["GB/GPU"] if memory else []
        table = Table("experiment", "model", "GPUs", *gb_column, "backend", "algorithm", "data", "what it is")
        for experiment in found:
            chosen = experiment.choices
            cells = (
                chosen["policy_model"],
                str(experiment.gpus),
                *(["?" if (peak := peaks_gb[experiment.name]) is None else f"{peak:.0f}"] if memory else []),
                chosen["backend"],
                chosen["algo"],
                chosen["data_mix"],
            )
            table.add_row(experiment.name, *cells, experiment.description)
        Console(width=None if sys.stdout.isatty() else 160).print(table)
        typer.echo("cfpo-verl train experiment=NAME [policy_model=..., backend=..., algo=..., KEY=VALUE]", err=True)
    if not found:
        typer.echo(f"cfpo-verl experiments: none has all of: {' '.join(words or [])}", err=True)
        raise SystemExit(1)


@app.command(
    epilog="Example: env $(cfpo-verl env cpu) python -m verl.trainer.main_ppo +experiment=cpu_quickstart",
)
def env(platform: Annotated[str, typer.Argument(help="Name of a file in hydra_configs/platform.")]) -> None:
    """Print the environment variables of a platform, for verl's own entry point.

    verl reads its platform from the environment before it reads any config. `cfpo-verl train` sets
    these variables by itself.
    """
    from cfpo_verl.config_groups import platform_env

    try:
        variables = platform_env(platform)
    except ValueError as error:
        _fail("env", error)
    for name, value in variables.items():
        typer.echo(f"{name}={value}")


@prepare_app.command(epilog="Example: cfpo-verl data prepare arithmetic --out data/arithmetic")
def arithmetic(
    out: Annotated[Path, typer.Option(help="Folder for train.parquet and test.parquet.")],
    operands: Annotated[int, typer.Option(help="One-digit terms in each sum.")] = 3,
    held_out: Annotated[int, typer.Option(help="Problems in test.parquet; the others go to train.parquet.")] = 256,
    seed: Annotated[int, typer.Option(help="Decides the order, and which problems are held out.")] = 0,
) -> None:
    """Write generated sums such as 3+4+5= with their answers."""
    from cfpo_verl.data_prep import arithmetic as source

    try:
        paths = source.prepare(out, operands=operands, held_out=held_out, seed=seed)
    except (ValueError, OSError) as error:
        _fail("data prepare arithmetic", error)
    for path in paths:
        typer.echo(path)


@prepare_app.command(epilog="Example: cfpo-verl data prepare few-shot-sums --out data/few_shot_sums --count 64")
def few_shot_sums(
    out: Annotated[Path, typer.Option(help="Folder for train.parquet and test.parquet.")],
    count: Annotated[int, typer.Option(help="Problems in train.parquet.")] = 1024,
    held_out: Annotated[int, typer.Option(help="Problems in test.parquet.")] = 64,
    largest: Annotated[int, typer.Option(help="The two terms are drawn from 1 to this.")] = 49,
    shots: Annotated[int, typer.Option(help="Worked examples before each sum.")] = 4,
    seed: Annotated[int, typer.Option(help="Decides everything.")] = 0,
) -> None:
    """Write sums with worked examples before them, for a pretrained model without instructions."""
    from cfpo_verl.data_prep import few_shot_sums as source

    try:
        paths = source.prepare(out, count=count, held_out=held_out, largest=largest, shots=shots, seed=seed)
    except (ValueError, OSError) as error:
        _fail("data prepare few-shot-sums", error)
    for path in paths:
        typer.echo(path)


@prepare_app.command(
    epilog="Example: cfpo-verl data prepare reasoning-gym --task chain_sum --out data/chain_sum --count 2000",
)
def reasoning_gym(
    task: Annotated[str, typer.Option(help="Name of a task of the package reasoning-gym.")],
    out: Annotated[Path, typer.Option(help="Folder for train.parquet and test.parquet.")],
    count: Annotated[int, typer.Option(help="Problems in train.parquet.")] = 1024,
    held_out: Annotated[int, typer.Option(help="Problems in test.parquet.")] = 64,
    seed: Annotated[int, typer.Option(help="Decides the problems and their order.")] = 0,
) -> None:
    """Write generated tasks of Reasoning Gym (pip install reasoning-gym): questions and answers."""
    from cfpo_verl.data_prep import reasoning_gym_tasks as source

    try:
        paths = source.prepare(out, task=task, count=count, held_out=held_out, seed=seed)
    except (ValueError, OSError) as error:
        _fail("data prepare reasoning-gym", error)
    for path in paths:
        typer.echo(path)


def _add_public_sources() -> None:
    from cfpo_verl.data_prep.cli import epilog, prepare_command
    from cfpo_verl.data_prep.sources import SOURCES

    for name, source in SOURCES.items():
        prepare_app.command(name, epilog=epilog(source))(prepare_command(source))


@data_app.command("list", epilog="Example: cfpo-verl data list")
def list_sources() -> None:
    """List the public data sets that `data prepare` knows."""
    from rich.console import Console
    from rich.table import Table

    from cfpo_verl.data_prep.sources import SOURCES

    table = Table("name", "use", "hub id", "splits", "licence", "prompt")
    for source in SOURCES.values():
        use = "evaluation" if source.evaluation_only else "training"
        table.add_row(source.name, use, source.hub_id, ", ".join(source.splits), source.licence, source.template)
    Console(width=None if sys.stdout.isatty() else 140).print(table)


@data_app.command(
    epilog="Examples: cfpo-verl data validate data/gsm8k/train.parquet;  "
    "cfpo-verl data validate train.parquet test.parquet --tokenizer models/tiny --max-prompt-tokens 1024",
)
def validate(
    files: Annotated[list[Path], typer.Argument(help="Parquet files.", metavar="FILE...")],
    tokenizer: Annotated[str | None, typer.Option(help="Model whose tokenizer measures the prompts.")] = None,
    max_prompt_tokens: Annotated[int | None, typer.Option(help="Longest prompt that is right.", min=1)] = None,
) -> None:
    """Check every row: types, prompts, gold answers against the reward, data sources, repeated problems."""
    from cfpo_verl.data_prep.schema import DataError
    from cfpo_verl.data_prep.tokens import token_counter
    from cfpo_verl.data_prep.validate import validate as find_problems

    if (tokenizer is None) != (max_prompt_tokens is None):
        _fail("data validate", ValueError("--tokenizer and --max-prompt-tokens go together: give both or none"))
    try:
        count_tokens = token_counter(tokenizer) if tokenizer else None
        problems = [problem for file in files for problem in find_problems(file, count_tokens, max_prompt_tokens or 0)]
    except (DataError, OSError) as error:
        _fail("data validate", error)
    if problems:
        _fail("data validate", ValueError("\n".join(problems)))
    typer.echo(f"{len(files)} files are fit for training")


@data_app.command(
    epilog="Example: cfpo-verl data mix --out mixed.parquet data/gsm8k/train.parquet:0.7 data/math/train.parquet:0.3",
)
def mix(
    parts: Annotated[list[str], typer.Argument(help="Files with their shares.", metavar="FILE:WEIGHT...")],
    out: Annotated[Path, typer.Option(help="Parquet file to write; its manifest goes beside it.")],
    rows: Annotated[
        int | None, typer.Option(help="How many in all.", show_default="as many as the shares allow")
    ] = None,
    seed: Annotated[int, typer.Option(help="Decides which rows, and their order.")] = 0,
) -> None:
    """Draw rows of several files in stated shares, without repetition, and shuffle them."""
    from cfpo_verl.data_prep import mix as mixing

    try:
        counts = mixing.mix([mixing.Part.parse(part) for part in parts], out, rows, seed)
    except (ValueError, OSError) as error:
        _fail("data mix", error)
    for file, count in counts.items():
        typer.echo(f"{count} rows of {file}", err=True)
    typer.echo(out)


@data_app.command(
    epilog="Example: cfpo-verl data decontaminate data/gsm8k/train.parquet --against data/gsm8k/test.parquet "
    "--against data/math500/test.parquet --out clean.parquet",
)
def decontaminate(
    train: Annotated[Path, typer.Argument(help="Parquet file to clean.")],
    against: Annotated[list[Path], typer.Option(help="Evaluation file; give it once for each file.")],
    out: Annotated[Path, typer.Option(help="Parquet file to write; a report of what was left out goes beside it.")],
    words: Annotated[int, typer.Option(help="So many words in a row that both have are evidence.")] = 8,
) -> None:
    """Leave out training problems that share words in a row with an evaluation problem."""
    from rich.console import Console
    from rich.progress import Progress

    from cfpo_verl.data_prep import decontaminate as cleaning

    try:
        with Progress(console=Console(file=sys.stderr)) as bar:
            task = bar.add_task("comparing", total=None)
            report = cleaning.decontaminate(
                train, against, out, words, lambda done, rows: bar.update(task, completed=done, total=rows)
            )
    except (ValueError, OSError) as error:
        _fail("data decontaminate", error)
    for removed in report.removed[:5]:
        typer.echo(
            f"row {removed.index}: {removed.evaluation_file}, row {removed.evaluation_index}: {removed.shared}",
            err=True,
        )
    typer.echo(f"{len(report.removed)} of {report.rows} rows left out, see {out.stem}.contaminated.json", err=True)
    typer.echo(out)


@data_app.command(
    epilog="Examples: cfpo-verl data stats data/gsm8k/train.parquet;  "
    "cfpo-verl data stats data/gsm8k/train.parquet --tokenizer models/tiny --out lengths.png",
)
def stats(
    file: Annotated[Path, typer.Argument(help="A parquet file.")],
    out: Annotated[
        Path | None, typer.Option(help="PNG to write.", show_default="beside the file, as .lengths.png")
    ] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Model whose tokenizer measures the prompts.")] = None,
) -> None:
    """Print rows, prompt lengths and kinds of answers for each data source, and draw the lengths."""
    from rich.console import Console
    from rich.table import Table

    from cfpo_verl.data_prep import stats as counting
    from cfpo_verl.data_prep.tokens import token_counter

    unit = "tokens" if tokenizer else "characters"
    picture = out or file.with_suffix(".lengths.png")
    try:
        found = counting.collect(file, token_counter(tokenizer) if tokenizer else None)
        counting.draw(found, unit, picture)
    except (ValueError, OSError) as error:
        _fail("data stats", error)
    table = Table("data source", "rows", f"prompt {unit}: median", "99 %", "longest", "numeric answers")
    for source, numbers in found.items():
        lengths = [str(counting.quantile(numbers.prompt_lengths, share)) for share in (0.5, 0.99, 1.0)]
        table.add_row(source, str(numbers.rows), *lengths, f"{numbers.numeric_answers / numbers.rows:.1%}")
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    typer.echo(picture, err=True)


@app.command(
    epilog="Example: cfpo-verl warmup --train data/arithmetic/train.parquet "
    "--held-out data/arithmetic/test.parquet --out models/quickstart_seed0",
)
def warmup(
    train: Annotated[Path, typer.Option(help="Parquet file to learn from.")],
    held_out: Annotated[Path, typer.Option(help="Parquet file to measure on.")],
    out: Annotated[Path, typer.Option(help="Folder for the model. Left as it is if it is up to date.")],
    seed: Annotated[int, typer.Option(help="Seeds weights, examples and sampling.")] = 0,
) -> None:
    """Make a tiny Qwen2 and teach it by imitation until it is sometimes right (about a minute on 2 cores)."""
    from rich.console import Console

    from cfpo_verl import warmup as warming
    from cfpo_verl.data_prep.schema import read_problems

    try:
        problems, held_out_problems = read_problems(train), read_problems(held_out)
        config = warming.WarmupConfig(seed=seed)
        made_from = warming.fingerprint(config, [train, held_out])
        if warming.is_current(out, made_from):
            typer.echo(f"{out} is up to date", err=True)
            typer.echo(out)
            return
        warming.check_replaceable(out)
        with Console(file=sys.stderr).status("warming up") as status:
            model, tokenizer, measurements = warming.warm_up(
                problems,
                held_out_problems,
                config,
                lambda step, accuracy: status.update(
                    f"warming up: step {step}, accuracy {accuracy:.2f}, until {config.accuracy_low}"
                ),
            )
        warming.save(out, model, tokenizer, measurements, made_from)
    except (ValueError, RuntimeError, OSError) as error:
        _fail("warmup", error)
    step, accuracy = measurements[-1]
    typer.echo(f"accuracy {accuracy:.3f} after {step} steps", err=True)
    typer.echo(out)


@eval_app.command(
    "run",
    epilog="Examples: cfpo-verl eval run Qwen/Qwen2.5-Math-1.5B --sets aime24,math500 --n 32 --temperature 0.6 "
    "--out evals/base;  cfpo-verl eval run runs/cpu_quickstart_cfpo_seed0 --sets arithmetic --out evals/cfpo;  "
    "cfpo-verl eval run MODEL --sets math_suite --n 32 --data-parallel 8 --out evals/suite.  "
    "Exit status: 0 done; 1 failed while generating; 2 refused before that; 130 interrupted (the command goes on).",
)
def eval_run(
    model: Annotated[
        str, typer.Argument(help="Folder or hub id of a model, run folder, or checkpoint of verl.", metavar="MODEL")
    ],
    sets: Annotated[str, typer.Option(help="Names of eval_sets, or parquet files, with commas between them.")],
    out: Annotated[Path, typer.Option(help="Folder of the evaluation; one that is not finished goes on.")],
    n: Annotated[int, typer.Option(help="Responses for each problem.")] = 8,
    temperature: Annotated[float, typer.Option(help="Of sampling; 0 for the likeliest token.")] = 1.0,
    top_p: Annotated[float, typer.Option(help="Share of probability that is sampled from.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Number of tokens that are sampled from; -1 for all.")] = -1,
    max_tokens: Annotated[
        int | None, typer.Option(help="Longest response.", show_default="as in the model's run, else 4096")
    ] = None,
    seed: Annotated[int, typer.Option(help="Every response's seed is made from it.")] = 0,
    limit: Annotated[int | None, typer.Option(help="So many problems of each set.", show_default="all")] = None,
    step: Annotated[int | None, typer.Option(help="Checkpoint of a run.", show_default="the last one")] = None,
    name: Annotated[
        str | None, typer.Option(help="Name in tables.", show_default="the model's or run's folder")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="vLLM's dtype.", show_default="float32 on a CPU, else auto")] = None,
    tensor_parallel: Annotated[int, typer.Option(help="GPUs of each engine.")] = 1,
    data_parallel: Annotated[int, typer.Option(help="Engines; more than one are actors of the Ray cluster.")] = 1,
    gpu_memory_utilization: Annotated[float, typer.Option(help="Share of a GPU's memory, vLLM's option.")] = 0.9,
    max_num_seqs: Annotated[int, typer.Option(help="Responses at the same time in each engine, vLLM's option.")] = 256,
    chat_template_kwargs: Annotated[
        str, typer.Option(help="JSON for the chat template, such as '{\"enable_thinking\": false}'.")
    ] = "{}",
    trust_remote_code: Annotated[bool, typer.Option(help="Let code of the model's folder run.")] = False,
) -> None:
    """Generate responses with vLLM, score them, and print avg@n, pass@k and maj@k with 95 percent intervals.

    Prompts are made by verl's own code, so that the numbers can be held against validation in training.
    """
    import json

    from cfpo_verl.evaluation import command
    from cfpo_verl.evaluation.tables import print_summary
    from cfpo_verl.export.merge import ExportError

    try:
        kwargs = json.loads(chat_template_kwargs)
        if not isinstance(kwargs, dict):
            raise ValueError(f"--chat-template-kwargs must be a JSON object, got {chat_template_kwargs}")
        options = command.RunOptions(
            n=n,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            max_tokens=max_tokens,
            seed=seed,
            limit=limit,
            dtype=dtype,
            tensor_parallel=tensor_parallel,
            data_parallel=data_parallel,
            gpu_memory_utilization=gpu_memory_utilization,
            max_num_seqs=max_num_seqs,
            trust_remote_code=trust_remote_code,
            chat_template_kwargs=kwargs,
        )
        summary = command.run(model, sets, out, name, step, options)
    except (ExportError, command.GenerationError) as error:
        typer.echo(f"cfpo-verl eval run: {error}", err=True)
        raise SystemExit(1) from None
    except (ValueError, OSError) as error:
        _fail("eval run", error)
    except KeyboardInterrupt:
        typer.echo(f"cfpo-verl eval run: interrupted; the same command goes on in {out}", err=True)
        raise SystemExit(130) from None
    print_summary(summary)
    typer.echo(out / "summary.json", err=True)


@eval_app.command(
    "score", epilog="Example: cfpo-verl eval score generations.parquet --out evals/others --name 'model of others'"
)
def eval_score(
    file: Annotated[Path, typer.Argument(help="Parquet file of responses.", metavar="FILE.parquet")],
    out: Annotated[Path, typer.Option(help="Folder of the evaluation.")],
    name: Annotated[str | None, typer.Option(help="Name in tables.", show_default="the file's")] = None,
) -> None:
    """Score responses that someone else made: columns response (or a list, responses), data_source and gold.

    verl's own columns do too: reward_model for gold, extra_info for the problem.
    """
    from cfpo_verl.evaluation import command
    from cfpo_verl.evaluation.tables import print_summary

    try:
        summary = command.score(file, out, name)
    except (ValueError, OSError) as error:
        _fail("eval score", error)
    print_summary(summary)
    typer.echo(out / "summary.json", err=True)


@eval_app.command(
    "compare", epilog="Examples: cfpo-verl eval compare evals/grpo evals/cfpo;  cfpo-verl eval compare A B --json"
)
def eval_compare(
    first: Annotated[Path, typer.Argument(help="Folder of an evaluation.", metavar="FIRST")],
    second: Annotated[Path, typer.Argument(help="Folder of another one.", metavar="SECOND")],
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list, one object for each row.")] = False,
) -> None:
    """Compare two evaluations on the problems that both have: difference, 95 percent interval, sign test."""
    import json

    from cfpo_verl.evaluation.comparison import compare
    from cfpo_verl.evaluation.tables import print_comparison

    try:
        rows, notes = compare(first, second)
    except (ValueError, OSError) as error:
        _fail("eval compare", error)
    for note in notes:
        typer.echo(f"cfpo-verl eval compare: note: {note}", err=True)
    if as_json:
        typer.echo(json.dumps([row.as_dict() for row in rows], indent=2))
    else:
        print_comparison(rows, str(first), str(second))


@app.command(
    "export",
    epilog="Examples: cfpo-verl export runs/math_cfpo --out models/math_cfpo;  "
    "cfpo-verl export runs/math_cfpo/checkpoints/global_step_200 --out models/step_200 --evaluation evals/math_cfpo",
)
def export_model(
    checkpoint: Annotated[
        Path, typer.Argument(help="Run folder, or checkpoint of verl.", metavar="RUN_DIR_OR_CHECKPOINT")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the model.")],
    step: Annotated[int | None, typer.Option(help="Checkpoint of a run.", show_default="the last one")] = None,
    evaluation: Annotated[
        list[Path] | None, typer.Option(help="Folder of an evaluation for the model card; give it once for each.")
    ] = None,
    trust_remote_code: Annotated[bool, typer.Option(help="Let code of the model's folder run.")] = False,
) -> None:
    """Write a checkpoint of FSDP or Megatron as a Hugging Face folder with a model card; nothing is uploaded.

    verl's own merger does it; what it wrote is loaded with transformers and held against the checkpoint on a prompt.
    """
    from cfpo_verl.export import command
    from cfpo_verl.export.merge import ExportError

    try:
        check = command.export_with_card(checkpoint, out, step, evaluation or [], trust_remote_code)
    except ExportError as error:
        typer.echo(f"cfpo-verl export: {error}", err=True)
        raise SystemExit(1) from None
    except (ValueError, OSError) as error:
        _fail("export", error)
    typer.echo(check.describe(), err=True)
    typer.echo(out)


@app.command(
    epilog="Examples: cfpo-verl report runs/cpu_quickstart_cfpo_seed0;  "
    "cfpo-verl report runs/*cfpo_seed? runs/*vanilla_seed? evals/cfpo --out compare;  "
    "cfpo-verl report tensorboard_log/project wandb_export.csv --out old_runs --figures figures;  "
    "cfpo-verl report runs/cpu_quickstart_cfpo_seed0 --watch.  "
    "Exit status: 0 written; 2 bad input.",
)
def report(
    inputs: Annotated[
        list[Path],
        typer.Argument(
            help="Run folders of cfpo-verl train, .jsonl files of verl's file logger, folders of TensorBoard, "
            "exports of W&B (CSV, JSON or parquet), evaluations of cfpo-verl eval.",
            metavar="RUN...",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Files to write, without ending: NAME.html, .png, .svg and .md.",
            metavar="NAME",
            show_default="report, in the folder if there is one only",
        ),
    ] = None,
    figures: Annotated[Path | None, typer.Option(help="Folder for each figure as PNG and SVG.")] = None,
    responses: Annotated[int, typer.Option(help="How many responses to show of each run and evaluation.", min=0)] = 100,
    watch: Annotated[
        bool, typer.Option("--watch", help="Write it again and again until no run goes on; the page reloads itself.")
    ] = False,
    every_s: Annotated[float, typer.Option(help="Seconds between two reports of --watch.", min=1)] = 30,
) -> None:
    """Draw runs and evaluations on one HTML page, with a verdict on stability, and print a table (docs/report.md)."""
    import time

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from cfpo_verl.report import build
    from cfpo_verl.report.run import ReportError

    stem = build.stem(inputs, out)
    try:
        while True:
            with Console(file=sys.stderr).status("reading and drawing"):
                found = build.collect(inputs, responses)
                goes_on = watch and build.may_go_on(found)
                written = build.write(found, stem, figures, every_s if goes_on else None)
            if not goes_on:
                break
            for name, run in found.runs.items():
                typer.echo(
                    f"{name}: {run.state.detail or f'step {run.last_step}'}, {found.verdicts[name].summary}", err=True
                )
            typer.echo(f"{written[0]}; again in {every_s:g} s, Ctrl-C ends", err=True)
            time.sleep(every_s)
    except (ReportError, OSError) as error:
        _fail("report", error)
    except KeyboardInterrupt:
        typer.echo(f"ended; the last report is {stem}.html", err=True)
        return
    console = Console(width=None if sys.stdout.isatty() else 140)
    header, rows = found.table
    table = Table(*map(escape, header))
    for row in rows:
        table.add_row(*map(escape, row))
    if rows:
        console.print(table)
    for name, verdict in found.verdicts.items():
        console.print(f"{escape(name)}: {escape(verdict.summary)}", highlight=False, soft_wrap=True)
    typer.echo(f"{written[0]}, and beside it {', '.join(path.suffix for path in written[1:4])}", err=True)


@app.command(
    epilog="Examples: cfpo-verl plan experiment=cpu_quickstart;  "
    "cfpo-verl plan experiment=cpu_quickstart trainer.device=cuda trainer.n_gpus_per_node=8 "
    "actor_rollout_ref.model.path=Qwen/Qwen2.5-7B --gpu H100-80GB --scale --figure scale.png.  "
    "Exit status: 0 it fits; 1 it does not; 2 bad input.",
)
def plan(
    overrides: Annotated[
        list[str], typer.Argument(help="As for cfpo-verl train.", metavar="experiment=NAME [KEY=VALUE...]")
    ],
    gpu: Annotated[
        str | None, typer.Option(help="GPU type.", show_default="H100-80GB; cpu-2-cores with trainer.device=cpu")
    ] = None,
    hardware: Annotated[
        Path | None, typer.Option(help="YAML file with GPU types and efficiencies of your own, see docs/plan.md.")
    ] = None,
    response_tokens: Annotated[
        float | None,
        typer.Option(help="Mean length of responses.", show_default="half of the longest, at most 2048"),
    ] = None,
    prompt_tokens: Annotated[
        float | None, typer.Option(help="Mean length of prompts.", show_default="half of the longest, at most 256")
    ] = None,
    limit_share: Annotated[
        float, typer.Option(help="Share of responses that run into the limit (response_length/clip_ratio).")
    ] = 0.01,
    scale: Annotated[bool, typer.Option("--scale", help="Show how cost grows from 8 to 1,024 GPUs.")] = False,
    figure: Annotated[Path | None, typer.Option(help="PNG to draw of --scale.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Estimate memory of a GPU, seconds of a step and GPU hours of a run, before it is queued."""
    import json

    from cfpo_verl.plan import PlanError, default_gpu, report
    from cfpo_verl.plan.compose import compose
    from cfpo_verl.plan.hardware import find_gpu
    from cfpo_verl.plan.read_config import read_run
    from cfpo_verl.plan.scale import scale as scale_up

    try:
        if figure is not None and not scale:
            raise PlanError("--figure draws what --scale shows: give both")
        config = compose(overrides)
        gpu_type = find_gpu(gpu or default_gpu(config).name, hardware)
        run = read_run(config, response_tokens, prompt_tokens, limit_share)
        found, rows = report.estimate(run, gpu_type), scale_up(run, gpu_type) if scale else []
        if scale and not rows:
            raise PlanError("--scale: the parallel sizes of the config divide none of 8 to 1,024 GPUs")
        if figure is not None:
            report.draw_scaling(rows, f"{' '.join(overrides)} on {gpu_type.name}", figure)
            typer.echo(figure, err=True)
    except (PlanError, OSError) as error:
        _fail("plan", error)
    if as_json:
        typer.echo(json.dumps({**found, **({"scaling": report.scaling(rows)} if scale else {})}, indent=2))
    else:
        console = report.wide_console(sys.stdout.isatty())
        console.print(report.render(found), highlight=False)
        if scale:
            console.print(report.render_scaling(rows), highlight=False)
    raise SystemExit(0 if found["fits"] else 1)


def _complete(arguments: list[str]) -> NoReturn:
    """Answer Hydra's completion script, which knows programs but no commands of them."""
    from cfpo_verl import train as training

    program, *words = os.environ.get("COMP_LINE", "").split(" ")
    if words[:1] == ["train"] and len(words) > 1:
        os.environ["COMP_LINE"] = " ".join([program, *words[1:]])
        raise SystemExit(training.main(arguments))
    if len(words) < 2:
        typer.echo(" ".join(sorted(typer.main.get_command(app).commands)))  # type: ignore[attr-defined]
    raise SystemExit(0)


def main() -> None:
    """Run the console script."""
    if sys.argv[1:3] == ["data", "prepare"]:  # their imports take a second that other commands do not need
        _add_public_sources()
    if sys.argv[1:2] == ["-sc"]:  # what Hydra's completion script asks, see cfpo-verl train --help
        _complete(sys.argv[1:])
    app()
