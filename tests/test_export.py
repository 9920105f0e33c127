"""Export of checkpoints that verl's FSDP2 engine wrote on two ranks, with verl's merger and transformers."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from conftest import run_ranks
from huggingface_hub import ModelCard
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from cfpo_verl import warmup
from cfpo_verl.composing import compose
from cfpo_verl.evaluation.models import find_model, fingerprint
from cfpo_verl.evaluation.sets import EvaluationError
from cfpo_verl.export import merge
from cfpo_verl.export.card import _loss, export_with_card
from cfpo_verl.export.checkpoints import CheckpointError, find_checkpoint, lookup
from cfpo_verl.export.merge import ExportError, export, exported

POLICY_LOSS = "actor_rollout_ref.actor.policy_loss"
CONFIG = {
    "actor_rollout_ref": {
        "model": {"path": "Qwen/Qwen2.5-0.5B"},
        "actor": {"policy_loss": {"_target_": "x", "loss_mode": "cfpo", "epsilon": 0.2}, "optim": {"lr": 1e-6}},
        "rollout": {"n": 8},
    },
    "algorithm": {"adv_estimator": "cfpo_grpo"},
    "data": {"train_files": [], "train_batch_size": 256, "max_response_length": 8},
    "trainer": {"total_training_steps": 20},
    "ray_kwargs": {"ray_init": {"runtime_env": {"env_vars": {"WANDB_API_KEY": "secret"}}}},
    "seed": 0,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A model, and a run folder with its checkpoint of step 3, written by two ranks of verl's FSDP2 engine."""
    folder = tmp_path_factory.mktemp("made")
    torch.manual_seed(0)
    tokenizer = warmup.train_tokenizer(["1+1=2"], 300)
    model = warmup.build_model(tokenizer, warmup.WarmupConfig(hidden_size=32, layers=2, heads=2))
    warmup.save(folder / "model", model, tokenizer, [], {})
    actor = folder / "run" / "checkpoints" / "global_step_3" / "actor"
    run_ranks(2, Path(__file__).with_name("fsdp_checkpoint.py"), folder / "model", actor)
    (folder / "run" / "config.1.yaml").write_text("seed: 7\n")
    (folder / "run" / "config.2.yaml").write_text(yaml.safe_dump(CONFIG))
    (folder / "run" / "versions.2.json").write_text(json.dumps({"cfpo-verl": "0.1.0", "verl": "0.9.1", "vllm": None}))
    return folder


@pytest.fixture
def run(made, tmp_path) -> Path:
    """A copy of the run folder, for tests that change it."""
    return Path(shutil.copytree(made / "run", tmp_path / "run"))


@pytest.fixture
def whole_run(made, run) -> Path:
    """The run folder with whole weights instead of shards in its checkpoint, as with save_contents=['hf_model']."""
    actor = run / "checkpoints" / "global_step_3" / "actor"
    for shard in actor.glob("*.pt"):
        shard.unlink()
    shutil.copy(made / "model" / "model.safetensors", actor / "huggingface")
    return run


def test_two_ranks_are_merged_into_the_model_they_came_from(made, tmp_path):
    checkpoint = find_checkpoint(made / "run")
    assert (checkpoint.backend, checkpoint.step, checkpoint.run_dir) == ("fsdp", 3, made / "run")
    assert len(list(checkpoint.folder.glob("model_world_size_2_rank_*.pt"))) == 2
    check = export(checkpoint, tmp_path / "out")
    before = AutoModelForCausalLM.from_pretrained(made / "model")
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert after.dtype == torch.bfloat16
    for name, weight in before.state_dict().items():
        torch.testing.assert_close(after.state_dict()[name], weight.bfloat16(), rtol=0, atol=0)
    assert check.merge_difference == pytest.approx(0, abs=1e-5)
    assert 1e-5 < check.rounding_difference < 0.1
    assert check.prompt == "<|user|>What is 3 + 4?<|end|><|assistant|>"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    tokens = torch.tensor([tokenizer.encode(check.prompt)])
    generated = after.float().generate(tokens, max_new_tokens=16, do_sample=False)[0, tokens.shape[1] :]
    assert tokenizer.decode(generated, skip_special_tokens=True) == check.continuation
    # Other users can read it, and no temporary files are left.
    assert (tmp_path / "out" / "model.safetensors").stat().st_mode & 0o044 == 0o044
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_merge_that_went_wrong_is_noticed(made, tmp_path, monkeypatch):
    honest = merge._merge

    def careless(checkpoint, out, trust_remote_code):
        honest(checkpoint, out, trust_remote_code)
        weights = load_file(out / "model.safetensors")
        name = "model.layers.0.mlp.down_proj.weight"
        weights[name] = torch.cat(weights[name].chunk(2)[::-1])  # the ranks in the wrong order
        save_file(weights, out / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(merge, "_merge", careless)
    with pytest.raises(ExportError, match=r"differs from the checkpoint by .* nats on a prompt"):
        export(find_checkpoint(made / "run"), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_the_merger_says_when_it_fails(run, tmp_path):
    (run / "checkpoints" / "global_step_3" / "actor" / "model_world_size_2_rank_1.pt").unlink()
    with pytest.raises(ExportError, match=r"verl's merger failed:(?s:.*)rank_1\.pt"):
        export(find_checkpoint(run / "checkpoints" / "global_step_3"), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_checkpoint_without_shards_is_copied(made, whole_run, tmp_path):
    """As written by verl with save_contents=['hf_model'], and by Megatron with its bridge."""
    actor = whole_run / "checkpoints" / "global_step_3" / "actor"
    check = export(find_checkpoint(whole_run), tmp_path / "out")
    assert check.merge_difference is None
    assert "not compared with the checkpoint" in check.describe()
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (made / "model" / "model.safetensors").read_bytes()
    (actor / "fsdp_config.json").unlink()
    (actor / "model").mkdir()
    (actor / "huggingface").rename(actor / "model" / "huggingface")
    megatron = find_checkpoint(actor)
    assert (megatron.backend, megatron.is_sharded) == ("megatron", False)
    export(megatron, tmp_path / "of_megatron")


def test_megatron_shards_need_a_gpu_and_verl_takes_our_arguments(whole_run, tmp_path, monkeypatch):
    """The merge itself needs a GPU; without one, only the arguments can be tested."""
    from verl.model_merger.base_model_merger import generate_config_from_args, parse_args

    actor = whole_run / "checkpoints" / "global_step_3" / "actor"
    (actor / "fsdp_config.json").unlink()
    (actor / "model" / "dist_ckpt").mkdir(parents=True)
    (actor / "huggingface").rename(actor / "model" / "huggingface")
    checkpoint = find_checkpoint(actor)
    assert checkpoint.is_sharded
    monkeypatch.setattr(merge, "_has_gpu", lambda: False)
    with pytest.raises(CheckpointError, match="verl's merger needs a GPU for Megatron's shards"):
        export(checkpoint, tmp_path / "out")
    monkeypatch.setattr("sys.argv", ["verl.model_merger", *merge.merger_arguments(checkpoint, tmp_path / "out", True)])
    config = generate_config_from_args(parse_args())
    assert config.local_dir == str(actor)
    assert config.hf_model_config_path == str(checkpoint.huggingface)
    assert (config.backend, config.tie_word_embedding) == ("megatron", True)
    assert (config.trust_remote_code, config.hf_upload) == (True, False)


def test_an_adapter_is_not_taken_for_the_model(whole_run, tmp_path):
    """verl's merger would write the weights of the base model."""
    checkpoint = find_checkpoint(whole_run)
    (checkpoint.folder / "lora_train_meta.json").write_text('{"r": 8}')
    with pytest.raises(CheckpointError, match=r"holds a LoRA adapter.*the model before training"):
        export(checkpoint, tmp_path / "out")


def test_the_export_of_a_run_is_made_once(whole_run):
    checkpoint = find_checkpoint(whole_run)
    folder = exported(checkpoint)
    assert folder == whole_run / "exported" / "global_step_3"
    before = (folder / "export.json").stat().st_mtime_ns
    assert exported(checkpoint) == folder
    assert (folder / "export.json").stat().st_mtime_ns == before
    weights = checkpoint.huggingface / "model.safetensors"
    os.utime(weights, (before / 1e9 + 10, before / 1e9 + 10))  # overwritten by another run
    os.utime(folder / "export.json", (before / 1e9 - 10, before / 1e9 - 10))
    exported(checkpoint)
    assert (folder / "export.json").stat().st_mtime_ns >= before


def test_an_evaluation_finds_the_model_of_a_run(made, whole_run, monkeypatch):
    run = whole_run
    found = find_model(str(run))
    assert (found.path, found.step, found.name) == (str(run / "exported" / "global_step_3"), 3, "run")
    assert lookup(found.config, "data.max_response_length") == 8
    # The export records the run it comes from.
    again = find_model(found.path)
    assert (again.run_dir, again.step) == (str(run), 3)
    monkeypatch.chdir(made)
    plain = find_model("model")
    assert (plain.path, plain.given, plain.run_dir, plain.config) == (str(made / "model"), "model", None, {})
    assert fingerprint("model", None) != fingerprint(found.path, None)
    assert find_model("Qwen/Qwen2.5-0.5B").path == "Qwen/Qwen2.5-0.5B"
    with pytest.raises(EvaluationError, match="model is a single model: --step needs a run folder"):
        find_model("model", step=3)


def test_the_last_complete_checkpoint_is_taken(run):
    steps = run / "checkpoints"
    for step in (10, 20):
        shutil.copytree(steps / "global_step_3", steps / f"global_step_{step}")
    assert find_checkpoint(run).step == 20
    shard = steps / "global_step_20" / "actor" / "model_world_size_2_rank_1.pt"
    shard.write_bytes(shard.read_bytes()[:1000])
    (steps / "latest_checkpointed_iteration.txt").write_text("20")  # verl's tracker file is ignored
    assert find_checkpoint(run).step == 10
    (steps / "global_step_10" / "actor" / "fsdp_config.json").unlink()
    assert find_checkpoint(run).step == 3
    assert find_checkpoint(run, 3).step == 3
    assert find_checkpoint(steps / "global_step_20").step == 20  # an explicit path is not checked
    assert find_checkpoint(steps / "global_step_20" / "actor").run_dir == run
    with pytest.raises(CheckpointError, match=r"no global_step_4\. Available: 3, 10, 20"):
        find_checkpoint(run, 4)


def test_what_is_no_checkpoint_is_named(run, tmp_path):
    actor = run / "checkpoints" / "global_step_3" / "actor"
    with pytest.raises(CheckpointError, match="nowhere: no such folder"):
        find_checkpoint(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="--step 3 needs a folder that contains global_step_3"):
        find_checkpoint(tmp_path, 3)
    for shard in actor.glob("model_*.pt"):
        shard.unlink()
    with pytest.raises(
        CheckpointError, match=r"it has no weights: actor.checkpoint.save_contents must include `model`"
    ):
        find_checkpoint(actor)
    with pytest.raises(
        CheckpointError, match=r"global_step_3 \(actor/huggingface/\*.safetensors are missing or empty\)"
    ):
        find_checkpoint(run)
    (actor / "huggingface" / "config.json").unlink()
    for path in (actor, run):
        with pytest.raises(CheckpointError, match=r"huggingface/config.json is missing"):
            find_checkpoint(path)
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(CheckpointError, match=r"not a verl checkpoint.*trainer.save_freq"):
        find_checkpoint(run)


@pytest.fixture
def evaluation(tmp_path) -> Path:
    numbers = {"value": 0.25, "low": 0.125, "high": 0.5}
    metrics = dict.fromkeys(("avg@4", "pass@4", "maj@4", "pass@1"), numbers)
    summary = {
        "name": "trained",
        "generation": {"temperature": 0.6, "top_p": 1.0, "top_k": -1, "max_tokens": 8, "seed": 0},
        "sets": {"aime24": {"problems": 30, "samples": 4, "metrics": metrics}},
    }
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "summary.json").write_text(json.dumps(summary))
    return tmp_path / "eval"


def test_the_card_says_what_is_known(whole_run, tmp_path, evaluation):
    run = whole_run
    data = tmp_path / "train.parquet"
    manifest = {"rows_out": 7472, "source": "openai/gsm8k", "revision": "abc", "licence": "MIT", "sha256_out": "123"}
    data.with_suffix(".manifest.json").write_text(json.dumps(manifest))
    config = {**CONFIG, "data": {**CONFIG["data"], "train_files": [str(data), "gone.parquet"]}}
    (run / "config.2.yaml").write_text(yaml.safe_dump(config))
    export_with_card(run, tmp_path / "out", None, [evaluation], False)
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.base_model == "Qwen/Qwen2.5-0.5B"
    assert {(result.dataset_name, result.metric_type, result.metric_value) for result in card.data.eval_results} == {
        ("aime24", "avg@4", 0.25),
        ("aime24", "pass@4", 0.25),
        ("aime24", "maj@4", 0.25),
    }
    for text in (
        "| policy loss | `cfpo`, epsilon 0.2 |",
        "| training step | 3 of 20 |",
        "7472 rows of openai/gsm8k, revision abc, licence MIT; SHA-256 `123`",
        "`gone.parquet`: no manifest found",
        "trained: temperature 0.6, top p 1.0, top k -1, max tokens 8, seed 0",
        "| aime24 | 30 | avg@4 | 0.250 | 0.125 to 0.500 |",
        "Versions: cfpo-verl 0.1.0, verl 0.9.1.",
    ):
        assert text in card.text
    kept = yaml.safe_load((tmp_path / "out" / "training_config.yaml").read_text())
    assert kept["seed"] == 0
    assert "secret" not in "".join(path.read_text() for path in (tmp_path / "out").glob("*.[my][da]*"))


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["policy_loss=cfpo", f"{POLICY_LOSS}.epsilon_low=0.1", f"{POLICY_LOSS}.tail=linear"],
            "`cfpo`, epsilon 0.2, epsilon_low 0.1, tail linear",
        ),
        (
            ["policy_loss=cfpo", f"{POLICY_LOSS}.tail=linear", f"{POLICY_LOSS}.tail_start=0.7"],
            "`cfpo`, epsilon 0.2, tail linear, tail_start 0.7",
        ),
        (["policy_loss=cfpo_sequence"], "`cfpo_sequence`, epsilon 0.0004, tail quadratic"),
        (["policy_loss=drpo"], "`drpo`, delta 12.5"),
        (
            ["policy_loss=drpo", f"{POLICY_LOSS}.non_finite=skip"],
            "`drpo`, delta 12.5, non_finite skip, max_skipped 10",
        ),
        (["policy_loss=vanilla"], "`vanilla`, clip_ratio_low 0.2, clip_ratio_high 0.2, clip_ratio_c 10000.0"),
        (["policy_loss=gspo"], "`gspo`, clip_ratio_low 0.0003, clip_ratio_high 0.0004"),
        (["policy_loss=sapo"], "`sapo`, tau_pos 1.0, tau_neg 1.05"),
        # Only changed options of verl's own, and all options of a third-party loss.
        (
            ["policy_loss=vanilla", f"{POLICY_LOSS}.loss_mode=clip_cov", f"{POLICY_LOSS}.clip_cov_lb=2.0"],
            "clip_cov_lb 2.0",
        ),
        (
            [f"+{POLICY_LOSS}.margin=0.5", f"+{POLICY_LOSS}.schedule={{warmup: 3}}"],
            "margin 0.5, schedule {'warmup': 3}",
        ),
    ],
)
def test_the_card_states_every_option_of_the_loss(overrides, expected):
    config = OmegaConf.to_container(compose(["experiment=cpu_quickstart", *overrides]))
    assert _loss(config).endswith(expected)
    assert "_target_" not in _loss(config)
    assert "dro_beta" not in _loss(config)


def test_the_card_of_a_bare_checkpoint_claims_nothing(whole_run, tmp_path):
    bare = tmp_path / "somewhere"
    shutil.copytree(whole_run / "checkpoints" / "global_step_3" / "actor", bare)
    export_with_card(bare, tmp_path / "out", None, [], False)
    text = (tmp_path / "out" / "README.md").read_text()
    assert "base model, data and settings are not\nknown." in text
    assert "## Evaluation\n\nNone." in text
    assert "base_model" not in text
    assert not (tmp_path / "out" / "training_config.yaml").exists()


def test_the_command_line(whole_run, tmp_path, run_cli, run_script, evaluation):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").write_text("")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "summary.json").write_text('{"sets": ')
    shutil.copytree(whole_run, tmp_path / "torn_run")
    (tmp_path / "torn_run" / "config.2.yaml").write_text("seed: [0")
    for arguments, status, message in (
        (["run", "--out", "taken"], 2, "taken: already exists. Give another --out"),
        (["gone", "--out", "out"], 2, "gone: no such folder"),
        (["run", "--out", "out", "--step", "9"], 2, "no global_step_9. Available: 3"),
        (["run", "--out", "out", "--evaluation", "gone"], 2, "gone/summary.json: no such file"),
        (["run", "--out", "out", "--evaluation", "torn"], 2, "torn/summary.json, line 1: not JSON"),
        (["torn_run", "--out", "out"], 2, "torn_run/config.2.yaml: not YAML"),
    ):
        result = run_cli("export", *arguments)
        assert result.returncode == status
        assert message in " ".join(result.stderr.split())
        assert not (tmp_path / "out").exists()
    result = run_script("export", "run", "--out", "models/out", "--evaluation", "eval")
    assert result.returncode == 0, result.stderr
    assert result.stdout == "models/out\n"
    assert "not compared with the checkpoint" in result.stderr
    assert (tmp_path / "models" / "out" / "README.md").is_file()
