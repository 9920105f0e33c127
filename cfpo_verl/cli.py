"""The console script `cfpo-verl`: a table of commands, each imported when it runs, so that --help is quick."""

import os
import sys
from importlib import import_module
from typing import Any, NamedTuple, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from cfpo_verl.terminal import App, Command, epilog


class Entry(NamedTuple):
    """A command that has not been imported.

    Args:
        module: Has the command as a typer application called `app`, or called like the command.
        summary: What `cfpo-verl --help` says of it.
    """

    module: str
    summary: str


COMMANDS = {
    "train": Entry("cfpo_verl.commands", "Train a policy."),
    "doctor": Entry("cfpo_verl.doctor.cli", "Check a run without starting anything."),
    "plan": Entry("cfpo_verl.plan.cli", "Estimate memory, step time and GPU hours."),
    "experiments": Entry("cfpo_verl.commands", "List and search the named experiments."),
    "slurm": Entry("cfpo_verl.slurm.cli", "Run experiments as SLURM jobs."),
    "k8s": Entry("cfpo_verl.k8s.cli", "Run experiments on Kubernetes with KubeRay."),
    "report": Entry("cfpo_verl.report.cli", "Draw runs and evaluations on one HTML page."),
    "eval": Entry("cfpo_verl.evaluation.cli", "Evaluate a model, with confidence intervals."),
    "export": Entry("cfpo_verl.export.cli", "Convert a checkpoint to a Hugging Face model folder."),
    "data": Entry("cfpo_verl.data_prep.cli", "Prepare data in verl's parquet schema."),
    "warmup": Entry("cfpo_verl.commands", "Train the tiny model that the quickstart starts from."),
    "env": Entry("cfpo_verl.commands", "Print the environment variables of a platform."),
}


class _LazyGroup(TyperGroup):
    """Lists `COMMANDS` without importing them, and imports the one that runs."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> TyperCommand | None:
        return Command(cmd_name, help=COMMANDS[cmd_name].summary) if cmd_name in COMMANDS else None

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        return name, _load(name) if name is not None else command, rest


def _load(name: str) -> Any:
    """Import a command."""
    from cfpo_verl.compat import UnsupportedAntlrError, check_antlr_version

    try:
        check_antlr_version()  # with a wrong one, importing Hydra or OmegaConf fails unreadably
    except UnsupportedAntlrError as error:
        typer.echo(f"cfpo-verl {name}: {error}", err=True)
        raise SystemExit(2) from None
    entry = COMMANDS[name]
    module = import_module(entry.module)
    loaded = get_command(getattr(module, "app", None) or getattr(module, name))
    loaded.name = name
    return loaded


app = App(
    "Train language models with Clipping-Free Policy Optimization (CFPO) in verl.",
    no_args_is_help=True,
    cls=_LazyGroup,
    epilog=epilog(
        "cfpo-verl experiments 7b 8gpu",
        "cfpo-verl doctor experiment=math_8gpu",
        "cfpo-verl train experiment=math_8gpu algo=cfpo",
        "cfpo-verl report runs/* --out compare",
        "cfpo-verl train --help",
    ),
)


@app.callback()
def _cfpo_verl() -> None:
    pass


def _complete(arguments: list[str]) -> NoReturn:
    """Answer Hydra's completion script, which does not know that a program may have commands."""
    from cfpo_verl import train as training

    program, *words = os.environ.get("COMP_LINE", "").split(" ")
    if words[:1] == ["train"] and len(words) > 1:
        os.environ["COMP_LINE"] = " ".join([program, *words[1:]])
        raise SystemExit(training.main(arguments))
    if len(words) < 2:
        typer.echo(" ".join(sorted(COMMANDS)))
    raise SystemExit(0)


def run_script(*words: str) -> None:
    """Run a command from a file that is started as a script.

    Args:
        words: Name of the command, which the script's own arguments follow.
    """
    sys.argv[1:1] = words
    main()


def main() -> None:
    """Run the console script."""
    if sys.argv[1:2] == ["-sc"]:  # from Hydra's completion script, see cfpo-verl train --help
        _complete(sys.argv[1:])
    app()
