"""Checks of sizes that must divide or fit: verl asserts most of them only after the first rollout."""

import math
from collections.abc import Iterator

from omegaconf import DictConfig

from cfpo_verl.demands import generation_nodes, has_reference, layout, trainer_nodes
from cfpo_verl.doctor.finding import Finding, failed, ok, warning
from cfpo_verl.doctor.model import attention_heads, context_length, hidden_layers, read_model_config

# Options of Megatron that allow pipeline stages with different numbers of layers.
_UNEVEN_PIPELINES = frozenset(
    (
        "account_for_embedding_in_pipeline_split",
        "num_layers_in_first_pipeline_stage",
        "num_layers_in_last_pipeline_stage",
        "pipeline_model_parallel_layout",
    )
)


def check_batches(config: DictConfig) -> Iterator[Finding]:
    """Check that mini-batches and micro-batches divide.

    In verl's order: first the passes that compute log-probabilities, then the update.
    """
    actor, rollout, data = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout, config.data
    data_parallel = layout(config).data_parallel
    step = actor.ppo_mini_batch_size * rollout.n
    what = f"ppo_mini_batch_size {actor.ppo_mini_batch_size} x rollout.n {rollout.n} = {step} responses"
    if actor.use_dynamic_bsz != rollout.log_prob_use_dynamic_bsz:
        yield failed(
            f"actor_rollout_ref.actor.use_dynamic_bsz={actor.use_dynamic_bsz} but "
            f"actor_rollout_ref.rollout.log_prob_use_dynamic_bsz={rollout.log_prob_use_dynamic_bsz}: verl's workers "
            "refuse to start",
            "Set both to the same value",
        )
    fetched = data.get("gen_batch_size")
    # With dynamic sampling verl fetches single prompts, to refill the batch.
    fetches_batches = config.trainer.v1.trainer_mode == "sync" and not config.algorithm.filter_groups.enable
    if fetched and fetches_batches and data.train_batch_size % fetched:
        yield failed(
            f"data.train_batch_size={data.train_batch_size} is not a multiple of data.gen_batch_size={fetched}: verl "
            "stops in the first step",
            "Unset data.gen_batch_size",
        )
    if step % data_parallel:
        yield failed(
            f"actor_rollout_ref.actor: {what} per optimiser step, which cannot be divided among {data_parallel} "
            "data-parallel ranks: verl stops at the first update, after the first rollout",
            f"Make ppo_mini_batch_size * rollout.n a multiple of {data_parallel}",
        )
        return
    # The default trainer pads the batch to whole mini-batches and ranks before it splits it.
    rows = -(-data.train_batch_size * rollout.n // step) * step // data_parallel
    if not rollout.log_prob_use_dynamic_bsz and not config.algorithm.rollout_correction.bypass_mode:
        yield from _check_micro(
            "actor_rollout_ref.rollout.log_prob_micro_batch_size",
            rollout.log_prob_micro_batch_size,
            rollout.log_prob_micro_batch_size_per_gpu,
            rows,
            "a rollout",
        )
    ref = config.actor_rollout_ref.ref
    if has_reference(config) and not ref.log_prob_use_dynamic_bsz:
        yield from _check_micro(
            "actor_rollout_ref.ref.log_prob_micro_batch_size",
            ref.log_prob_micro_batch_size,
            ref.log_prob_micro_batch_size_per_gpu,
            rows * data_parallel // layout(config, "ref").data_parallel,
            "a rollout",
        )
    if not actor.use_dynamic_bsz:
        yield from _check_micro(
            "actor_rollout_ref.actor.ppo_micro_batch_size",
            actor.ppo_micro_batch_size,
            actor.ppo_micro_batch_size_per_gpu,
            step // data_parallel,
            "an optimiser step",
        )
    if data.train_batch_size % actor.ppo_mini_batch_size:
        found = (
            f"data.train_batch_size={data.train_batch_size} is not a multiple of "
            f"ppo_mini_batch_size={actor.ppo_mini_batch_size}"
        )
        there = data.train_batch_size % actor.ppo_mini_batch_size * rollout.n
        if config.trainer.use_v1:
            yield warning(
                f"{found}: verl fills up the last mini-batch of {there} responses with {step - there} rows without "
                f"response tokens, and {_effect_of_padding(actor.loss_agg_mode, there / step)}",
                "Make it a multiple",
            )
        else:
            yield failed(
                f"{found}: the older trainer (trainer.use_v1=false) stops at the first update", "Make it a multiple"
            )


def _effect_of_padding(loss_agg_mode: str, share: float) -> str:
    """Return what rows without response tokens do to an optimiser step, given the share of the others."""
    if loss_agg_mode == "token-mean":
        return "token-mean averages over the tokens that are there, so each response weighs more in that step"
    if loss_agg_mode == "token-sum":
        return "token-sum adds up fewer tokens in that step"
    return f"{loss_agg_mode} counts them too: the gradient of that step is {share:.2g} of the mean over its responses"


def _check_micro(key: str, whole: int | None, per_gpu: int | None, rows: int, of: str) -> Iterator[Finding]:
    """Check one micro-batch size against the responses of a rank."""
    if per_gpu is None:
        # verl's own validation accepts the deprecated key alone; its workers do not.
        yield failed(
            f"{key}_per_gpu is not set" + ("" if whole is None else f", only the deprecated {key.rpartition('.')[2]}"),
            f"Set {key}_per_gpu, for example to {math.gcd(rows, 8)}, or actor_rollout_ref.actor.use_dynamic_bsz=true",
        )
    elif per_gpu < 1 or rows % per_gpu:
        fitting = max(size for size in range(1, max(min(per_gpu, rows), 1) + 1) if rows % size == 0)
        yield failed(
            f"{key}_per_gpu={per_gpu} does not divide the {rows} responses of {of} that each rank gets: verl stops "
            "there, after the first rollout",
            f"Set it to {fitting}",
        )


def check_token_budgets(config: DictConfig) -> Iterator[Finding]:
    """Check that the longest sequence fits each token budget of dynamic batches.

    verl asserts this at the first long sequence, which may be hours after the start.
    """
    actor, rollout, ref = (config.actor_rollout_ref[name] for name in ("actor", "rollout", "ref"))
    longest = config.data.max_prompt_length + config.data.max_response_length
    budgets = []
    if actor.use_dynamic_bsz:
        budgets.append(("actor_rollout_ref.actor.ppo_max_token_len_per_gpu", actor.ppo_max_token_len_per_gpu, "actor"))
    if rollout.log_prob_use_dynamic_bsz:
        key = "actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu"
        budgets.append((key, rollout.log_prob_max_token_len_per_gpu, "actor"))
    if ref.log_prob_use_dynamic_bsz and has_reference(config):
        key = "actor_rollout_ref.ref.log_prob_max_token_len_per_gpu"
        budgets.append((key, ref.log_prob_max_token_len_per_gpu, "ref"))
    for key, budget, role in budgets:
        shared = layout(config, role).sequence_parallel
        if budget * shared < longest:
            yield failed(
                f"{key}={budget}{f' x {shared} GPUs that share a sequence' if shared > 1 else ''} is less than the "
                f"longest sequence, max_prompt_length + max_response_length = {longest}: verl stops at the first such "
                "sequence",
                f"Set it to {-(-longest // shared)} or more (two to four times that is usual)",
            )
    if budgets:
        yield ok(f"longest sequence {longest} tokens, smallest budget {min(budget for _key, budget, _role in budgets)}")


def check_context(config: DictConfig) -> Iterator[Finding]:
    """Check that the rollout engine has room for the longest sequence."""
    rollout, data = config.actor_rollout_ref.rollout, config.data
    longest = data.max_prompt_length + data.max_response_length
    trained = context_length(read_model_config(config))
    if rollout.max_model_len is not None and rollout.max_model_len < longest:
        yield failed(
            f"actor_rollout_ref.rollout.max_model_len={rollout.max_model_len} is less than max_prompt_length "
            f"{data.max_prompt_length} + max_response_length {data.max_response_length} = {longest}: long responses "
            "would be cut off and scored as wrong, without a warning",
            f"Set actor_rollout_ref.rollout.max_model_len={longest} or more",
        )
    if trained is None:
        return
    if rollout.max_model_len is not None and rollout.max_model_len > trained:
        yield failed(
            f"actor_rollout_ref.rollout.max_model_len={rollout.max_model_len} is more than the model's "
            f"max_position_embeddings={trained}: the rollout server refuses to start",
            f"Set it to {trained} or less",
        )
    elif rollout.max_model_len is None and longest > trained:
        yield failed(
            f"max_prompt_length {data.max_prompt_length} + max_response_length {data.max_response_length} = {longest} "
            f"is more than the model's max_position_embeddings={trained}",
            "Shorten data.max_prompt_length or data.max_response_length",
        )


def check_layout(config: DictConfig) -> Iterator[Finding]:
    """Check that the parallel sizes divide the GPUs and the model.

    verl notices these while it loads the models, minutes after the start.
    """
    shape = read_model_config(config)
    heads, layers = attention_heads(shape), hidden_layers(shape)
    yield from _check_model_layout(config, "actor", heads, layers)
    # verl copies the actor's sizes to the reference model, unless it has its own.
    if has_reference(config) and _groups(config, "ref") != _groups(config, "actor"):
        yield from _check_model_layout(config, "ref", heads, layers)
    yield from _check_rollout_layout(config, heads)


def _check_model_layout(config: DictConfig, role: str, heads: int | None, layers: int | None) -> Iterator[Finding]:
    node, ranks = config.actor_rollout_ref[role], trainer_nodes(config)
    is_megatron, groups = node.strategy == "megatron", _groups(config, role)
    for size, what in groups:
        if ranks.gpus % size:
            yield failed(
                f"actor_rollout_ref.{role}: {size} GPUs share the model ({what}), and {ranks.count} x "
                f"{ranks.gpus_per_node} GPUs cannot be divided into such groups",
                "Choose a larger topology, or smaller parallel sizes",
            )
            break
    splits_heads = node.megatron.tensor_model_parallel_size if is_megatron else layout(config, role).sequence_parallel
    if heads is not None and heads % splits_heads:
        yield failed(
            f"actor_rollout_ref.{role}: the model's {heads} attention heads cannot be divided among {splits_heads} "
            f"GPUs ({groups[0][1]})",
            f"Choose a divisor of {heads}",
        )
    if is_megatron and layers is not None:
        pipeline = node.megatron.pipeline_model_parallel_size
        told = set(node.megatron.override_transformer_config) & _UNEVEN_PIPELINES
        if layers % pipeline and not told:
            yield failed(
                f"actor_rollout_ref.{role}.megatron.pipeline_model_parallel_size={pipeline} does not divide the "
                f"model's {layers} layers",
                f"Choose a divisor of {layers}, or set one of {', '.join(sorted(_UNEVEN_PIPELINES))}",
            )


def _check_rollout_layout(config: DictConfig, heads: int | None) -> Iterator[Finding]:
    rollout, nodes = config.actor_rollout_ref.rollout, generation_nodes(config)
    replica = rollout.tensor_model_parallel_size * rollout.data_parallel_size * rollout.pipeline_model_parallel_size
    # Without nodes there is nothing to divide; check_trainer_mode refuses that.
    if nodes.gpus and (nodes.gpus % replica or replica % min(nodes.gpus_per_node, replica)):
        yield failed(
            f"actor_rollout_ref.rollout: one copy of the model for generation takes {replica} GPUs "
            f"(tensor_model_parallel_size {rollout.tensor_model_parallel_size} x data_parallel_size "
            f"{rollout.data_parallel_size}), and {nodes.count} x {nodes.gpus_per_node} GPUs cannot be divided into "
            "such copies",
            "Choose a larger topology, or a smaller actor_rollout_ref.rollout.tensor_model_parallel_size (verl's "
            "default is 2)",
        )
    if heads is not None and heads % rollout.tensor_model_parallel_size:
        yield failed(
            f"actor_rollout_ref.rollout.tensor_model_parallel_size={rollout.tensor_model_parallel_size} does not "
            f"divide the model's {heads} attention heads: the rollout server refuses to start",
            f"Choose a divisor of {heads}",
        )


def _groups(config: DictConfig, role: str) -> list[tuple[int, str]]:
    """Return the sizes of the groups of GPUs that share a model, each with the parallel sizes it is the product of."""
    node = config.actor_rollout_ref[role]
    dense = layout(config, role)
    if node.strategy != "megatron":
        return [(dense.model_parallel, f"sequence parallel {dense.sequence_parallel}")]
    engine = node.megatron
    tensor, pipeline = engine.tensor_model_parallel_size, engine.pipeline_model_parallel_size
    # As Megatron counts: experts are spread over what tensor, context and data parallelism leave of a pipeline stage.
    expert, expert_tensor = engine.expert_model_parallel_size, engine.expert_tensor_parallel_size or tensor
    return [
        (dense.model_parallel, f"tensor {tensor} x pipeline {pipeline} x context {engine.context_parallel_size}"),
        (expert * expert_tensor * pipeline, f"expert {expert} x expert tensor {expert_tensor} x pipeline {pipeline}"),
    ]
