"""Experiments: listed as Hydra chooses them, and every one and every pair of choices is what verl can run."""

import itertools
import json

import pytest
from conftest import PROJECT
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from model_shapes import config_of, write_folder
from omegaconf import OmegaConf
from typer.testing import CliRunner
from verl.trainer.ppo.core_algos import get_adv_estimator_fn, get_policy_loss_fn
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.tracking import Tracking
from verl.workers.config import HFModelConfig

from benchmarks import algorithms as algorithm_runs
from benchmarks.combinations import composing, product_overrides, refusal
from cfpo_verl.config import ClippingFreeLossConfig
from cfpo_verl.config_groups import names
from cfpo_verl.data_prep.sources import SOURCES
from cfpo_verl.demands import gpus_needed
from cfpo_verl.doctor import environment
from cfpo_verl.experiments import find

CONFIGS = PROJECT / "hydra_configs"
EXPERIMENTS = names("experiment")
ALGOS, BACKENDS, MODELS = names("algo"), names("backend"), names("policy_model")
MIXTURES_OF_EXPERTS = [model for model in MODELS if "a3b" in model]


@pytest.fixture(scope="module")
def compose():
    """Compose as cfpo-verl train does, quickly."""
    with composing() as compose:
        yield compose


@pytest.fixture(scope="module")
def experiments(compose):
    return {name: compose(f"experiment={name}") for name in EXPERIMENTS}


@pytest.fixture(scope="module")
def algorithms(compose):
    return {algo: compose("experiment=gsm8k_1gpu", f"algo={algo}") for algo in ALGOS}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_pass_our_rules_and_verls(name, experiments):
    assert refusal(experiments[name]) is None


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_keep_two_steps_per_rollout_for_clipping_free_losses(name, experiments):
    config = experiments[name]
    actor = config.actor_rollout_ref.actor
    steps = config.data.train_batch_size // actor.ppo_mini_batch_size * actor.ppo_epochs
    assert steps >= 2
    assert isinstance(omega_conf_to_dataclass(actor.policy_loss), ClippingFreeLossConfig)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_micro_batches_and_caches_hold_the_longest_text(name, experiments):
    config = experiments[name]
    longest = config.data.max_prompt_length + config.data.max_response_length
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    assert rollout.max_model_len >= longest
    if actor.use_dynamic_bsz:
        assert actor.ppo_max_token_len_per_gpu >= longest
        assert rollout.log_prob_max_token_len_per_gpu >= actor.ppo_max_token_len_per_gpu


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_mini_batches_divide_over_the_ranks(name, experiments):
    """Each optimiser step's responses go to the data-parallel ranks in equal parts."""
    config = experiments[name]
    actor, ranks = config.actor_rollout_ref.actor, config.trainer.nnodes * config.trainer.n_gpus_per_node
    if config.model_engine == "megatron":
        megatron = actor.megatron
        ranks //= megatron.tensor_model_parallel_size * megatron.pipeline_model_parallel_size
        ranks //= megatron.context_parallel_size
    assert actor.ppo_mini_batch_size * config.actor_rollout_ref.rollout.n % ranks == 0


# Every pair of algo, backend and policy_model is in one of these: all pairs of algo and policy_model, the backends
# going round so that each meets each of the other two.
TRIPLES = [
    (BACKENDS[(i + j) % len(BACKENDS)], algo, model)
    for (i, algo), (j, model) in itertools.product(enumerate(ALGOS), enumerate(MODELS))
]


def test_the_triples_cover_all_pairs():
    pairs = {pair for triple in TRIPLES for pair in itertools.combinations(triple, 2)}
    for one, other in itertools.combinations((BACKENDS, ALGOS, MODELS), 2):
        assert set(itertools.product(one, other)) <= pairs


@pytest.mark.parametrize("algo", ALGOS)
def test_all_pairs_compose_and_are_accepted_or_refused_by_name(algo, compose):
    for backend, _algo, model in (triple for triple in TRIPLES if triple[1] == algo):
        reason = refusal(compose(*product_overrides(backend, algo, model)))
        if backend == "cpu" and model in MIXTURES_OF_EXPERTS:
            assert reason is not None
            assert reason.startswith("backend=cpu with Qwen/Qwen3-30B-A3B")
        else:
            assert reason is None, (backend, algo, model)


@pytest.mark.parametrize("group", ["topology", "updates", "data_mix", "eval_sets", "tracking"])
def test_every_choice_of_the_other_groups_composes(group, compose):
    for name in names(group):
        assert refusal(compose("experiment=gsm8k_1gpu", f"{group}={name}")) is None, name


@pytest.mark.parametrize("algo", ALGOS)
def test_algorithms_name_losses_and_estimators_that_verl_has(algo, algorithms):
    config = algorithms[algo]
    get_policy_loss_fn(config.actor_rollout_ref.actor.policy_loss.loss_mode)
    get_adv_estimator_fn(config.algorithm.adv_estimator)


# (loss, estimator, aggregation, reference KL in loss or reward, dynamic sampling), from the papers named in the files.
EXPECTED_ALGOS = {
    "cfpo": ("cfpo", "cfpo_grpo", "seq-mean-token-mean", False, False),
    "cfpo_token_mean": ("cfpo", "cfpo_grpo", "token-mean", False, False),
    "cfpo_sequence": ("cfpo_sequence", "cfpo_grpo", "seq-mean-token-mean", False, False),
    "drpo": ("drpo", "cfpo_dr_grpo", "seq-mean-token-sum-norm", False, False),
    "grpo": ("vanilla", "grpo", "seq-mean-token-mean", True, False),
    "dr_grpo": ("vanilla", "grpo", "seq-mean-token-sum-norm", False, False),
    "dapo": ("vanilla", "grpo", "token-mean", False, True),
    "gspo": ("gspo", "grpo", "seq-mean-token-mean", False, False),
    "sapo": ("sapo", "grpo", "seq-mean-token-mean", False, False),
    "cispo": ("cispo", "grpo", "token-mean", False, True),
    "rloo": ("vanilla", "rloo", "seq-mean-token-sum", True, False),
    "reinforce_pp": ("vanilla", "reinforce_plus_plus", "token-mean", True, False),
}


@pytest.mark.parametrize("algo", ALGOS)
def test_one_word_changes_the_whole_algorithm(algo, algorithms):
    config = algorithms[algo]
    actor, algorithm = config.actor_rollout_ref.actor, config.algorithm
    kl = actor.use_kl_loss or algorithm.use_kl_in_reward
    found = (
        actor.policy_loss.loss_mode,
        algorithm.adv_estimator,
        actor.loss_agg_mode,
        kl,
        algorithm.filter_groups.enable,
    )
    assert found == EXPECTED_ALGOS[algo]


def test_the_papers_numbers_are_in_place(algorithms):
    actors = {algo: config.actor_rollout_ref.actor for algo, config in algorithms.items()}
    assert (actors["dapo"].clip_ratio_low, actors["dapo"].clip_ratio_high) == (0.2, 0.28)
    assert (actors["gspo"].clip_ratio_low, actors["gspo"].clip_ratio_high) == (3e-4, 4e-4)
    assert (actors["sapo"].tau_pos, actors["sapo"].tau_neg) == (1.0, 1.05)
    assert (actors["grpo"].kl_loss_coef, actors["grpo"].kl_loss_type) == (0.04, "low_var_kl")
    assert not algorithms["dr_grpo"].algorithm.norm_adv_by_std_in_grpo
    assert algorithms["drpo"].algorithm.rollout_correction.bypass_mode
    # A fifth of 1,024 tokens is for the penalty, as 4,096 of 20,480 in the paper.
    overlong = algorithms["dapo"].reward.reward_kwargs
    assert (overlong.max_resp_len, overlong.overlong_buffer_cfg.len) == (1024, 204)
    assert algorithms["dapo"].algorithm.filter_groups.metric == "acc"


def test_a_loss_can_be_exchanged_in_any_algorithm_and_brings_its_settings(compose):
    config = compose("experiment=gsm8k_1gpu", "algo=dapo", "policy_loss=cfpo")
    assert config.algorithm.filter_groups.enable
    assert config.actor_rollout_ref.actor.policy_loss.epsilon == 0.2
    assert config.trainer.experiment_name == "gsm8k_1gpu_Qwen2.5-0.5B-Instruct_dapo_cfpo_seed0"
    gspo = compose("experiment=gsm8k_1gpu", "policy_loss=gspo").actor_rollout_ref.actor
    assert (gspo.clip_ratio_high, gspo.loss_agg_mode) == (4e-4, "seq-mean-token-mean")


def test_algorithms_have_run_folders_of_their_own(algorithms):
    folders = {algo: config.run_dir for algo, config in algorithms.items()}
    del folders["cfpo_token_mean"]  # an option of cfpo, as epsilon is
    assert len(set(folders.values())) == len(folders)


@pytest.mark.parametrize(("updates", "expected"), [("x1", 1), ("x2", 2), ("x4", 4), ("x8", 8), ("x16", 16)])
def test_updates_per_rollout_hold_for_every_batch_size(updates, expected, compose):
    for batch in (256, 512):
        config = compose("experiment=gsm8k_1gpu", f"updates={updates}", f"data.train_batch_size={batch}")
        assert config.actor_rollout_ref.actor.ppo_mini_batch_size == batch // expected


def test_epochs_are_a_choice_apart(compose):
    actor = compose("experiment=gsm8k_1gpu", "updates=epochs_4").actor_rollout_ref.actor
    assert (actor.ppo_mini_batch_size, actor.ppo_epochs) == (256, 4)


@pytest.mark.parametrize(
    ("backend", "engine", "strategy"),
    [
        ("cpu", "dp", "fsdp2"),
        ("fsdp", "dp", "fsdp"),
        ("fsdp2", "dp", "fsdp2"),
        ("megatron", "megatron", "megatron"),
    ],
)
def test_backends_set_engine_and_strategy(backend, engine, strategy, compose):
    config = compose("experiment=gsm8k_1gpu", f"backend={backend}")
    assert config.model_engine == engine
    assert {config.actor_rollout_ref[role].strategy for role in ("actor", "ref")} == {strategy}


@pytest.mark.parametrize("model", MODELS)
def test_models_convert_and_their_parallelism_divides_their_heads(model, compose, experiments, tmp_path):
    config = compose("experiment=math_8gpu", f"policy_model={model}")
    if model == "tiny":
        shape = config_of("HuggingFaceTB/SmolLM2-135M")
        shape.num_attention_heads = shape.num_key_value_heads = 4
    else:
        shape = config_of(config.actor_rollout_ref.model.path)
    config.actor_rollout_ref.model.path = str(write_folder(tmp_path / "model", shape))
    converted = omega_conf_to_dataclass(config.actor_rollout_ref.model)
    assert isinstance(converted, HFModelConfig)
    assert converted.hf_config.num_hidden_layers == shape.num_hidden_layers
    longest = config.data.max_prompt_length + config.data.max_response_length
    assert longest <= shape.max_position_embeddings
    actor = config.actor_rollout_ref.actor
    assert not actor.use_dynamic_bsz or longest <= actor.ppo_max_token_len_per_gpu

    size = config.model_size
    assert shape.num_attention_heads % size.rollout_tensor_parallel == 0
    # vLLM and Megatron repeat key-value heads where there are fewer than parts, so these must divide either way.
    for parts in (size.rollout_tensor_parallel, size.megatron.tensor_parallel):
        assert shape.num_attention_heads % parts == 0
        assert max(parts, shape.num_key_value_heads) % min(parts, shape.num_key_value_heads) == 0
    assert shape.num_hidden_layers % size.megatron.pipeline_parallel == 0
    assert getattr(shape, "num_experts", 1) % size.megatron.expert_parallel == 0
    assert (size.megatron.expert_parallel > 1) == hasattr(shape, "num_experts")


def in_file(group, name):
    """Return what a file of a group sets, without composing: other files are not to matter."""
    return OmegaConf.load(CONFIGS / group / f"{name}.yaml")


@pytest.mark.parametrize(("group", "key"), [("data_mix", "train_files"), ("eval_sets", "val_files")])
def test_data_files_are_those_that_data_prepare_writes(group, key):
    generated = {"arithmetic": ("train", "test"), "few_shot_sums": ("train", "test")}
    written = generated | {name: source.splits for name, source in SOURCES.items()}
    for name in names(group):
        text = (CONFIGS / group / f"{name}.yaml").read_text()
        for file in in_file(group, name).data[key]:
            top, folder, split = file.split("/")
            assert (top, split.removesuffix(".parquet") in written[folder]) == ("data", True), file
            # The comment says how to write it.
            assert "cfpo-verl data prepare" in text
            assert folder in text.partition("data:")[0].replace("few-shot-sums", "few_shot_sums")


def test_evaluation_sets_are_never_trained_on():
    for name in names("data_mix"):
        for file in in_file("data_mix", name).data.train_files:
            source = SOURCES.get(file.split("/")[1])
            assert source is None or not source.evaluation_only


def test_tracking_always_writes_the_file_that_reports_read():
    for name in names("tracking"):
        assert {"file", name} <= set(in_file("tracking", name).trainer.logger)
        assert set(in_file("tracking", name).trainer.logger) <= set(Tracking.supported_backend)


def test_no_file_names_a_place():
    """No host, user, home or absolute path of anybody's cluster."""
    for file in CONFIGS.rglob("*.yaml"):
        for line in file.read_text().splitlines():
            if line == "scratch_dir: /tmp":  # of every machine
                continue
            assert not any(word in line for word in ("/home", "/scratch", "/mnt", "/tmp", "~/", "@host")), (file, line)


@pytest.mark.parametrize("experiment", find(), ids=lambda experiment: experiment.name)
def test_the_list_says_what_hydra_chooses(experiment, compose):
    loader = GlobalHydra.instance().config_loader()
    config = loader.load_configuration("train", [f"experiment={experiment.name}"], RunMode.RUN)
    assert experiment.choices.items() <= config.hydra.runtime.choices.items()
    assert experiment.gpus == (0 if experiment.choices["backend"] == "cpu" else gpus_needed(config))
    # Not resolved, since the model's path of tiny refers to the seed.
    assert experiment.model == OmegaConf.to_container(config.actor_rollout_ref.model)["path"]
    text = (CONFIGS / "experiment" / f"{experiment.name}.yaml").read_text()
    assert ("Not run on a GPU" in text) == (experiment.gpus > 0)


def test_a_search_finds_seven_billion_on_eight_gpus_with_megatron():
    assert [experiment.name for experiment in find(["7b", "8gpu", "megatron"])] == ["math_8gpu_megatron"]
    assert {experiment.gpus for experiment in find(["MATH", "16gpu"])} == {16}
    assert find(["7b", "9gpu"]) == []


def test_experiments_command(run_cli, run_script):
    table = run_script("experiments", "7b", "megatron")
    assert table.returncode == 0
    assert "math_8gpu_megatron" in table.stdout
    assert "gsm8k_1gpu" not in table.stdout
    assert "cfpo-verl train experiment=NAME" in table.stderr
    [row] = json.loads(run_cli("experiments", "gsm8k_1gpu", "--json").stdout)
    assert (row["gpus"], row["model"]) == (1, "Qwen/Qwen2.5-0.5B-Instruct")
    assert row["choices"]["backend"] == "fsdp2"
    assert 1 < row["peak_memory_gb"] < 80
    assert "GB/GPU" in table.stdout
    assert "GB/GPU" not in run_cli("experiments", "gsm8k_1gpu", "--no-memory").stdout
    nothing = run_cli("experiments", "9gpu")
    assert (nothing.returncode, nothing.stdout) == (1, "")
    assert nothing.stderr == "cfpo-verl experiments: no experiment matches all of: 9gpu\n"


def test_what_an_installed_backend_needs_is_named(compose, monkeypatch):
    config = compose("experiment=math_8gpu_megatron")
    monkeypatch.setattr(environment, "_is_installed", lambda module: module == "megatron.core")
    [problem] = [finding for finding in environment.check_packages(config) if finding.status == "failed"]
    assert problem.found == (
        "actor_rollout_ref.actor.strategy=megatron needs transformer-engine, megatron-bridge, which are not installed"
    )
    assert problem.way_out == "pip install 'verl[megatron,vllm]<0.10,>=0.9.1', or choose backend=fsdp2"
    monkeypatch.setattr(environment, "_is_installed", lambda module: True)
    assert "failed" not in [finding.status for finding in environment.check_packages(config)]
    monkeypatch.setattr(environment, "_is_installed", lambda module: False)
    found = environment.check_packages(compose("experiment=math_8gpu"))
    assert "failed" not in [finding.status for finding in found]


def test_every_algorithm_has_run():
    """docs/algorithms.json is what `make algorithms` measured; the page is made from it."""
    measured = json.loads(algorithm_runs.MEASURED.read_text())
    assert set(measured) == set(ALGOS)
    for steps in measured.values():
        for values in steps.values():
            assert {name for name, value in values.items() if value is not None} >= set(algorithm_runs.NECESSARY)
            assert values["actor/grad_norm"] > 0
    assert algorithm_runs.table(measured) in algorithm_runs.PAGE.read_text()


def test_the_table_of_algorithms_leaves_out_what_a_loss_does_not_report():
    measured = {"b": {"1": {"critic/score/mean": 0.25, "timing_s/step": 31.26}}, "a": {"1": {"actor/grad_norm": 0.5}}}
    header, _line, first, second = algorithm_runs.table(measured).splitlines()
    cells = dict(zip(header.split("|"), second.split("|"), strict=True))
    assert first.startswith("| `a` | 1 |  |")
    assert (cells[" reward "], cells[" seconds "], cells[" gradient norm "]) == (" 0.25 ", " 31.3 ", "  ")


def test_an_unknown_algorithm_is_refused():
    result = CliRunner().invoke(algorithm_runs.app, ["ppo"])
    assert result.exit_code == 2
    assert "no algorithm called 'ppo'. Choose one of: cfpo, " in result.stderr


def test_the_table_of_combinations_has_every_choice():
    page = (PROJECT / "docs" / "combinations.md").read_text()
    assert f"{len(BACKENDS) * len(ALGOS) * len(MODELS):,} combinations" in page
    for backend in BACKENDS:
        table = page.partition(f"### `backend={backend}`\n\n")[2].partition("\n\n")[0].splitlines()
        assert table[0] == f"| `policy_model` | {' | '.join(f'`{algo}`' for algo in ALGOS)} |"
        assert [row.split("`")[1] for row in table[2:]] == MODELS
        for row in table[2:]:
            cells = set(row.split(" | ", 1)[1].removesuffix(" |").split(" | "))
            refused = backend == "cpu" and row.split("`")[1] in MIXTURES_OF_EXPERTS
            assert all(cell.startswith("no (") for cell in cells) if refused else cells == {"yes"}


def test_the_docs_name_every_choice():
    page = (PROJECT / "docs" / "experiments.md").read_text()
    for algo in ALGOS:
        assert f"| `{algo}` |" in page
    for name in (*BACKENDS, *names("updates"), *names("tracking")):
        assert f"`{name}`" in page
    assert f"{len(MODELS)} models" in page
