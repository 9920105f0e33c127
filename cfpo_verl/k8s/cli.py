"""`cfpo-verl k8s`: render a RayJob."""

from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from cfpo_verl.files import write_atomically
from cfpo_verl.k8s import jobs
from cfpo_verl.terminal import App, epilog

app = App(
    "Run experiments on Kubernetes with KubeRay. docs/kubernetes.md is a walkthrough.",
    no_args_is_help=True,
    epilog=epilog(
        "mkdir -p kubernetes && cfpo-verl k8s example > kubernetes/mysite.yaml",
        "cfpo-verl k8s render experiment=gsm8k_1gpu kubernetes=mysite | kubectl apply -f -",
    ),
)


@app.command(epilog=epilog("mkdir -p kubernetes && cfpo-verl k8s example > kubernetes/mysite.yaml"))
def example() -> None:
    """Print a site file to fill in, with every key explained."""
    typer.echo((files("cfpo_verl.hydra_configs") / "kubernetes" / "example.yaml").read_text(), nl=False)


@app.command(
    context_settings={"ignore_unknown_options": True},  # leaves overrides to Hydra
    epilog=epilog(
        "cfpo-verl k8s render experiment=math_8gpu topology=2x8 kubernetes=mysite run_dir=/shared/runs/a --out a.yaml",
        "cfpo-verl k8s render experiment=gsm8k_1gpu kubernetes=mysite | kubectl apply -f -",
        exit_status="0 rendered; 2 invalid arguments, nothing was written",
    ),
)
def render(
    overrides: Annotated[
        list[str],
        typer.Argument(
            help="Overrides, as for cfpo-verl train, and kubernetes=NAME.", metavar="experiment=NAME kubernetes=NAME"
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="File to write.", show_default="standard output")] = None,
    config_dir: Annotated[
        Path, typer.Option(help="Folder that contains kubernetes/NAME.yaml for kubernetes=NAME.")
    ] = Path(),
) -> None:
    """Print a RayJob and its resolved config as one YAML stream.

    Nothing leaves this machine.
    """
    text = jobs.render(*jobs.plan(overrides, config_dir))
    if out is not None:
        write_atomically(out, text)
    typer.echo(out if out is not None else text, nl=out is not None)
