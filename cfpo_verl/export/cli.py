"""`cfpo-verl export`: convert a checkpoint, check it, write its model card."""

from pathlib import Path
from typing import Annotated

import typer

from cfpo_verl.terminal import App, epilog

app = App()


@app.command(
    epilog=epilog(
        "cfpo-verl export runs/math_cfpo --out models/math_cfpo",
        "cfpo-verl export runs/math_cfpo --step 200 --out models/step_200 --evaluation evals/math_cfpo",
    ),
)
def export(
    checkpoint: Annotated[Path, typer.Argument(help="Run folder or verl checkpoint.", metavar="RUN_DIR_OR_CHECKPOINT")],
    out: Annotated[Path, typer.Option(help="Output folder for the model.")],
    step: Annotated[
        int | None, typer.Option(help="Step of the run's checkpoint to use.", show_default="the last one")
    ] = None,
    evaluation: Annotated[
        list[Path] | None,
        typer.Option(help="Evaluation folder to quote in the model card. May be given several times."),
    ] = None,
    trust_remote_code: Annotated[bool, typer.Option(help="Allow the model folder's own Python code to run.")] = False,
) -> None:
    """Convert an FSDP or Megatron checkpoint to a Hugging Face folder with a model card. Nothing is uploaded.

    verl's own merger does the conversion; the result is then loaded with transformers and compared with the checkpoint
    on a prompt.
    """
    from cfpo_verl.export.card import export_with_card

    check = export_with_card(checkpoint, out, step, evaluation or [], trust_remote_code)
    typer.echo(check.describe(), err=True)
    typer.echo(out)
