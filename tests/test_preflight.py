"""Bad input is refused before Ray starts, with the value, the rule and the way out; the exit status is 2."""

import hydra
import pyarrow.parquet as pq
import pytest
from cfpo_verl.data_prep.schema import Problem, to_row, write_rows
from conftest import clean_environment
from omegaconf import OmegaConf, open_dict

from cfpo_verl import preflight, train  # noqa: F401 - registers the resolver of the primary config
from cfpo_verl.config_groups import platform_env


@pytest.fixture
def config(tmp_path, arithmetic_files):
    """The quickstart's config with data that exists."""
    train_file, val_file = arithmetic_files
    with hydra.initialize_config_module("cfpo_verl.hydra_configs", version_base=None):
        overrides = [
            "experiment=cpu_quickstart",
            f"data.train_files={train_file}",
            f"data.val_files={val_file}",
            f"run_dir={tmp_path}/run",
        ]
        return hydra.compose("train", overrides=overrides)


def refused(run_cli, tmp_path, *overrides, **env):
    """Run the command in an empty folder and return its message, having seen that it left nothing behind."""
    before = sorted(tmp_path.rglob("*"))
    result = run_cli("train", "experiment=cpu_quickstart", *overrides, **env)
    assert result.returncode == 2, result.stdout + result.stderr
    assert result.stderr.endswith("Nothing was started.\n")
    assert "Traceback" not in result.stderr
    assert sorted(tmp_path.rglob("*")) == before
    return result.stderr


def test_all_quick_problems_are_reported_together(run_cli, tmp_path):
    message = refused(run_cli, tmp_path, "run_dir=/proc/nowhere")
    assert "data.train_files: data/arithmetic/train.parquet: no such file. Write one with: cfpo-verl data" in message
    assert "data.val_files: data/arithmetic/test.parquet: no such file" in message
    assert "actor_rollout_ref.model.path: ./models/quickstart_seed0 is not a model folder" in message
    assert "run_dir: /proc is not writable (No such file or directory). Choose another one with run_dir=PATH" in message


def test_misspelt_key(run_cli, tmp_path):
    message = refused(run_cli, tmp_path, "data.trian_files=x")
    assert "there is no key 'data.trian_files'. Did you mean: data.train_files" in message


def test_misspelt_loss_option(run_cli, tmp_path):
    message = refused(run_cli, tmp_path, "actor_rollout_ref.actor.policy_loss.epsilom=0.1")
    assert "Did you mean: actor_rollout_ref.actor.policy_loss.epsilon" in message


def test_unknown_group_members(run_cli, tmp_path):
    message = refused(run_cli, tmp_path, "policy_loss=ppo")
    assert "Could not find 'policy_loss/ppo'" in message
    assert "cfpo\n\tcfpo_sequence\n\tcispo\n\tdrpo" in message
    result = run_cli("train", "experiment=nope")
    assert result.returncode == 2
    assert "Could not find 'experiment/nope'" in result.stderr
    assert "cpu_quickstart" in result.stderr


def test_no_experiment(run_cli):
    result = run_cli("train")
    assert result.returncode == 2
    assert "You must specify 'experiment'" in result.stderr


def test_problems_that_need_verl_are_reported_together(run_cli, tmp_path, arithmetic_files):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    train_file, val_file = arithmetic_files
    overrides = [
        f"data.train_files={train_file}",
        f"data.val_files={val_file}",
        f"actor_rollout_ref.model.path={model}",
    ]
    overrides += ["actor_rollout_ref.actor.policy_loss.epsilon=abc"]
    message = refused(run_cli, tmp_path, *overrides, VERL_USE_EXTERNAL_PLUGINS="none")
    assert "policy_loss.epsilon must be a number, got 'abc' (str). Set it with" in message
    assert "policy_loss.loss_mode=cfpo is not in verl's registry in a fresh process" in message
    assert "VERL_USE_EXTERNAL_PLUGINS=none disables it: unset that variable" in message


def test_registry_accepts_what_verl_has():
    env = clean_environment(platform_env("cpu"))
    assert preflight.check_registries("cfpo", "grpo", env) == []
    problems = preflight.check_registries("cpfo", "gropo", env)
    estimator, loss = (problem.partition(". Choose one of: ") for problem in problems)
    assert loss[0] == "policy_loss.loss_mode=cpfo is not in verl's registry in a fresh process"
    assert {"cfpo", "vanilla"} <= set(loss[2].split(", "))
    assert estimator[0] == "algorithm.adv_estimator=gropo is not in verl's registry"
    assert {"grpo", "rloo"} <= set(estimator[2].split(", "))


def test_a_verl_that_cannot_be_imported_is_named(tmp_path):
    (tmp_path / "verl.py").write_text("raise ImportError('torn install')")
    [problem] = preflight.check_registries("cfpo", "grpo", clean_environment({"PYTHONPATH": str(tmp_path)}))
    assert problem == "verl cannot be imported in a fresh process: ImportError: torn install"


def test_an_unsupported_verl_names_the_range(tmp_path):
    # A fake at the edge of what this machine has: only the version that the metadata reports.
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.metadata as m\nreal = m.version\n"
        "m.version = lambda name: '0.10.0' if name == 'verl' else real(name)\n"
    )
    [problem] = preflight.check_registries("cfpo", "grpo", clean_environment({"PYTHONPATH": str(tmp_path)}))
    assert "UnsupportedVerlError: verl 0.10.0 is not supported: cfpo_verl needs verl <0.10,>=0.9.1" in problem


@pytest.mark.parametrize("missing", ["vllm", "transfer_queue"])
def test_missing_packages(config, monkeypatch, missing):
    assert preflight.check_packages(config) == []
    real = preflight.find_spec
    monkeypatch.setattr(preflight, "find_spec", lambda name: None if name == missing else real(name))
    [problem] = preflight.check_packages(config)
    assert "pip install" in problem


@pytest.mark.parametrize(
    ("epsilon", "message"),
    [
        ("0", "must be greater than 0 and less than 1, got 0"),
        ("-0.1", "must be greater than 0 and less than 1, got -0.1"),
        ("nan", "must be greater than 0 and less than 1, got nan"),
        ("abc", "must be a number, got 'abc' (str)"),
        (None, "must be a number, got None"),
    ],
)
def test_epsilon(config, epsilon, message):
    # The value as Hydra reads it from the command line.
    config.actor_rollout_ref.actor.policy_loss.epsilon = (
        None if epsilon is None else OmegaConf.create(f"v: {'.nan' if epsilon == 'nan' else epsilon}").v
    )
    [problem] = preflight.check_verl_config(config)
    assert f"policy_loss.epsilon {message}" in problem
    assert "Set it with actor_rollout_ref.actor.policy_loss.epsilon=" in problem


def test_an_import_that_fails_only_here_is_not_lost(config, monkeypatch):
    def fail(_config):
        raise ImportError("torn module")

    for name in ("check_packages", "check_data", "check_model", "check_run_dir", "check_registries"):
        monkeypatch.setattr(preflight, name, lambda *_args: [])
    monkeypatch.setattr(preflight, "check_verl_config", fail)
    with pytest.raises(preflight.PreflightError, match="torn module"):
        preflight.check(config)


def test_verls_own_rules_are_reported(config):
    config.actor_rollout_ref.actor.ppo_mini_batch_size = 64
    [problem] = preflight.check_verl_config(config)
    assert "train_batch_size (32) must be >= " in problem


def test_a_correct_config_has_no_problems(config):
    assert preflight.check_verl_config(config) == []
    assert preflight.check_data(config) == []
    assert preflight.warnings(config) == []


def test_every_data_file_of_a_list_is_checked(config, arithmetic_files):
    no_prompt = arithmetic_files[0].with_name("no_prompt.parquet")
    pq.write_table(pq.read_table(arithmetic_files[0]).drop_columns(["prompt"]), no_prompt)
    config.data.train_files = [str(arithmetic_files[0]), str(no_prompt), "hdfs://cluster/elsewhere.parquet"]
    [problem] = preflight.check_data(config)
    assert problem.startswith(f"data.train_files: {no_prompt}: column 'prompt' is missing")


def test_run_dir_rules(tmp_path):
    assert preflight.check_run_dir(f"{tmp_path}/new/folder") == []
    (tmp_path / "file").touch()
    [problem] = preflight.check_run_dir(f"{tmp_path}/file/run")
    assert problem == f"run_dir: {tmp_path}/file is a file, not a folder. Choose another one with run_dir=PATH"


def test_a_run_dir_that_may_not_be_looked_at(monkeypatch):
    # A fake at the edge: root, who may run the tests, may look everywhere.
    def deny(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.stat", deny)
    monkeypatch.setattr("os.lstat", deny)
    monkeypatch.setattr(preflight, "TemporaryFile", deny)
    assert preflight.check_run_dir("/secret/run") == [
        "run_dir: / is not writable (Permission denied). Choose another one with run_dir=PATH"
    ]


def test_a_data_file_that_may_not_be_read(config, monkeypatch):
    def deny(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pyarrow.parquet.ParquetFile", deny)
    assert "cannot be read" in preflight.check_data(config)[0]


def test_nothing_set_is_a_problem_too(config):
    config.data.val_files = None
    assert preflight.check_data(config) == ["data.val_files is not set. Give the path of a parquet file"]
    assert preflight.check_run_dir(None) == ["run_dir is not set. Choose a folder with run_dir=PATH"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("actor_rollout_ref.actor.ppo_mini_batch_size", 0),
        ("actor_rollout_ref.actor.ppo_mini_batch_size", None),
        ("trainer.n_gpus_per_node", 0),
        ("data.train_batch_size", "abc"),
    ],
)
def test_sizes_without_meaning(config, key, value):
    OmegaConf.update(config, key, value)
    assert len(preflight.check_verl_config(config)) == 1


@pytest.mark.parametrize(("group", "loss_mode"), [("cfpo", "vanilla"), ("vanilla", "cfpo")])
def test_the_name_of_a_loss_goes_with_its_options(config, group, loss_mode):
    target = {"cfpo": "cfpo_verl.config.CfpoLossConfig", "vanilla": "verl.workers.config.PolicyLossConfig"}[group]
    config.actor_rollout_ref.actor.policy_loss = {"_target_": target, "loss_mode": loss_mode}
    [problem] = preflight.check_verl_config(config)
    assert problem.startswith(f"policy_loss.loss_mode={loss_mode} does not go with the options of ")
    assert "Choose with policy_loss=cfpo" in problem


def test_an_aggregation_that_depends_on_the_cut_is_refused(config):
    config.actor_rollout_ref.actor.loss_agg_mode = "seq-mean-token-sum-norm"
    assert preflight.check_verl_config(config) == []
    config.actor_rollout_ref.actor.loss_scale_factor = None
    [problem] = preflight.check_verl_config(config)
    assert problem.startswith("actor.loss_agg_mode=seq-mean-token-sum-norm needs actor.loss_scale_factor")
    assert "Set actor_rollout_ref.actor.loss_scale_factor, for example to '${data.max_response_length}'" in problem


def test_a_correction_that_verl_would_leave_out_is_refused(config):
    correction = config.algorithm.rollout_correction
    correction.rollout_is, correction.rollout_is_threshold = "token", 2.0
    assert preflight.check_verl_config(config) == []
    correction.bypass_mode = True
    [problem] = preflight.check_verl_config(config)
    assert "with bypass_mode=true only verl's own loss bypass_mode applies rollout_is=token" in problem
    correction.rollout_is = None
    assert preflight.check_verl_config(config) == []


def test_warns_of_the_bypass_mode(config):
    config.algorithm.rollout_correction.bypass_mode = True
    [warning] = preflight.warnings(config)
    assert warning.startswith("bypass_mode: the loss cfpo runs, with the ratio to the rollout engine's probabilities")
    config.actor_rollout_ref.actor.ppo_mini_batch_size = 32
    assert preflight.warnings(config) == [warning]


def test_warns_of_responses_that_weigh_differently(config):
    actor = config.actor_rollout_ref.actor
    actor.policy_loss.loss_mode, actor.loss_agg_mode = "cfpo_sequence", "seq-mean-token-mean"
    assert preflight.warnings(config) == []
    actor.loss_agg_mode = "token-mean"
    [warning] = preflight.warnings(config)
    assert warning.startswith("cfpo_sequence with loss_agg_mode=token-mean: only seq-mean-token-mean")


def test_gold_answers_that_no_response_can_match(config, arithmetic_files):
    problems = [Problem("1+1=", "2"), Problem("What?", "twelve")]
    rows = [to_row(problem, "arithmetic", "math", "train", index) for index, problem in enumerate(problems)]
    config.data.train_files = str(write_rows(arithmetic_files[0].with_name("words.parquet"), rows))
    [problem] = preflight.check_data(config)
    assert "words.parquet, row 1: ground_truth 'twelve' must be a plain number" in problem
    assert "(1 of 2 rows)" in problem
    config.reward.custom_reward_function.path = "pkg://my.rewards"
    assert preflight.check_data(config) == []


def test_model_rules(config, tmp_path):
    config.actor_rollout_ref.model.path = "Qwen/Qwen2.5-0.5B"
    assert preflight.check_model(config) == []
    config.actor_rollout_ref.model.path = str(tmp_path)
    assert f"{tmp_path} is not a model folder" in preflight.check_model(config)[0]


def test_warns_of_a_clip_ratio_without_effect(config):
    config.actor_rollout_ref.actor.clip_ratio_high = 0.28
    [warning] = preflight.warnings(config)
    assert warning.startswith("clip_ratio_high has no effect on the loss cfpo")
    config.actor_rollout_ref.actor.policy_loss.loss_mode = "vanilla"
    assert preflight.warnings(config) == []


def test_warns_of_one_step_per_rollout(config):
    config.actor_rollout_ref.actor.ppo_mini_batch_size = 32
    [warning] = preflight.warnings(config)
    assert "one optimiser step per rollout" in warning


def test_workers_get_the_configured_environment(config, monkeypatch):
    monkeypatch.setenv("VERL_PLATFORM", "nvidia")
    assert preflight.worker_env(config)["VERL_PLATFORM"] == "cpu"
    with open_dict(config):
        config.pop("ray_kwargs")
    assert preflight.worker_env(config)["VERL_PLATFORM"] == "nvidia"


def test_the_reward_is_tried_through_verls_loader(config):
    assert preflight.check_reward(config) == []


def test_a_reward_that_cannot_decide_is_refused(config):
    config.reward.custom_reward_function.reward_kwargs.deadline_s = 1e-6
    [problem] = preflight.check_reward(config)
    assert problem.startswith("reward.custom_reward_function: reward canary: the response")
    assert "ended for its time or memory" in problem


def test_reward_kwargs_are_checked(config):
    kwargs = config.reward.custom_reward_function.reward_kwargs
    kwargs.memory_gb = 0
    [problem] = preflight.check_reward(config)
    assert problem == ("reward.custom_reward_function: reward_kwargs.memory_gb must be a number greater than 0, got 0")
    with open_dict(kwargs):
        kwargs.diagnostic = True
    [problem] = preflight.check_reward(config)
    assert "reward_kwargs.diagnostic is not known. Choose among: diagnostics, workers, deadline_s, memory_gb" in problem


def test_a_reward_function_that_is_not_there_is_named(config):
    config.reward.custom_reward_function.name = "compute"
    [problem] = preflight.check_reward(config)
    assert "compute" in problem


def test_the_reward_of_somebody_else_is_left_alone(config):
    config.reward.custom_reward_function.path = "pkg://my.rewards"
    assert preflight.check_reward(config) == []


def test_tasks_that_no_answer_can_be_compared_in_are_refused(config, arithmetic_files):
    rows = [to_row(Problem("Write a program.", "{}"), "codecontests", "code", "train", 0)]
    config.data.train_files = str(write_rows(arithmetic_files[0].with_name("code.parquet"), rows))
    [problem] = preflight.check_data(config)
    assert "belongs to a task that no comparison of final answers can score" in problem
