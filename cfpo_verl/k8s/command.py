"""`cfpo-verl k8s`: render a RayJob."""

from importlib.resources import files
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from cfpo_verl.files import write_atomically
from cfpo_verl.k8s import jobs
from cfpo_verl.sites import JobError
from cfpo_verl.train import explain

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Run experiments on Kubernetes with KubeRay. docs/kubernetes.md goes from an empty file to kubectl apply.",
)


def _fail(error: object) -> NoReturn:
    typer.echo(f"cfpo-verl k8s render: {error}", err=True)
    raise SystemExit(2)


@app.command(epilog="Example: mkdir -p kubernetes && cfpo-verl k8s example > kubernetes/mysite.yaml")
def example() -> None:
    """Print a file of facts about a Kubernetes cluster, every key explained, to copy and fill in."""
    typer.echo((files("cfpo_verl.hydra_configs") / "kubernetes" / "example.yaml").read_text(), nl=False)


@app.command(
    context_settings={"ignore_unknown_options": True},  # such as ~key
    epilog="Examples: cfpo-verl k8s render experiment=math_8gpu topology=2x8 kubernetes=mysite "
    "run_dir=/shared/runs/a --out a.yaml;  cfpo-verl k8s render experiment=gsm8k_1gpu kubernetes=mysite | "
    "kubectl apply -f -.  Exit status: 0 rendered; 2 bad arguments, nothing was written.",
)
def render(
    overrides: Annotated[
        list[str],
        typer.Argument(help="As for cfpo-verl train, and kubernetes=NAME.", metavar="experiment=NAME kubernetes=NAME"),
    ],
    out: Annotated[Path | None, typer.Option(help="File to write.", show_default="standard output")] = None,
    config_dir: Annotated[Path, typer.Option(help="Folder whose kubernetes/NAME.yaml is meant.")] = Path(),
) -> None:
    """Print a RayJob and the resolved config that it trains, as one YAML stream. Nothing leaves this machine."""
    try:
        text = jobs.render(*jobs.plan(overrides, config_dir))
        if out is not None:
            write_atomically(out, text)
    except (JobError, OSError) as error:
        _fail(error)
    except (HydraException, OmegaConfBaseException) as error:
        known = [override for override in overrides if not override.startswith("kubernetes")]
        _fail(explain(str(error), known))
    typer.echo(out if out is not None else text, nl=out is not None)
