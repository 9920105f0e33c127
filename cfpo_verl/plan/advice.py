"""The first setting to change when a run does not fit."""

import math
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace

from cfpo_verl.plan.hardware import Gpu
from cfpo_verl.plan.memory import kv_cache_gb, kv_tokens, phases
from cfpo_verl.plan.run import Run

_ACTOR = "actor_rollout_ref.actor"
_ROLLOUT = "actor_rollout_ref.rollout"


@dataclass(frozen=True)
class Advice:
    """A setting to change.

    Args:
        key: Config key.
        value: Its new value.
        is_enough: Whether the run fits after the change.
        run: The run after the change.
    """

    key: str
    value: str
    is_enough: bool
    run: Run

    def __str__(self) -> str:
        """Return the change as an override, quoted for a shell."""
        return shlex.quote(f"{self.key}={self.value}") + ("" if self.is_enough else " (not enough alone)")


def overshoot_gb(run: Run, gpu: Gpu) -> float:
    """Return the missing GB, summed over the phases and the cache of a longest sequence; 0 if the run fits."""
    over = sum(max(0.0, phase.total_gb - gpu.memory_gb) for phase in phases(run, gpu))
    missing_tokens = max(0.0, run.batch.longest - kv_tokens(run, gpu))
    per_token_gb = run.shape.kv_bytes_per_token(run.rollout.value_bytes) / run.rollout.tensor_parallel / 1e9
    return over + missing_tokens * per_token_gb + max(0.0, -kv_cache_gb(run, gpu))


def first_change(run: Run, gpu: Gpu) -> Advice | None:
    """Return the first change that makes the run fit, or else the one that helps most; None if the run fits.

    Changes are tried one at a time, in order of the training time they cost.
    """
    before = overshoot_gb(run, gpu)
    if before == 0:
        return None
    best: tuple[float, Advice] | None = None
    for key, value, changed in _changes(run):
        after = overshoot_gb(changed, gpu)
        advice = Advice(key, value, after == 0, changed)
        if advice.is_enough:
            return advice
        if best is None or after < best[0]:
            best = after, advice
    return best[1] if best else None


def _changes(run: Run) -> Iterator[tuple[str, str, Run]]:
    trainer = run.trainer
    engine = f"{_ACTOR}.megatron" if trainer.is_megatron else f"{_ACTOR}.fsdp_config"
    if not trainer.recompute:
        key, value = "actor_rollout_ref.model.enable_gradient_checkpointing", "true"
        if trainer.is_megatron:
            # Megatron rejects recompute_granularity without the other two.
            key = f"{engine}.override_transformer_config"
            value = "{recompute_granularity: full, recompute_method: uniform, recompute_num_layers: 1}"
        yield key, value, run.with_trainer(recompute=True)
    yield from _smaller_micro_batches(run)
    if not trainer.fused_kernels:
        yield "actor_rollout_ref.model.use_fused_kernels", "true", run.with_trainer(fused_kernels=True)
    if run.rollout.colocated and run.rollout.kv_cache_gb is None:
        yield from _other_memory_shares(run)
        if not run.rollout.sleeps:
            yield f"{_ROLLOUT}.free_cache_engine", "true", run.with_rollout(sleeps=True)
        # verl loads both back for every training phase, so they free memory for the engine only.
        if not trainer.optimizer_offload:
            yield f"{engine}.optimizer_offload", "true", run.with_trainer(optimizer_offload=True)
        if not trainer.param_offload:
            yield f"{engine}.param_offload", "true", run.with_trainer(param_offload=True)
    tensor = 2 * run.rollout.tensor_parallel
    if tensor <= min(run.rollout.gpus_per_node, run.rollout.gpus) and run.shape.heads % tensor == 0:
        yield f"{_ROLLOUT}.tensor_model_parallel_size", str(tensor), run.with_rollout(tensor_parallel=tensor)
    yield from _more_sharing(run, engine)
    larger = run.on_gpus(2 * run.gpus)
    if not run.rollout.colocated:
        larger = replace(larger, rollout=run.rollout)
    yield "trainer.nnodes", str(2 * trainer.gpus // trainer.gpus_per_node), larger


def _halvings(value: int, least: int) -> Iterator[int]:
    while value > least:
        value = max(least, value // 2)
        yield value


def _smaller_micro_batches(run: Run) -> Iterator[tuple[str, str, Run]]:
    """Yield halved micro-batches, down to one sequence of maximum length."""
    trainer = run.trainer
    longest = math.ceil(run.batch.longest / (trainer.sequence_parallel * trainer.context_parallel))
    for prefix, phase, tokens, sequences in (
        (f"{_ACTOR}.ppo", "update", trainer.update_tokens, trainer.update_sequences),
        (f"{_ROLLOUT}.log_prob", "log_prob", trainer.log_prob_tokens, trainer.log_prob_sequences),
    ):
        if sequences:
            for fewer in _halvings(sequences, 1):
                changes = {f"{phase}_tokens": tokens * fewer // sequences, f"{phase}_sequences": fewer}
                yield f"{prefix}_micro_batch_size_per_gpu", str(fewer), run.with_trainer(**changes)
        else:
            for fewer in _halvings(tokens, longest):
                yield f"{prefix}_max_token_len_per_gpu", str(fewer), run.with_trainer(**{f"{phase}_tokens": fewer})


def _other_memory_shares(run: Run) -> Iterator[tuple[str, str, Run]]:
    """Yield smaller, then larger memory shares for the engine, in steps of 0.05."""
    for step in (*range(-1, -20, -1), *range(1, 20)):
        value = round(run.rollout.memory_share + step / 20, 2)
        if 0.1 <= value <= 0.9:
            yield f"{_ROLLOUT}.gpu_memory_utilization", str(value), run.with_rollout(memory_share=value)


def _more_sharing(run: Run, engine: str) -> Iterator[tuple[str, str, Run]]:
    """Yield higher degrees of parallelism and sharding."""
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
        before, after = (math.ceil(run.batch.longest / shared) for shared in (trainer.sequence_parallel, sequence))

        def tokens(before_tokens: int, sequences: int | None) -> int:
            if sequences:
                return math.ceil(before_tokens / 2)
            # A token budget is per GPU and does not change, unless a sequence of maximum length exceeded it.
            return after if before_tokens == before else before_tokens

        changes = {
            "sequence_parallel": sequence,
            "update_tokens": tokens(trainer.update_tokens, trainer.update_sequences),
            "log_prob_tokens": tokens(trainer.log_prob_tokens, trainer.log_prob_sequences),
        }
        yield f"{_ACTOR}.ulysses_sequence_parallel_size", str(sequence), run.with_trainer(**changes)
    if trainer.engine == "fsdp2" and not trainer.stays_offloaded:
        yield f"{engine}.offload_policy", "true", run.with_trainer(stays_offloaded=True)
