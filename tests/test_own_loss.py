"""examples/own_loss, installed as a user would: verl, Hydra and the checks find it, and verl's path computes it."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from conftest import PROJECT, clean_environment
from forks import Forks

from cfpo_verl.config_groups import platform_env
from cfpo_verl.doctor import environment

EXAMPLE = PROJECT / "examples" / "own_loss"
CHOSEN = ("policy_loss=log_hinge", "algorithm.adv_estimator=group_sign")


def install(source: Path, site: Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target"]
    result = subprocess.run([*command, site, source], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A folder with the package and its entry points, to be put on the path."""
    folder = tmp_path_factory.mktemp("own_loss")
    # A build leaves folders in its source.
    shutil.copytree(EXAMPLE, folder / "source", ignore=shutil.ignore_patterns("__pycache__", "build", "*.egg-info"))
    install(folder / "source", folder / "site")
    return folder / "site"


@pytest.fixture(scope="module")
def installed(site) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """Run `cfpo-verl` (a list) or code (a text) where the package is installed, in an empty folder."""
    # First on the path, so that verl loads it before the plugin that it is built on.
    path = f"{site}:{PROJECT}:{PROJECT / 'tests'}"
    forks = Forks(clean_environment({"PYTHONPATH": path}))

    def run(what: list[str] | str, **env: str) -> subprocess.CompletedProcess[str]:
        folder = site.parent / "empty"
        folder.mkdir(exist_ok=True)
        return forks.run(what, clean_environment({"PYTHONPATH": path, **env}), folder)

    yield run
    forks.close()


def train(*arguments: str) -> list[str]:
    return ["train", "experiment=cpu_quickstart", *arguments]


ESTIMATE = """
import numpy as np, torch, verl
from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY, get_adv_estimator_fn
print([name in POLICY_LOSS_REGISTRY for name in ("log_hinge", "cfpo")])
rewards = torch.tensor([[0.0, 1.0], [0.0, 0.0], [0.0, 0.5], [0.5, 0.0]])
mask = torch.tensor([[1, 1], [1, 1], [1, 1], [1, 0]])
index = np.array(["a", "a", "b", "b"], dtype=object)
print(get_adv_estimator_fn("group_sign")(token_level_rewards=rewards, response_mask=mask, index=index)[0].tolist())
"""


def test_verl_registers_loss_and_estimator_and_what_they_are_built_on(installed):
    result = installed(ESTIMATE, **platform_env("cpu"), VERL_USE_EXTERNAL_PLUGINS="log_hinge")
    losses, advantages = result.stdout.splitlines() or [result.stderr, ""]
    assert losses == "[True, True]"
    assert advantages == "[[1.0, 1.0], [-1.0, -1.0], [0.0, 0.0], [0.0, 0.0]]"


@pytest.mark.parametrize("words", [CHOSEN, ("algo=log_hinge",)], ids=["loss-and-estimator", "algo"])
def test_both_entry_points_choose_it_by_one_word(installed, words):
    arguments = ["main_ppo", f"+{words[0]}", *words[1:], "--cfg", "job"]
    verl = f"import runpy, sys; sys.argv = {arguments}; runpy.run_module('verl.trainer.main_ppo', run_name='__main__')"
    for command in (train(*words, "--cfg", "job"), verl):
        result = installed(command)
        assert result.returncode == 0, result.stderr
        config = yaml.safe_load(result.stdout)
        assert config["algorithm"]["adv_estimator"] == "group_sign"
        policy_loss = config["actor_rollout_ref"]["actor"]["policy_loss"]
        assert {key: policy_loss[key] for key in ("_target_", "loss_mode", "margin", "weight")} == {
            "_target_": "log_hinge.plugin.LogHingeLossConfig",
            "loss_mode": "log_hinge",
            "margin": 0.2,
            "weight": 5.0,
        }


def test_help_lists_it(installed):
    [line] = [line for line in installed(train("--help")).stdout.splitlines() if line.startswith("  policy_loss=")]
    assert "cispo, clip_higher, drpo, gspo, log_hinge, sapo, vanilla" in line


def test_a_misspelt_option_is_refused_by_name_with_those_that_there_are(installed):
    key = "actor_rollout_ref.actor.policy_loss"
    result = installed(train(*CHOSEN, f"{key}.margn=1", "--cfg", "job"))
    assert result.returncode == 2
    assert f"there is no key '{key}.margn'. Did you mean: {key}.margin" in result.stderr


def test_the_checks_accept_it(installed):
    findings = json.loads(installed(["doctor", "experiment=cpu_quickstart", "--json", *CHOSEN]).stdout)
    assert len(findings) > 30
    # Data and model are not made here.
    assert {finding["check"] for finding in findings if finding["status"] == "failed"} == {"data", "model"}


CHECKED = """
import json
import verl
from verl_batches import compose
from cfpo_verl.doctor.algorithm import check_verl_config
key = "actor_rollout_ref.actor.policy_loss"
chosen = [["policy_loss=log_hinge", f"{key}.weight=0"], ["policy_loss=vanilla", f"{key}.loss_mode=log_hinge"]]
print("found=" + json.dumps([[str(finding) for finding in check_verl_config(compose(*words))] for words in chosen]))
"""


def test_the_checks_refuse_what_its_options_refuse_and_its_name_without_them(installed):
    result = installed(CHECKED, **platform_env("cpu"))
    [line] = [line for line in result.stdout.splitlines() if line.startswith("found=")] or [result.stderr[-3000:]]
    [[no_weight], [name_alone]] = json.loads(line.removeprefix("found="))
    assert "policy_loss needs margin >= 0 and weight > 0, got 0.2 and 0" in no_weight
    assert name_alone == (
        "policy_loss.loss_mode=log_hinge does not go with the options of PolicyLossConfig. Choose with "
        "policy_loss=log_hinge, which sets both"
    )


def test_the_checks_say_why_a_plugin_is_not_loaded(site, tmp_path):
    """verl hides it."""
    shutil.copytree(site, tmp_path / "site")
    module = tmp_path / "site" / "log_hinge" / "plugin.py"
    module.write_text("import not_there\n" + module.read_text())

    def problems(**env: str) -> list[str]:
        env = clean_environment({**platform_env("cpu"), "PYTHONPATH": f"{tmp_path / 'site'}:{PROJECT}", **env})
        found = environment.check_registries("log_hing", "group_sing", env)
        return [str(finding) for finding in found]

    estimator, loss = problems()
    assert loss.startswith(
        "policy_loss.loss_mode=log_hing is not in verl's registry in a fresh process, and a plugin is not loaded: "
        "log_hinge (ModuleNotFoundError: No module named 'not_there'). Reinstall that plugin in this environment, or "
        "choose one of: "
    )
    assert "algorithm.adv_estimator=group_sing is not in verl's registry, and a plugin is not loaded" in estimator
    [_estimator, loss] = problems(VERL_USE_EXTERNAL_PLUGINS="cfpo")
    assert "not loaded: log_hinge (verl did not load it). VERL_USE_EXTERNAL_PLUGINS=cfpo disables it" in loss


THROUGH_VERL = """
import json
import verl
import torch
from functools import partial
from test_verl_engines import model_log_probs, plainly, through_verl
import test_verl_engines, verl_batches
from verl.utils.config import omega_conf_to_dataclass
from verl.utils import tensordict_utils as tu
from verl.workers.utils.losses import ppo_loss

config = verl_batches.compose("algo=log_hinge")
actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
found = {}
def remember(function, log_probs, data):
    loss, metrics = function(model_output={"log_probs": log_probs}, data=data)
    found.update({name: metric.aggregate() for name, metric in metrics.items()})
    return loss
test_verl_engines.loss_function = lambda _loss, _aggregation: partial(ppo_loss, actor)
whole = through_verl("log_hinge", "token-mean", 1, remember)
parts = through_verl("log_hinge", "token-mean", 4, plainly)

# The formula, plainly, under autograd. A response token's log-probability stands one place before it.
leaves, batch = model_log_probs(), verl_batches.make_batch()
losses, excesses = [], []
for leaf, prompt, length, old, advantages in zip(
    leaves, verl_batches.PROMPT_LENGTHS, verl_batches.RESPONSE_LENGTHS, batch["old_log_probs"], batch["advantages"]
):
    log_ratio = leaf[prompt - 1 : prompt - 1 + length] - old
    excess = torch.relu(log_ratio.abs() - 0.2)
    losses.append(5 * excess**2 - advantages * log_ratio)
    excesses.append(excess.detach())
loss, excess = torch.cat(losses).mean(), torch.cat(excesses)
loss.backward()
expected = torch.cat([leaf.grad for leaf in leaves])
assert 0 < (excess > 0).float().mean() < 1
print("found=" + json.dumps({
    "loss": [whole[0], parts[0], loss.item()],
    "gradient": [((gradient - expected).norm() / expected.norm()).item() for gradient in (whole[1], parts[1])],
    "metrics": {name: float(value) for name, value in found.items()},
    "expected": [(excess > 0).float().mean().item(), excess.mean().item()],
}))
"""


def test_loss_gradient_and_metrics_through_verls_path(installed):
    result = installed(THROUGH_VERL, **platform_env("cpu"))
    [line] = [line for line in result.stdout.splitlines() if line.startswith("found=")] or [result.stderr[-3000:]]
    found = json.loads(line.removeprefix("found="))
    whole, parts, expected = found["loss"]
    assert whole == pytest.approx(expected, rel=1e-5)
    assert parts == pytest.approx(expected, rel=1e-5)
    assert max(found["gradient"]) < 1e-5
    # verl's own beside them; none of those of the clipping-free losses.
    outside, excess = found["expected"]
    assert found["metrics"] == {
        "log_hinge/outside_frac": pytest.approx(outside),
        "log_hinge/excess": pytest.approx(excess),
        "actor/pg_loss": pytest.approx(expected, rel=1e-5),
    }
