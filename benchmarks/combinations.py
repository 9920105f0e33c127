"""Compose all combinations of `backend`, `algo` and `policy_model` with the installed verl for docs/combinations.md.

    python -m benchmarks.combinations           # about ten minutes

A cell of the table is what became of one combination: composed, converted to verl's dataclasses and accepted by its
validation, or refused, with the number of the reason. Nothing is trained.
"""

import copy
import io
import itertools
import pickle
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.config_repository import ConfigRepository
from omegaconf import DictConfig, OmegaConf, open_dict
from rich.console import Console
from rich.progress import track
from verl.utils.config import omega_conf_to_dataclass

from benchmarks.tables import replace_block
from cfpo_verl import doctor, train  # noqa: F401 - train registers the resolver of the primary config
from cfpo_verl.config_groups import names

PAGE = Path(__file__).parents[1] / "docs" / "combinations.md"
BEGIN, END = "<!-- begin: python -m benchmarks.combinations -->", "<!-- end -->"

# Nodes that verl converts, beside actor, reference model and model, which depend on more than themselves.
_NODES = (
    "actor_rollout_ref.rollout",
    "algorithm",
    "distillation",
    "reward.sandbox_fusion",
    "trainer.v1.separate_async.hybrid_rollout",
)

# The experiment below is one for 8 GPUs; on a CPU there is one rank.
_BASE = "math_8gpu"
_TOPOLOGY = {"cpu": "1x1"}

Compose = Callable[..., DictConfig]


@contextmanager
def composing() -> Iterator[Compose]:
    """Yield a function that composes as `cfpo-verl train` does, reading each file once only.

    Hydra keeps what it has read for one composition; here it is kept for all.
    """
    files: dict[str, bytes] = {}
    load = ConfigRepository.load_config

    def load_once(repository: ConfigRepository, config_path: str) -> Any:
        if config_path not in files:
            files[config_path] = pickle.dumps(load(repository, config_path))
        # A copy, since Hydra builds on what it is given. Twice as fast as deepcopy.
        return pickle.loads(files[config_path])

    ConfigRepository.load_config = load_once  # type: ignore[method-assign]
    try:
        with hydra.initialize_config_module("cfpo_verl.hydra_configs", version_base=None):
            yield lambda *overrides: hydra.compose("train", overrides=list(overrides))
    finally:
        ConfigRepository.load_config = load  # type: ignore[method-assign]


def product_overrides(backend: str, algo: str, policy_model: str) -> list[str]:
    """Return the overrides of one combination."""
    chosen = [f"backend={backend}", f"algo={algo}", f"policy_model={policy_model}"]
    return [f"experiment={_BASE}", f"topology={_TOPOLOGY.get(backend, '1x8')}", *chosen]


def refusal(config: DictConfig) -> str | None:
    """Return why a composed config cannot be trained with, or None if neither the doctor nor verl objects.

    The doctor makes the checks that need nothing but the config, verl's own validation among them. Then verl converts
    the remaining nodes to its dataclasses. What is installed does not matter.
    """
    with redirect_stderr(io.StringIO()):  # verl reports that it accepts a config
        failures = doctor.failures(doctor.examine_config(config))
    if failures:
        return str(failures[0])
    try:
        omega_conf_to_dataclass(as_verl_reads_ref(config))
        for node in _NODES:
            omega_conf_to_dataclass(OmegaConf.select(config, node))
    except Exception as error:  # verl checks with whatever its arithmetic raises
        return f"verl: {type(error).__name__}: {error}"
    return None


def as_verl_reads_ref(config: DictConfig) -> DictConfig:
    """Return the node of the reference model as verl's worker renames its keys before it converts it."""
    ref = copy.deepcopy(config.actor_rollout_ref).ref
    with open_dict(ref):
        ref.ppo_mini_batch_size = config.actor_rollout_ref.actor.ppo_mini_batch_size
        ref.ppo_micro_batch_size = ref.pop("log_prob_micro_batch_size", None)
        ref.ppo_micro_batch_size_per_gpu = ref.pop("log_prob_micro_batch_size_per_gpu", None)
        ref.use_dynamic_bsz = ref.pop("log_prob_use_dynamic_bsz", False)
        ref.ppo_max_token_len_per_gpu = ref.pop("log_prob_max_token_len_per_gpu", None)
    return ref


def main() -> int:
    """Compose all, write the page, and return 1 if verl refused what the doctor let through."""
    algos, models = names("algo"), names("policy_model")
    reasons: list[str] = []
    sections, count = [], 0
    with composing() as compose:
        for backend in names("backend"):
            lines = [
                f"| `policy_model` | {' | '.join(f'`{algo}`' for algo in algos)} |",
                "| --- " * (len(algos) + 1) + "|",
            ]
            cells: dict[str, list[str]] = {model: [] for model in models}
            pairs = list(itertools.product(models, algos))
            for model, algo in track(pairs, description=backend, console=Console(file=sys.stderr)):
                reason = refusal(compose(*product_overrides(backend, algo, model)))
                if reason and reason not in reasons:
                    reasons.append(reason)
                cells[model].append(f"no ({reasons.index(reason) + 1})" if reason else "yes")
                count += 1
            lines += [f"| `{model}` | {' | '.join(cells[model])} |" for model in models]
            sections.append(f"### `backend={backend}`\n\n" + "\n".join(lines))
    listed = "\n".join(f"{number}. {reason}" for number, reason in enumerate(reasons, start=1))
    body = f"{count:,} combinations.\n\n" + "\n\n".join(sections) + f"\n\n### Reasons\n\n{listed}"
    replace_block(PAGE, BEGIN, END, body)
    print(f"{count} combinations, see {PAGE}")
    for reason in reasons:
        print(reason)
    return 1 if any(reason.startswith("verl: ") for reason in reasons) else 0


if __name__ == "__main__":
    raise SystemExit(main())
