"""cfpo_verl.doctor.batches: sizes that have to divide or to fit, worked by hand.

The config has 8 GPUs, 64 prompts, mini-batches of 16 and 8 responses to a prompt: 128 responses an optimiser step, 16
on each rank; 512 in a rollout, 64 on each rank. Sequences have at most 512 + 1024 = 1536 tokens.
"""

import pytest
from doctor_configs import failed, gpu_config, ok, quickstart, warnings, with_model
from omegaconf import open_dict

from cfpo_verl import demands
from cfpo_verl.doctor import batches

CHECKS = (batches.check_batches, batches.check_token_budgets, batches.check_context, batches.check_layout)
ACTOR = "actor_rollout_ref.actor"


def all_failed(config):
    return [problem for check in CHECKS for problem in failed(check(config))]


@pytest.mark.parametrize("compose", [quickstart, gpu_config])
def test_a_correct_config_has_no_problems(compose):
    found = [finding for check in CHECKS for finding in check(compose())]
    assert failed(found) == []
    assert warnings(found) == []


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], (8, 1, 1, 8)),
        ([f"{ACTOR}.ulysses_sequence_parallel_size=2"], (8, 2, 2, 4)),
        ([f"{ACTOR}.fsdp_config.ulysses_sequence_parallel_size=4"], (8, 4, 4, 2)),
        (
            [
                "model_engine=megatron",
                f"{ACTOR}.megatron.tensor_model_parallel_size=2",
                f"{ACTOR}.megatron.pipeline_model_parallel_size=2",
                f"{ACTOR}.megatron.context_parallel_size=2",
            ],
            (8, 8, 2, 1),
        ),
        (["model_engine=veomni", f"{ACTOR}.veomni.ulysses_parallel_size=2"], (8, 2, 2, 4)),
        (
            [
                "model_engine=torchtitan",
                f"{ACTOR}.torchtitan.data_parallel_shard_size=2",
                f"{ACTOR}.torchtitan.tensor_parallel_size=4",
            ],
            (8, 4, 4, 2),
        ),
    ],
)
def test_layout_of_each_engine(overrides, expected):
    found = demands.layout(gpu_config(*overrides))
    assert (found.ranks, found.model_parallel, found.sequence_parallel, found.data_parallel) == expected


def test_responses_that_do_not_divide_among_the_ranks():
    # 3 prompts x 4 responses = 12 responses for 8 ranks.
    config = gpu_config(f"{ACTOR}.ppo_mini_batch_size=3", "actor_rollout_ref.rollout.n=4")
    [problem] = failed(batches.check_batches(config))
    assert (
        "ppo_mini_batch_size 3 x rollout.n 4 = 12 responses per optimiser step, which cannot be divided among 8"
        in problem
    )
    assert problem.endswith("Make ppo_mini_batch_size * rollout.n a multiple of 8")


@pytest.mark.parametrize(
    ("key", "value", "rows", "fitting"),
    [
        (f"{ACTOR}.ppo_micro_batch_size_per_gpu", 6, "16 responses of an optimiser step that each rank gets", 4),
        (f"{ACTOR}.ppo_micro_batch_size_per_gpu", 32, "16 responses of an optimiser step that each rank gets", 16),
        ("actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu", 48, "64 responses", 32),
        (
            "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu",
            5,
            "64 responses of a rollout that each rank gets",
            4,
        ),
    ],
)
def test_micro_batches_that_do_not_divide(key, value, rows, fitting):
    config = gpu_config(f"{ACTOR}.use_kl_loss=true", f"{key}={value}")
    [problem] = failed(batches.check_batches(config))
    assert problem.startswith(f"{key}={value} does not divide the {rows}")
    assert problem.endswith(f"Set it to {fitting}")


def test_micro_batches_that_are_not_used_need_not_divide():
    unused = "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=5"
    assert all_failed(gpu_config(unused)) == []
    assert all_failed(gpu_config(unused, f"{ACTOR}.use_kl_loss=true", "actor_rollout_ref.model.lora_rank=8")) == []
    bypass = ["actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=5"]
    bypass += ["algorithm.rollout_correction.bypass_mode=true"]
    assert all_failed(gpu_config(*bypass)) == []


def test_a_deprecated_key_alone_passes_verl_and_not_us():
    config = gpu_config()
    with open_dict(config):
        config.actor_rollout_ref.rollout.log_prob_micro_batch_size = 64
        config.actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu = None
    [problem] = failed(batches.check_batches(config))
    assert "log_prob_micro_batch_size_per_gpu is not set, only the deprecated log_prob_micro_batch_size" in problem


def test_dynamic_batches_of_one_kind_only():
    config = gpu_config(f"{ACTOR}.use_dynamic_bsz=true")
    assert failed(batches.check_batches(config)) == []  # verl's rollout follows the actor
    config.actor_rollout_ref.rollout.log_prob_use_dynamic_bsz = False
    [problem] = failed(batches.check_batches(config))
    assert "use_dynamic_bsz=True but actor_rollout_ref.rollout.log_prob_use_dynamic_bsz=False" in problem


def test_prompts_are_fetched_in_whole_batches():
    [problem] = failed(batches.check_batches(gpu_config("data.gen_batch_size=48")))
    assert "data.train_batch_size=64 is not a multiple of data.gen_batch_size=48" in problem
    dapo = ["algorithm.filter_groups.enable=true", "data.gen_batch_size=48"]  # verl then fetches single prompts
    assert failed(batches.check_batches(gpu_config(*dapo))) == []


@pytest.mark.parametrize(
    ("loss_agg_mode", "effect"),
    [
        ("token-mean", "token-mean averages over the tokens that are there, so each response weighs more in that step"),
        ("token-sum", "token-sum adds up fewer tokens in that step"),
        ("seq-mean-token-mean", "counts them too: the gradient of that step is 0.5 of the mean over its responses"),
    ],
)
def test_warns_of_a_last_mini_batch_with_padding(loss_agg_mode, effect):
    # 72 prompts in mini-batches of 16: 8 prompts are missing, of 8 responses each; 80 x 8 / 8 ranks = 80 rows.
    config = gpu_config("data.train_batch_size=72", f"{ACTOR}.loss_agg_mode={loss_agg_mode}")
    [warning] = warnings(batches.check_batches(config))
    assert "verl fills up the last mini-batch of 64 responses with 64 rows without response tokens, and" in warning
    assert effect in warning
    [problem] = failed(batches.check_batches(gpu_config("data.train_batch_size=72", "trainer.use_v1=false")))
    assert "the older trainer (trainer.use_v1=false) stops at the first update" in problem


@pytest.mark.parametrize(
    ("key", "extra"),
    [
        (f"{ACTOR}.ppo_max_token_len_per_gpu", []),
        ("actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu", []),
        ("actor_rollout_ref.ref.log_prob_max_token_len_per_gpu", [f"{ACTOR}.use_kl_loss=true"]),
    ],
)
def test_token_budgets(key, extra):
    dynamic = [f"{ACTOR}.use_dynamic_bsz=true", *extra]
    assert failed(batches.check_token_budgets(gpu_config(*dynamic, f"{key}=1535")))[0].startswith(
        f"{key}=1535 is less than the longest sequence, max_prompt_length + max_response_length = 1536"
    )
    assert failed(batches.check_token_budgets(gpu_config(*dynamic, f"{key}=1536"))) == []


def test_gpus_that_share_a_sequence_share_the_budget():
    shared = [f"{ACTOR}.use_dynamic_bsz=true", f"{ACTOR}.ulysses_sequence_parallel_size=2"]
    shared += ["actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu=4096"]
    assert failed(batches.check_token_budgets(gpu_config(*shared, f"{ACTOR}.ppo_max_token_len_per_gpu=768"))) == []
    [problem] = failed(batches.check_token_budgets(gpu_config(*shared, f"{ACTOR}.ppo_max_token_len_per_gpu=767")))
    assert "=767 x 2 GPUs that share a sequence is less than" in problem
    assert "Set it to 768 or more" in problem


def test_a_budget_without_dynamic_batches_is_not_read():
    assert ok(batches.check_token_budgets(gpu_config(f"{ACTOR}.ppo_max_token_len_per_gpu=1"))) == []


def test_room_in_the_rollout_engine(tmp_path):
    config = gpu_config("actor_rollout_ref.rollout.max_model_len=1536")
    assert failed(batches.check_context(config)) == []
    config.actor_rollout_ref.rollout.max_model_len = 1024
    [problem] = failed(batches.check_context(config))
    assert "max_model_len=1024 is less than max_prompt_length 512 + max_response_length 1024 = 1536" in problem
    assert "cut off and scored as wrong" in problem


def test_room_in_the_model(tmp_path):
    config = with_model(gpu_config(), tmp_path / "model", max_position_embeddings=1024)
    [problem] = failed(batches.check_context(config))
    assert "= 1536 is more than the model's max_position_embeddings=1024" in problem
    config.actor_rollout_ref.rollout.max_model_len = 2048
    [problem] = failed(batches.check_context(config))
    assert "max_model_len=2048 is more than the model's max_position_embeddings=1024" in problem


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["trainer.n_gpus_per_node=1"],
            "one copy of the model for generation takes 2 GPUs (tensor_model_parallel_size 2 x data_parallel_size 1)",
        ),
        (
            ["actor_rollout_ref.rollout.tensor_model_parallel_size=3"],
            "one copy of the model for generation takes 3 GPUs",
        ),
        (
            [f"{ACTOR}.ulysses_sequence_parallel_size=3"],
            "3 GPUs share the model (sequence parallel 3), and 1 x 8 GPUs cannot",
        ),
        (
            ["model_engine=megatron", f"{ACTOR}.megatron.pipeline_model_parallel_size=3"],
            "3 GPUs share the model (tensor 1 x pipeline 3 x context 1)",
        ),
    ],
)
def test_parallel_sizes_that_do_not_divide_the_gpus(overrides, message):
    assert any(message in problem for problem in failed(batches.check_layout(gpu_config(*overrides))))


def test_standalone_replicas_have_gpus_of_their_own():
    overrides = ["trainer.v1.trainer_mode=separate_async", "actor_rollout_ref.rollout.nnodes=1"]
    overrides += ["actor_rollout_ref.rollout.n_gpus_per_node=3", "trainer.n_gpus_per_node=8"]
    [problem] = failed(batches.check_layout(gpu_config(*overrides)))
    assert "1 x 3 GPUs cannot be divided into such copies" in problem


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["actor_rollout_ref.rollout.tensor_model_parallel_size=8"], "does not divide the model's 12 attention heads"),
        (
            [f"{ACTOR}.ulysses_sequence_parallel_size=8"],
            "the model's 12 attention heads cannot be divided among 8 GPUs",
        ),
        (
            ["model_engine=megatron", f"{ACTOR}.megatron.tensor_model_parallel_size=8"],
            "the model's 12 attention heads cannot be divided among 8 GPUs (tensor 8 x pipeline 1 x context 1)",
        ),
        (
            ["model_engine=megatron", f"{ACTOR}.megatron.pipeline_model_parallel_size=4"],
            "pipeline_model_parallel_size=4 does not divide the model's 10 layers",
        ),
    ],
)
def test_parallel_sizes_that_do_not_divide_the_model(tmp_path, overrides, message):
    config = with_model(gpu_config(*overrides), tmp_path / "model", num_attention_heads=12, num_hidden_layers=10)
    [problem] = failed(batches.check_layout(config))
    assert message in problem


def test_layers_that_are_cut_unevenly_on_purpose(tmp_path):
    override = "+actor_rollout_ref.actor.megatron.override_transformer_config.num_layers_in_first_pipeline_stage=1"
    config = gpu_config("model_engine=megatron", f"{ACTOR}.megatron.pipeline_model_parallel_size=4", override)
    with_model(config, tmp_path / "model", num_attention_heads=12, num_hidden_layers=10)
    assert failed(batches.check_layout(config)) == []


def test_verl_really_refuses_what_is_refused_here():
    """The rows of a rank in micro-batches, and the longest sequence in a token budget, by verl's own code."""
    import torch
    from tensordict import TensorDict
    from verl.utils import tensordict_utils as tu
    from verl.workers.engine.utils import prepare_micro_batches

    def cut(**options):
        sequences = torch.nested.as_nested_tensor([torch.zeros(12, dtype=torch.long)] * 16, layout=torch.jagged)
        batch = TensorDict({"input_ids": sequences}, batch_size=16)
        tu.assign_non_tensor(batch, **options)
        return prepare_micro_batches(batch)[0]

    assert len(cut(use_dynamic_bsz=False, micro_batch_size_per_gpu=4)) == 4
    with pytest.raises(AssertionError, match="divisible"):
        cut(use_dynamic_bsz=False, micro_batch_size_per_gpu=6)
    assert len(cut(use_dynamic_bsz=True, max_token_len_per_gpu=6, sp_size=2)) == 16
    with pytest.raises(AssertionError, match="max_token_len must be greater"):
        cut(use_dynamic_bsz=True, max_token_len_per_gpu=5, sp_size=2)


def test_padding_rows_stand_in_the_last_mini_batch_by_verls_own_code():
    """verl adds them at the end, then gives each of its 8 ranks rows of the same total length, in their order."""
    import torch
    from verl.trainer.ppo.padding_utils import SYNTHETIC_PADDING_SEQ_LEN
    from verl.utils.seqlen_balancing import calculate_workload, get_seqlen_balanced_partitions

    lengths = torch.randint(600, 1536, (576,), generator=torch.Generator().manual_seed(0))
    lengths = torch.cat([lengths, torch.full((64,), SYNTHETIC_PADDING_SEQ_LEN)])
    ranks = get_seqlen_balanced_partitions(calculate_workload(lengths), k_partitions=8, equal_size=True)
    assert {len(rows) for rows in ranks} == {80}
    assert {place // 16 for rows in ranks for place, row in enumerate(rows) if row >= 576} == {4}


@pytest.mark.parametrize(
    ("loss_agg_mode", "share"),
    [("token-mean", 1), ("seq-mean-token-mean", 0.5), ("seq-mean-token-sum", 0.5), ("seq-mean-token-sum-norm", 0.5)],
)
def test_what_padding_rows_do_by_verls_own_code(loss_agg_mode, share):
    """The engine counts the tokens that are there, and ppo_mini_batch_size * rollout.n responses."""
    import torch
    from verl.trainer.ppo.core_algos import agg_loss

    losses = torch.tensor([[1.0, 2.0], [4.0, 0.0], [9.0, 9.0], [9.0, 9.0]])
    mask = torch.tensor([[1, 1], [1, 0], [0, 0], [0, 0]])

    def aggregate(rows, responses):
        sizes = {"batch_num_tokens": 3, "global_batch_size": responses, "loss_scale_factor": 2}
        return agg_loss(losses[:rows], mask[:rows], loss_agg_mode, dp_size=1, **sizes)

    assert aggregate(4, 4) == share * aggregate(2, 2)
