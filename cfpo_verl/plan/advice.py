"""The first thing to change when a run does not fit."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from cfpo_verl.plan.hardware import Gpu
from cfpo_verl.plan.memory import kv_cache_gb, kv_tokens, phases
from cfpo_verl.plan.run import Run

_ACTOR = "actor_rollout_ref.actor"
_ROLLOUT = "actor_rollout_ref.rollout"


@dataclass(frozen=True)
class Advice:
    """A changed key.

    Args:
        key: Config key.
        value: Its new value.
        is_enough: Whether the run then fits.
        run: The run with the change.
    """

    key: str
    value: str
    is_enough: bool
    run: Run

    def __str__(self) -> str:
        """Say it as an override."""
        return f"{self.key}={self.value}" + ("" if self.is_enough else " (not enough alone)")


def overshoot_gb(run: Run, gpu: Gpu) -> float:
    """Return by how many GB the run does not fit, phases and the cache of a longest sequence together; 0 if it does."""
    over = sum(max(0.0, phase.total_gb - gpu.memory_gb) for phase in phases(run, gpu))
    missing_tokens = max(0.0, run.batch.longest - kv_tokens(run, gpu))
    per_token_gb = run.shape.kv_bytes_per_token(run.rollout.value_bytes) / run.rollout.tensor_parallel / 1e9
    return over + missing_tokens * per_token_gb + max(0.0, -kv_cache_gb(run, gpu))


def first_change(run: Run, gpu: Gpu) -> Advice | None:
    """Return the first change that makes the run fit, else the one that helps most; None if it fits as it is.

    Changes are tried one at a time, those that cost least time first.
    """
    before = overshoot_gb(run, gpu)
    if before == 0:
        return None
    best: tuple[float, Advice] | None = None
    for key, value, changed in _changes(run, gpu):
        after = overshoot_gb(changed, gpu)
        advice = Advice(key, value, after == 0, changed)
        if advice.is_enough:
            return advice
        if best is None or after < best[0]:
            best = after, advice
    return best[1] if best else None


def _changes(run: Run, gpu: Gpu) -> Iterator[tuple[str, str, Run]]:
    trainer = run.trainer
    engine = f"{_ACTOR}.megatron" if trainer.is_megatron else f"{_ACTOR}.fsdp_config"
    if not trainer.recompute:
        key = f"{engine}.override_transformer_config.recompute_granularity"
        key, value = (
            (key, "full") if trainer.is_megatron else ("actor_rollout_ref.model.enable_gradient_checkpointing", "true")
        )
        yield key, value, run.with_trainer(recompute=True)
    yield from _smaller_micro_batches(run)
    if not trainer.fused_kernels:
        yield "actor_rollout_ref.model.use_fused_kernels", "true", run.with_trainer(fused_kernels=True)
    if run.rollout.colocated and run.rollout.kv_cache_gb is None:
        yield from _other_memory_shares(run, gpu)
        if not run.rollout.sleeps:
            yield f"{_ROLLOUT}.free_cache_engine", "true", run.with_rollout(sleeps=True)
        # verl brings both back for every training phase: they make room for the engine only.
        if not trainer.optimizer_offload:
            yield f"{engine}.optimizer_offload", "true", run.with_trainer(optimizer_offload=True)
        if not trainer.param_offload:
            yield f"{engine}.param_offload", "true", run.with_trainer(param_offload=True)
    tensor = 2 * run.rollout.tensor_parallel
    if tensor <= min(run.rollout.gpus_per_node, run.rollout.gpus) and run.shape.heads % tensor == 0:
        yield f"{_ROLLOUT}.tensor_model_parallel_size", str(tensor), run.with_rollout(tensor_parallel=tensor)
    yield from _more_sharing(run, engine)
    nodes = 2 * trainer.gpus // trainer.gpus_per_node
    if nodes >= 2:
        yield "trainer.nnodes", str(nodes), run.on_gpus(2 * run.gpus)


def _smaller_micro_batches(run: Run) -> Iterator[tuple[str, str, Run]]:
    """Halve the micro-batches, down to one longest sequence."""
    trainer, keys = run.trainer, []
    for tokens, sequences, name, budget_key, size_key in (
        (
            trainer.update_tokens,
            trainer.update_sequences,
            "update",
            f"{_ACTOR}.ppo_max_token_len_per_gpu",
            f"{_ACTOR}.ppo_micro_batch_size_per_gpu",
        ),
        (
            trainer.log_prob_tokens,
            trainer.log_prob_sequences,
            "log_prob",
            f"{_ROLLOUT}.log_prob_max_token_len_per_gpu",
            f"{_ROLLOUT}.log_prob_micro_batch_size_per_gpu",
        ),
    ):
        least = math.ceil(run.batch.longest / (trainer.sequence_parallel * trainer.context_parallel))
        if sequences:
            while sequences > 1:
                tokens = tokens * (sequences // 2) // sequences  # noqa: PLW2901  halved step by step
                sequences //= 2  # noqa: PLW2901
                keys.append((size_key, str(sequences), {f"{name}_tokens": tokens, f"{name}_sequences": sequences}))
        else:
            while tokens > least:
                tokens = max(least, tokens // 2)  # noqa: PLW2901
                keys.append((budget_key, str(tokens), {f"{name}_tokens": tokens}))
    for key, value, changes in keys:
        yield key, value, run.with_trainer(**changes)


def _other_memory_shares(run: Run, gpu: Gpu) -> Iterator[tuple[str, str, Run]]:
    """Give the engine less or more, in steps of 0.05."""
    share = run.rollout.memory_share
    steps = [round(share - step / 20, 2) for step in range(1, 20)] + [
        round(share + step / 20, 2) for step in range(1, 20)
    ]
    for value in steps:
        if 0.1 <= value <= 0.9:
            yield f"{_ROLLOUT}.gpu_memory_utilization", str(value), run.with_rollout(memory_share=value)


def _more_sharing(run: Run, engine: str) -> Iterator[tuple[str, str, Run]]:
    """Let more GPUs share sequences, matrices or states."""
    trainer = run.trainer
    if trainer.is_megatron:
        tensor = 2 * trainer.tensor_parallel
        divides = run.shape.heads % tensor == 0 and trainer.gpus % (2 * trainer.gpus_per_sequence) == 0
        if divides and tensor <= trainer.gpus_per_node:
            yield f"{engine}.tensor_model_parallel_size", str(tensor), run.with_trainer(tensor_parallel=tensor)
        stages = 2 * trainer.pipeline_parallel
        if run.shape.layers % stages == 0 and trainer.gpus % (2 * trainer.gpus_per_sequence) == 0:
            yield f"{engine}.pipeline_model_parallel_size", str(stages), run.with_trainer(pipeline_parallel=stages)
        if run.shape.experts and trainer.gpus % (2 * trainer.expert_parallel * trainer.pipeline_parallel) == 0:
            experts = 2 * trainer.expert_parallel
            yield f"{engine}.expert_model_parallel_size", str(experts), run.with_trainer(expert_parallel=experts)
        return
    if trainer.shards < trainer.gpus:
        yield f"{engine}.fsdp_size", "-1", run.with_trainer(shards=trainer.gpus)
    sequence = 2 * trainer.sequence_parallel
    if trainer.gpus % sequence == 0 and run.shape.heads % sequence == 0 and not trainer.pads_sequences:
        least = math.ceil(run.batch.longest / sequence)
        halved = {
            "sequence_parallel": sequence,
            "update_tokens": max(least, trainer.update_tokens // 2),
            "log_prob_tokens": max(least, trainer.log_prob_tokens // 2),
        }
        # The token budget is per GPU, so it shrinks only as far as it was one longest sequence.
        if trainer.update_sequences is None and trainer.update_tokens > run.batch.longest // trainer.sequence_parallel:
            halved |= {"update_tokens": trainer.update_tokens, "log_prob_tokens": trainer.log_prob_tokens}
        yield f"{_ACTOR}.ulysses_sequence_parallel_size", str(sequence), run.with_trainer(**halved)
    if trainer.engine == "fsdp2" and not trainer.stays_offloaded:
        yield f"{engine}.offload_policy", "true", run.with_trainer(stays_offloaded=True)
