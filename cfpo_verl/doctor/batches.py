"""Checks of sizes that have to divide or to fit: verl asserts most of them only after the first rollout."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from omegaconf import DictConfig

from cfpo_verl.doctor.finding import Finding, failed, ok, warning
from cfpo_verl.doctor.model import attention_heads, context_length, hidden_layers, read_model_config

# Options of Megatron with which layers need not divide among pipeline stages.
_UNEVEN_PIPELINES = frozenset(
    (
        "account_for_embedding_in_pipeline_split",
        "num_layers_in_first_pipeline_stage",
        "num_layers_in_last_pipeline_stage",
        "pipeline_model_parallel_layout",
    )
)


@dataclass(frozen=True)
class Layout:
    """How a model engine spreads over the GPUs of the trainer.

    Args:
        ranks: GPUs of the trainer.
        model_parallel: GPUs that share one batch.
        sequence_parallel: GPUs that share one sequence: verl multiplies token budgets by it.
        data_parallel: Parts into which a batch is cut.
    """

    ranks: int
    model_parallel: int
    sequence_parallel: int
    data_parallel: int


def layout(config: DictConfig, role: str = "actor") -> Layout:
    """Return the layout of the actor or of the reference model, as verl's engines compute it.

    Args:
        config: The whole config.
        role: "actor" or "ref".
    """
    node = config.actor_rollout_ref[role]
    ranks = config.trainer.nnodes * config.trainer.n_gpus_per_node
    if node.strategy == "megatron":
        engine = node.megatron
        sequence = engine.context_parallel_size
        model = engine.tensor_model_parallel_size * engine.pipeline_model_parallel_size * sequence
        data = 1 if engine.get("dynamic_context_parallel", False) else ranks // model
        return Layout(ranks, model, sequence, max(data, 1))
    if node.strategy == "torchtitan":
        engine = node.torchtitan
        data = engine.data_parallel_shard_size * engine.data_parallel_replicate_size
        return Layout(ranks, max(ranks // data, 1), engine.tensor_parallel_size, data)
    if node.strategy == "veomni":
        sequence = node.veomni.ulysses_parallel_size
    else:
        # verl's actor overrides its engine's value, if it is set.
        sequence = max(node.ulysses_sequence_parallel_size, node.fsdp_config.ulysses_sequence_parallel_size)
    return Layout(ranks, sequence, sequence, max(ranks // sequence, 1))


def has_reference(config: DictConfig) -> bool:
    """Return whether a reference model of its own is run: with LoRA, the actor without its adapter is the reference."""
    return bool(config.algorithm.use_kl_in_reward or config.actor_rollout_ref.actor.use_kl_loss) and not has_lora(
        config
    )


def has_lora(config: DictConfig) -> bool:
    """Return whether only an adapter is trained."""
    model = config.actor_rollout_ref.model
    rank = (model.get("lora") or {}).get("rank", 0) or model.get("lora_rank", 0)
    return rank > 0 or model.get("lora_adapter_path") is not None


def check_batches(config: DictConfig) -> Iterator[Finding]:
    """Check that mini-batches and micro-batches divide.

    In the order in which verl asserts them: the passes that compute log-probabilities, then the update.
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
            "Set both to the same",
        )
    fetched = data.get("gen_batch_size")
    # verl fetches single prompts where it may have to refill.
    fetches_batches = config.trainer.v1.trainer_mode == "sync" and not config.algorithm.filter_groups.enable
    if fetched and fetches_batches and data.train_batch_size % fetched:
        yield failed(
            f"data.train_batch_size={data.train_batch_size} is not a multiple of data.gen_batch_size={fetched}: verl "
            "stops in the first step",
            "Unset data.gen_batch_size",
        )
    if step % data_parallel:
        yield failed(
            f"actor_rollout_ref.actor: {what} an optimiser step, which do not divide among {data_parallel} "
            "data-parallel ranks: verl stops at the first update, after the first rollout",
            f"Make ppo_mini_batch_size * rollout.n a multiple of {data_parallel}",
        )
        return
    # The default trainer fills the batch up to whole mini-batches and ranks before it cuts it.
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
            f"data.train_batch_size={data.train_batch_size} is not a multiple of ppo_mini_batch_size="
            f"{actor.ppo_mini_batch_size}"
        )
        missing = -data.train_batch_size % actor.ppo_mini_batch_size * rollout.n
        if config.trainer.use_v1:
            yield warning(
                f"{found}: verl fills the last mini-batch with {missing} empty responses, and so that step learns less",
                "Make it a multiple",
            )
        else:
            yield failed(f"{found}: the older trainer stops at the first update", "Make it a multiple")


def _check_micro(key: str, whole: int | None, per_gpu: int | None, rows: int, of: str) -> Iterator[Finding]:
    """Check one micro-batch size against the rows that a rank has."""
    if per_gpu is None:
        # verl's own validation accepts the deprecated key alone, its workers do not.
        yield failed(
            f"{key}_per_gpu is not set" + ("" if whole is None else f", only the deprecated {key.rpartition('.')[2]}"),
            f"Set {key}_per_gpu, for example to {math.gcd(rows, 8)}, or actor_rollout_ref.actor.use_dynamic_bsz=true",
        )
    elif per_gpu < 1 or rows % per_gpu:
        fitting = max(size for size in range(1, max(min(per_gpu, rows), 1) + 1) if rows % size == 0)
        yield failed(
            f"{key}_per_gpu={per_gpu} does not divide the {rows} responses that a rank has of {of}: verl stops there, "
            "after the first rollout",
            f"Set it to {fitting}",
        )


def check_token_budgets(config: DictConfig) -> Iterator[Finding]:
    """Check that the longest sequence fits each token budget of dynamic batches.

    verl asserts this when the first long sequence comes, which may be hours after the start.
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
                f"longest sequence, max_prompt_length + max_response_length = {longest}: verl stops when one comes",
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
            "would be cut off and scored as wrong, without a word",
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
    rollout, trainer = config.actor_rollout_ref.rollout, config.trainer
    shape = read_model_config(config)
    heads, layers = attention_heads(shape), hidden_layers(shape)
    for role in ("actor", "ref") if has_reference(config) else ("actor",):
        strategy, found = config.actor_rollout_ref[role].strategy, layout(config, role)
        if found.ranks % found.model_parallel:
            yield failed(
                f"actor_rollout_ref.{role}: {found.model_parallel} GPUs share a batch ({_parts(config, role)}), "
                "which do "
                f"not divide trainer.nnodes x n_gpus_per_node = {found.ranks} GPUs",
                "Change the parallel sizes, or the number of GPUs",
            )
        splits_heads = (
            config.actor_rollout_ref[role].megatron.tensor_model_parallel_size
            if strategy == "megatron"
            else found.sequence_parallel
        )
        if heads is not None and heads % splits_heads:
            yield failed(
                f"actor_rollout_ref.{role}: the model's {heads} attention heads do not divide among {splits_heads} "
                "GPUs "
                f"({_parts(config, role)})",
                f"Choose a divisor of {heads}",
            )
        if strategy == "megatron" and layers is not None:
            pipeline = config.actor_rollout_ref[role].megatron.pipeline_model_parallel_size
            told = set(config.actor_rollout_ref[role].megatron.override_transformer_config) & _UNEVEN_PIPELINES
            if layers % pipeline and not told:
                yield failed(
                    f"actor_rollout_ref.{role}.megatron.pipeline_model_parallel_size={pipeline} does not divide the "
                    f"model's {layers} layers",
                    f"Choose a divisor of {layers}, or set one of {', '.join(sorted(_UNEVEN_PIPELINES))}",
                )
    replica = rollout.tensor_model_parallel_size * rollout.data_parallel_size * rollout.pipeline_model_parallel_size
    separate = config.trainer.use_v1 and trainer.v1.trainer_mode == "separate_async"
    nodes, per_node = (
        (rollout.nnodes, rollout.n_gpus_per_node) if separate else (trainer.nnodes, trainer.n_gpus_per_node)
    )
    if nodes * per_node % replica or replica % min(per_node, replica):
        yield failed(
            f"actor_rollout_ref.rollout: a replica takes {replica} GPUs (tensor_model_parallel_size "
            f"{rollout.tensor_model_parallel_size} x data_parallel_size {rollout.data_parallel_size}), which do not "
            f"divide {nodes} x {per_node} GPUs",
            "Set actor_rollout_ref.rollout.tensor_model_parallel_size (verl's default is 2) to a divisor",
        )
    if heads is not None and heads % rollout.tensor_model_parallel_size:
        yield failed(
            f"actor_rollout_ref.rollout.tensor_model_parallel_size={rollout.tensor_model_parallel_size} does not "
            "divide "
            f"the model's {heads} attention heads: the rollout server refuses to start",
            f"Choose a divisor of {heads}",
        )


def _parts(config: DictConfig, role: str) -> str:
    node = config.actor_rollout_ref[role]
    if node.strategy == "megatron":
        engine = node.megatron
        return (
            f"tensor {engine.tensor_model_parallel_size} x pipeline {engine.pipeline_model_parallel_size} x context "
            f"{engine.context_parallel_size}"
        )
    return f"sequence parallel {layout(config, role).sequence_parallel}"
