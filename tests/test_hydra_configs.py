"""Every shipped experiment composes on both entry points, and no group of ours hides one of verl's."""

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import hydra
import pytest
from conftest import clean_environment
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.config import PolicyLossConfig

from cfpo_verl import composing
from cfpo_verl.config import LOSS_CONFIGS, CfpoLossConfig
from cfpo_verl.config_groups import names, platform_env

EXPERIMENTS = names("experiment")
POLICY_LOSSES = names("policy_loss")
VERL_CONFIG_DIR = Path(composing.verl_config_dir())
OUR_CONFIG_DIR = Path(__file__).parents[1] / "hydra_configs"


def compose(*overrides):
    with hydra.initialize_config_module("cfpo_verl.hydra_configs", version_base=None):
        return hydra.compose("train", overrides=list(overrides))


def compose_as_verl(*overrides):
    """Compose as verl's own entry point does: its config folder is the primary one."""
    with hydra.initialize_config_dir(str(VERL_CONFIG_DIR), version_base=None):
        return hydra.compose("ppo_trainer", overrides=list(overrides))


def without(config, *dotted_keys):
    """Return a config as plain resolved data, less some keys."""
    data = OmegaConf.to_container(config, resolve=True)
    for dotted in dotted_keys:
        *parents, key = dotted.split(".")
        node = data
        for parent in parents:
            node = node[parent]
        node.pop(key, None)
    return data


CHOSEN_WITH = [
    *(pytest.param(f"experiment={name}", id=name) for name in EXPERIMENTS),
    *(pytest.param(f"experiment=cpu_quickstart policy_loss={name}", id=name) for name in POLICY_LOSSES),
    pytest.param("experiment=math_8gpu backend=megatron algo=dapo updates=x8 policy_model=qwen3_8b", id="groups"),
    pytest.param("experiment=math_8gpu model_engine=megatron", id="verls-own-group"),
    pytest.param("experiment=gsm8k_1gpu updates_per_rollout=2 data.train_batch_size=64", id="keys"),
]


@pytest.mark.parametrize("overrides", CHOSEN_WITH)
def test_both_entry_points_compose_the_same_config(overrides):
    experiment, *others = overrides.split()
    ours = compose(experiment, *others)
    verls = compose_as_verl(f"+{experiment}", *others)
    folders = ("run_dir", "trainer.default_local_dir")
    assert without(ours, *folders) == without(verls, *folders)


@pytest.mark.parametrize("policy_loss", POLICY_LOSSES)
def test_a_loss_is_chosen_by_its_name(policy_loss):
    actor = compose("experiment=cpu_quickstart", f"policy_loss={policy_loss}").actor_rollout_ref.actor
    # clip_higher is verl's loss vanilla with DAPO's clip range.
    assert actor.policy_loss.loss_mode == {"clip_higher": "vanilla"}.get(policy_loss, policy_loss)


def test_overrides_need_no_plus():
    """Every key that an experiment adds to verl's is one of the config, so that a misspelt one is refused."""
    config = compose(
        "experiment=gsm8k_1gpu", "seed=1", "run_label=x", "model_size.offload=true", "updates_per_rollout=8"
    )
    assert (config.data.seed, config.actor_rollout_ref.actor.fsdp_config.param_offload) == (1, True)
    with pytest.raises(ConfigCompositionException, match="offlaod"):
        compose("experiment=gsm8k_1gpu", "model_size.offlaod=true")


def test_a_batch_that_cannot_be_divided_is_refused_with_the_way_out(run_cli):
    result = run_cli("train", "experiment=gsm8k_1gpu", "data.train_batch_size=255", "--cfg", "job", "--resolve")
    assert result.returncode == 2
    assert "255 cannot be divided into 4 equal parts" in result.stderr
    assert "updates" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_number_for_a_file_of_a_group_is_refused_with_the_way_out(run_cli):
    result = run_cli("train", "experiment=gsm8k_1gpu", "updates=4")
    assert result.returncode == 2
    assert "Config group override must be a string or a list. Got int. For example updates=x4" in result.stderr
    assert "Traceback" not in result.stderr


def test_the_options_of_vanilla_are_verls_defaults():
    ours = compose("experiment=cpu_quickstart", "policy_loss=vanilla").actor_rollout_ref.actor.policy_loss
    assert ours == compose_as_verl().actor_rollout_ref.actor.policy_loss


def test_verls_own_config_takes_the_loss_alone():
    config = compose_as_verl("+policy_loss=cfpo", "actor_rollout_ref.actor.policy_loss.epsilon=0.1")
    policy_loss = omega_conf_to_dataclass(config.actor_rollout_ref.actor.policy_loss)
    assert policy_loss == CfpoLossConfig(epsilon=0.1)
    loss = "actor_rollout_ref.actor.policy_loss"
    assert without(config, loss) == without(compose_as_verl(), loss)


def test_the_length_penalty_is_there_without_our_reward_too():
    config = compose_as_verl("+algo=dapo")
    assert "reward_range" not in config
    assert config.reward.reward_kwargs.overlong_buffer_cfg.penalty_factor == 0.5


@pytest.mark.parametrize("loss", LOSS_CONFIGS, ids=lambda loss: loss.NAME)
def test_the_files_of_our_losses_have_every_option_with_its_default(loss):
    chosen = compose("experiment=cpu_quickstart", f"policy_loss={loss.NAME}").actor_rollout_ref.actor.policy_loss
    assert omega_conf_to_dataclass(chosen) == loss()
    verls = {field.name for field in fields(PolicyLossConfig)} - {"loss_mode"}
    assert set(chosen) - verls - {"_target_"} == {field.name for field in fields(loss)} - verls


def test_composing_does_not_import_verl(run_python):
    code = (
        "import sys, hydra, cfpo_verl.train\n"
        "with hydra.initialize_config_module('cfpo_verl.hydra_configs', version_base=None):\n"
        "    hydra.compose('train', overrides=['experiment=cpu_quickstart'])\n"
        "print('verl' in sys.modules, 'torch' in sys.modules)"
    )
    result = run_python(code)
    assert result.stdout.split() == ["False", "False"], result.stderr


def test_our_groups_do_not_hide_verls():
    ours = {path.name for path in OUR_CONFIG_DIR.iterdir() if path.is_dir() and path.name != "__pycache__"}
    verls = {path.name for path in VERL_CONFIG_DIR.iterdir() if path.is_dir()}
    assert {"algo", "backend", "experiment", "policy_model", "topology", "updates"} < ours
    assert not ours & verls
    # Single files stand beside verl's too.
    assert not {path.name for path in OUR_CONFIG_DIR.glob("*.yaml")} & {path.name for path in VERL_CONFIG_DIR.iterdir()}


def test_search_path_names_verls_folder_and_ours(run_cli):
    result = run_cli("train", "experiment=cpu_quickstart", "--info", "searchpath")
    assert result.returncode == 0, result.stderr
    assert "pkg://cfpo_verl.hydra_configs" in result.stdout
    assert str(VERL_CONFIG_DIR) in result.stdout


def test_a_package_of_the_config_is_printed(run_cli):
    result = run_cli("train", "experiment=gsm8k_1gpu", "algo=grpo", "--cfg", "job", "--package", "algorithm")
    assert result.returncode == 0, result.stderr
    assert "adv_estimator: grpo" in result.stdout


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("cfpo-verl exp", {"experiments", "train"}),
        ("cfpo-verl train algo=d", {"algo=dapo", "algo=dr_grpo", "algo=drpo"}),
        ("cfpo-verl train back", {"backend="}),
        ("cfpo-verl train experiment=gsm8k_1gpu policy_model=qwen3_0", {"policy_model=qwen3_0.6b"}),
        (
            "cfpo-verl train experiment=gsm8k_1gpu actor_rollout_ref.actor.optim.l",
            {"actor_rollout_ref.actor.optim.lr="},
        ),
        ("cfpo-verl data ", set()),
    ],
)
def test_the_shell_completes(line, expected, run_cli):
    """The question is the one that the script of `cfpo-verl train -sc install=bash` asks."""
    result = run_cli("-sc", "query=bash", COMP_LINE=line, COMP_POINT=str(len(line)))
    assert result.returncode == 0, result.stderr
    assert expected <= set(result.stdout.split())
    assert bool(result.stdout.split()) == bool(expected)


def test_the_completion_is_installed_for_the_program(run_cli):
    result = run_cli("train", "-sc", "install=bash")
    assert result.stdout.rstrip().endswith("-F hydra_bash_completion cfpo-verl")


MULTIRUN = """
from cfpo_verl import train
train.train = lambda config, nodes: print("ran", config.run_dir, config.trainer.default_local_dir)
raise SystemExit(train.main({arguments}))
"""


def run_multirun(run_forked, *overrides):
    result = run_forked(MULTIRUN.format(arguments=["experiment=cpu_quickstart", *overrides, "--multirun"]))
    assert result.returncode == 0, result.stderr
    return [line.split()[1] for line in result.stdout.splitlines() if line.startswith("ran ")]


def test_each_run_of_a_multirun_has_a_folder_of_its_own(run_forked, tmp_path):
    assert run_multirun(run_forked, "algo=cfpo,grpo", "actor_rollout_ref.actor.optim.lr=1e-5,1e-4") == [
        f"runs/cpu_quickstart_{label}_seed0_algo={algo},actor_rollout_ref.actor.optim.lr={rate}"
        for label, algo in (("cfpo", "cfpo"), ("grpo_vanilla", "grpo"))
        for rate in ("1e-05", "0.0001")
    ]
    assert not [path for path in tmp_path.iterdir() if path.name != "runs"]


def test_a_folder_that_was_asked_for_is_kept_in_a_multirun(run_forked):
    assert run_multirun(run_forked, "seed=0,1", "run_dir=runs/mine_${seed}") == ["runs/mine_0", "runs/mine_1"]


def test_platform_group_and_command_give_the_same_environment(run_script):
    printed = run_script("env", "cpu").stdout.split()
    composed = compose("experiment=cpu_quickstart").ray_kwargs.ray_init.runtime_env.env_vars
    assert printed == [f"{name}={value}" for name, value in composed.items()]
    assert platform_env("cpu")["VERL_PLATFORM"] == "cpu"


def test_verls_own_entry_point_finds_our_groups(tmp_path):
    overrides = ["+experiment=cpu_quickstart", "policy_loss=cfpo", "--cfg", "job"]
    # Elsewhere: in the checkout, python -m would find hydra_plugins without any installation.
    result = subprocess.run(
        [sys.executable, "-m", "verl.trainer.main_ppo", *overrides],
        cwd=tmp_path,
        env=clean_environment(platform_env("cpu")),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    config = OmegaConf.create(result.stdout[result.stdout.index("actor_rollout_ref:") :])
    assert config.actor_rollout_ref.actor.policy_loss._target_ == "cfpo_verl.config.CfpoLossConfig"
    assert config.trainer.device == "cpu"


@pytest.mark.parametrize("file", sorted(OUR_CONFIG_DIR.rglob("*.yaml")), ids=lambda path: path.stem)
def test_yaml_follows_verls_format(file):
    """verl's rule: comments stand above a field, never behind it."""
    for number, line in enumerate(file.read_text().splitlines(), start=1):
        assert line.lstrip().startswith("#") or " #" not in line, f"{file.name}, line {number}: {line}"
