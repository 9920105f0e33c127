"""Entry points of the modules that are not in a folder: train, experiments, warmup, env."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from cfpo_verl.terminal import App, epilog, progress_console, wide_console

train = App()
experiments = App()
warmup = App()
env = App()

# Hydra parses the arguments of train.
_PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


@train.command(context_settings=_PASSED_ON, add_help_option=False)
def _train(context: typer.Context) -> None:
    from cfpo_verl import train as training

    raise SystemExit(training.main(context.args))


@experiments.command(
    epilog=epilog(
        "cfpo-verl experiments",
        "cfpo-verl experiments 7b 8gpu megatron",
        "cfpo-verl experiments gsm8k --json",
        exit_status="0 found; 1 no experiment matches",
    ),
)
def _experiments(
    words: Annotated[
        list[str] | None,
        typer.Argument(help="List only experiments that match all words, such as 7b 8gpu dapo.", metavar="[WORD...]"),
    ] = None,
    memory: Annotated[
        bool, typer.Option(help="Estimate each experiment's peak GPU memory (docs/plan.md); --no-memory is faster.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list with every choice.")] = False,
) -> None:
    """List the named experiments; search them by model, GPUs, backend, algorithm and data.

    Each choice can be replaced on the command line of `cfpo-verl train`: policy_model=, backend=, topology=, algo=,
    updates=, data_mix=, eval_sets=, tracking=.
    """
    from cfpo_verl.experiments import find, peak_memory_gb

    found = find(words or [])
    with progress_console().status("estimating memory"):
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
        table = Table("experiment", "model", "GPUs", *gb_column, "backend", "algorithm", "data", "description")
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
        wide_console().print(table)
        typer.echo("cfpo-verl train experiment=NAME [policy_model=..., backend=..., algo=..., KEY=VALUE]", err=True)
    if not found:
        typer.echo(f"cfpo-verl experiments: no experiment matches all of: {' '.join(words or [])}", err=True)
        raise SystemExit(1)


@warmup.command(
    epilog=epilog(
        "cfpo-verl warmup --train data/arithmetic/train.parquet --held-out data/arithmetic/test.parquet "
        "--out models/quickstart_seed0"
    ),
)
def _warmup(
    train: Annotated[Path, typer.Option(help="Parquet file to train on.")],
    held_out: Annotated[Path, typer.Option(help="Parquet file to measure accuracy on.")],
    out: Annotated[Path, typer.Option(help="Output folder for the model. Left alone if it is up to date.")],
    seed: Annotated[int, typer.Option(help="Seed for the weights, the order of examples and sampling.")] = 0,
) -> None:
    """Train a tiny Qwen2 from scratch by imitation until it is sometimes right (about a minute on 2 cores)."""
    from cfpo_verl import warmup as warming
    from cfpo_verl.data_prep.schema import read_problems

    problems, held_out_problems = read_problems(train), read_problems(held_out)
    config = warming.WarmupConfig(seed=seed)
    made_from = warming.fingerprint(config, [train, held_out])
    if warming.is_current(out, made_from):
        typer.echo(f"{out} is up to date", err=True)
        typer.echo(out)
        return
    warming.check_replaceable(out)
    with progress_console().status("warming up") as status:
        model, tokenizer, measurements = warming.warm_up(
            problems,
            held_out_problems,
            config,
            lambda step, accuracy: status.update(
                f"warming up: step {step}, accuracy {accuracy:.2f}, target {config.accuracy_low}"
            ),
        )
    warming.save(out, model, tokenizer, measurements, made_from)
    step, accuracy = measurements[-1]
    typer.echo(f"accuracy {accuracy:.3f} after {step} steps", err=True)
    typer.echo(out)


@env.command(
    epilog=epilog("env $(cfpo-verl env cpu) python -m verl.trainer.main_ppo +experiment=cpu_quickstart"),
)
def _env(
    platform: Annotated[str, typer.Argument(help="Name of a file in hydra_configs/platform.", metavar="PLATFORM")],
) -> None:
    """Print the environment variables of a platform, for verl's own entry point.

    verl chooses its platform from the environment before it reads any config. `cfpo-verl train` sets these variables
    itself.
    """
    from cfpo_verl.config_groups import platform_env

    for name, value in platform_env(platform).items():
        typer.echo(f"{name}={value}")
