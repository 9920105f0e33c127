"""The command `cfpo-verl plan`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from cfpo_verl.composing import compose
from cfpo_verl.plan import PlanError, default_gpu, report
from cfpo_verl.plan.hardware import find_gpu
from cfpo_verl.plan.read_config import read_run
from cfpo_verl.plan.scale import scale as scale_up
from cfpo_verl.terminal import App, epilog, wide_console

app = App()


@app.command(
    epilog=epilog(
        "cfpo-verl plan experiment=cpu_quickstart",
        "cfpo-verl plan experiment=math_8gpu policy_model=qwen3_8b topology=2x8",
        "cfpo-verl plan experiment=math_8gpu --gpu H100-80GB --scale --figure scale.png",
        exit_status="0 the run fits; 1 it does not; 2 invalid input",
    ),
)
def plan(
    overrides: Annotated[
        list[str], typer.Argument(help="Overrides, as for cfpo-verl train.", metavar="experiment=NAME [KEY=VALUE...]")
    ],
    gpu: Annotated[
        str | None,
        typer.Option(help="GPU type to plan for.", show_default="H100-80GB; cpu-2-cores with trainer.device=cpu"),
    ] = None,
    hardware: Annotated[
        Path | None, typer.Option(help="YAML file with your own GPU types and efficiencies, see docs/plan.md.")
    ] = None,
    response_tokens: Annotated[
        float | None,
        typer.Option(help="Mean response length in tokens.", show_default="half of the limit, at most 2048"),
    ] = None,
    prompt_tokens: Annotated[
        float | None, typer.Option(help="Mean prompt length in tokens.", show_default="half of the limit, at most 256")
    ] = None,
    limit_share: Annotated[
        float, typer.Option(help="Share of responses that reach the length limit (response_length/clip_ratio).")
    ] = 0.01,
    scale: Annotated[bool, typer.Option("--scale", help="Show how cost grows from 8 to 1,024 GPUs.")] = False,
    figure: Annotated[Path | None, typer.Option(help="Draw the table of --scale to this PNG file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Estimate a run's GPU memory, seconds per step and GPU hours before it is queued."""
    if figure is not None and not scale:
        raise PlanError("--figure draws the table of --scale. Give --scale too")
    config = compose(overrides)
    gpu_type = find_gpu(gpu or default_gpu(config).name, hardware)
    run = read_run(config, response_tokens, prompt_tokens, limit_share)
    found, rows = report.estimate(run, gpu_type), scale_up(run, gpu_type) if scale else []
    if scale and not rows:
        raise PlanError(
            "--scale: no GPU count from 8 to 1,024 is a multiple of the config's parallel sizes. Lower the tensor, "
            "pipeline, context or sequence parallel size"
        )
    if figure is not None:
        report.draw_scaling(rows, f"{' '.join(overrides)} on {gpu_type.name}", figure)
        typer.echo(figure, err=True)
    if as_json:
        typer.echo(json.dumps({**found, **({"scaling": report.scaling(rows)} if scale else {})}, indent=2))
    else:
        console = wide_console()
        console.print(report.render(found), highlight=False)
        if scale:
            console.print(report.render_scaling(rows), highlight=False)
    raise SystemExit(0 if found["fits"] else 1)
