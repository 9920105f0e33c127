"""Time of a step, by phase. docs/plan.md has all formulas."""

import math
from dataclasses import dataclass
from functools import cached_property

from cfpo_verl.plan.hardware import Gpu
from cfpo_verl.plan.memory import kv_tokens, log_prob_micro_batches, micro_batches
from cfpo_verl.plan.run import Batch, Run
from cfpo_verl.plan.shapes import ModelShape

# Points of the numerical integration over the shrinking batch at the end of generation.
_DRAIN_POINTS = 200


@dataclass(frozen=True)
class StepTime:
    """Seconds of each phase of a step."""

    generation_s: float
    old_log_prob_s: float
    ref_log_prob_s: float
    update_s: float
    weight_sync_s: float
    overlaps: bool = False

    @property
    def training_s(self) -> float:
        """All phases except generation and weight synchronisation."""
        return self.old_log_prob_s + self.ref_log_prob_s + self.update_s

    @property
    def total_s(self) -> float:
        """The step: the sum if trainer and engines take turns, the longer side if they overlap."""
        if self.overlaps:
            return max(self.generation_s, self.training_s) + self.weight_sync_s
        return self.generation_s + self.training_s + self.weight_sync_s

    def phases_s(self) -> dict[str, float]:
        """Return {phase: seconds}."""
        return {
            "generation": self.generation_s,
            "old log-probabilities": self.old_log_prob_s,
            "reference log-probabilities": self.ref_log_prob_s,
            "update": self.update_s,
            "weight sync": self.weight_sync_s,
        }


def step_time(run: Run, gpu: Gpu) -> StepTime:
    """Return the estimated seconds of a step."""
    log_prob_s = _log_prob(run, gpu)
    return StepTime(
        generation_s=generation(run, gpu),
        old_log_prob_s=log_prob_s if run.trainer.recomputes_old_log_prob else 0.0,
        ref_log_prob_s=log_prob_s if run.trainer.reference else 0.0,
        update_s=_update(run, gpu),
        weight_sync_s=_weight_sync(run, gpu),
        overlaps=not run.rollout.colocated,
    )


@dataclass(frozen=True)
class Lengths:
    """Distribution of response lengths: a share reaches the limit, the others are exponential below it. Our choice.

    Args:
        mean: Mean length of all responses, in tokens.
        limit: Length limit in tokens.
        limit_share: Share of responses at the limit in addition to the exponential.
    """

    mean: float
    limit: float
    limit_share: float

    @property
    def share(self) -> float:
        """Return limit_share, capped so that the others contribute at least half of the mean."""
        return min(self.limit_share, self.mean / (2 * self.limit))

    @cached_property
    def scale(self) -> float:
        """Return the mean of the exponential before truncation at the limit, by bisection."""
        others = (self.mean - self.share * self.limit) / (1 - self.share)
        low, high = others / 2, 1e6 * self.limit
        for _ in range(200):
            middle = math.sqrt(low * high)
            low, high = (middle, high) if self._cut_mean(middle) < others else (low, middle)
        return high

    def _cut_mean(self, scale: float) -> float:
        return scale * -math.expm1(-self.limit / scale)

    def longer_than(self, tokens: float) -> float:
        """Return the share of responses longer than a number of tokens below the limit."""
        return self.share + (1 - self.share) * math.exp(-tokens / self.scale)


def squared_lengths(batch: Batch) -> float:
    """Return the mean of length**2 over the sequences of a batch, prompts included."""
    lengths = Lengths(batch.response_tokens, batch.max_response_tokens, batch.limit_share)
    # E[(p + r)**2] = p**2 + 2 p E[r] + E[r**2], and E[r**2] = integral of 2 k P(r > k).
    points, width = _DRAIN_POINTS, batch.max_response_tokens / _DRAIN_POINTS
    second = sum(2 * (i + 0.5) * width * lengths.longer_than((i + 0.5) * width) * width for i in range(points))
    return batch.prompt_tokens**2 + 2 * batch.prompt_tokens * batch.response_tokens + second


def _flops(run: Run) -> tuple[float, float]:
    """Return the operations and the tokens of a forward pass over the batch, padding included."""
    batch = run.batch
    if run.trainer.pads_sequences:
        tokens = batch.responses * batch.longest
        return run.shape.forward_flops(tokens, tokens * batch.longest), tokens
    return run.shape.forward_flops(batch.tokens, batch.responses * squared_lengths(batch)), batch.tokens


def _compute(run: Run, gpu: Gpu, forward_passes: float) -> float:
    """Return the seconds of arithmetic for `forward_passes` passes over the batch on the trainer's GPUs."""
    efficiency = gpu.expert_efficiency if run.shape.experts else gpu.matmul_efficiency
    flops, _tokens = _flops(run)
    # With fewer sequences than data-parallel groups, some groups idle.
    busy = min(1.0, run.batch.responses / run.trainer.data_parallel)
    return forward_passes * flops / (run.trainer.gpus * busy * gpu.peak_tflops * 1e12 * efficiency)


def _fsdp_traffic_s(run: Run, gpu: Gpu, bytes_per_parameter: float) -> float:
    """Return the seconds of a ring collective over all parameters: each GPU moves (n - 1) / n of the bytes."""
    trainer = run.trainer
    if trainer.is_megatron or trainer.shards == 1:
        return 0.0
    share = (trainer.shards - 1) / trainer.shards
    link = gpu.link_bytes_s(trainer.shards <= trainer.gpus_per_node)
    return bytes_per_parameter * run.shape.parameters * share / link


def _tensor_parallel_s(run: Run, gpu: Gpu, passes: float) -> float:
    """Return the seconds of Megatron's tensor- and expert-parallel communication in `passes` passes over the batch.

    Two all-reduces of the hidden state per layer and pass (arXiv:1909.08053), each of 2 (n - 1) / n of its bytes; the
    volume is the same with sequence parallelism. Experts: the tokens of a GPU are sent to their experts and back.
    """
    trainer, shape = run.trainer, run.shape
    if not trainer.is_megatron:
        return 0.0
    _operations, batch_tokens = _flops(run)
    tokens = batch_tokens / trainer.data_parallel / trainer.context_parallel
    layers = shape.layers / trainer.pipeline_parallel
    hidden_bytes = tokens * shape.hidden * trainer.compute_bytes * layers
    tensor, expert = trainer.tensor_parallel, trainer.expert_parallel
    seconds = 4 * hidden_bytes * (tensor - 1) / tensor / gpu.link_bytes_s(tensor <= trainer.gpus_per_node)
    if expert > 1:
        volume = 2 * hidden_bytes * shape.experts_per_token * (expert - 1) / expert / tensor
        seconds += volume / gpu.link_bytes_s(expert <= trainer.gpus_per_node)
    return passes * seconds


def _bubble(run: Run, micro_batch_count: int) -> float:
    """Return the factor of the pipeline bubble: 1 + (stages - 1) / micro-batches (arXiv:2104.04473)."""
    return 1 + (run.trainer.pipeline_parallel - 1) / micro_batch_count


def _log_prob(run: Run, gpu: Gpu) -> float:
    count = log_prob_micro_batches(run)
    arithmetic = (_compute(run, gpu, 1) + _tensor_parallel_s(run, gpu, 1)) * _bubble(run, count)
    traffic = count * _fsdp_traffic_s(run, gpu, run.trainer.compute_bytes)
    return max(arithmetic, traffic) + count * gpu.micro_batch_overhead_s


def _update(run: Run, gpu: Gpu) -> float:
    trainer, batch = run.trainer, run.batch
    per_step = micro_batches(run)
    count = per_step * batch.optimizer_steps
    # A backward pass costs two forward passes, recomputation one more.
    passes = batch.epochs * (4 if trainer.recompute else 3)
    arithmetic = (_compute(run, gpu, passes) + _tensor_parallel_s(run, gpu, passes)) * _bubble(run, per_step)
    # Weights are gathered for the forward and for the backward pass; gradients are reduce-scattered in fp32.
    traffic = count * _fsdp_traffic_s(run, gpu, 2 * trainer.compute_bytes + 4)
    overheads = count * gpu.micro_batch_overhead_s + batch.optimizer_steps * _optimizer_s(run, gpu)
    return max(arithmetic, traffic) + overheads + _offload_s(run, gpu)


def _parameters_per_gpu(run: Run) -> float:
    trainer = run.trainer
    if trainer.is_megatron:
        return run.shape.parameters / trainer.gpus * (1 if trainer.distributed_optimizer else trainer.data_parallel)
    return run.shape.parameters / trainer.shards


def _optimizer_s(run: Run, gpu: Gpu) -> float:
    """Return the seconds to read weights, gradients and both moments, and to write all but the gradients."""
    trainer = run.trainer
    parameters = _parameters_per_gpu(run)
    seconds = 7 * trainer.weight_bytes * parameters / (gpu.memory_gb_s * 1e9 * gpu.bandwidth_efficiency)
    if trainer.is_megatron and trainer.data_parallel > 1:
        # fp32 gradients are reduce-scattered and bf16 weights gathered once per optimiser step.
        share = run.shape.parameters / (trainer.tensor_parallel * trainer.pipeline_parallel * trainer.expert_parallel)
        seconds += 6 * share / gpu.link_bytes_s(trainer.gpus <= trainer.gpus_per_node)
    return seconds


def _offload_s(run: Run, gpu: Gpu) -> float:
    """Return the seconds to load weights and optimiser states from host memory and write them back."""
    trainer = run.trainer
    size = trainer.weight_bytes * _parameters_per_gpu(run)
    moved = 2 * size * (trainer.param_offload + 2 * trainer.optimizer_offload)
    return moved / (gpu.host_gb_s * 1e9)


def _weight_sync(run: Run, gpu: Gpu) -> float:
    """Return the seconds to send the weights to all engines: gathered in their stored dtype, then copied."""
    trainer, rollout = run.trainer, run.rollout
    stored = run.shape.parameters * (2 if trainer.is_megatron else trainer.weight_bytes)
    share = (trainer.gpus - 1) / trainer.gpus
    gathering = share * stored / gpu.link_bytes_s(trainer.gpus <= trainer.gpus_per_node)
    copying = run.shape.parameters * rollout.value_bytes / (gpu.memory_gb_s * 1e9 * gpu.bandwidth_efficiency)
    return gathering + copying + gpu.weight_sync_overhead_s


def decode_step_s(shape: ModelShape, run: Run, gpu: Gpu, sequences: float, context_tokens: float) -> float:
    """Return the seconds of one decoding step of an engine.

    A roofline: the larger of the time to read the active weights and the KV cache of all contexts once and the time
    of the arithmetic, plus communication and a constant overhead.

    Args:
        shape: The model.
        run: The run; its engine is used.
        gpu: GPU type of the engine.
        sequences: Sequences in the step.
        context_tokens: Mean context length in tokens.
    """
    rollout = run.rollout
    weights = shape.parameters - shape.layers * shape.expert_parameters
    if shape.experts:
        # Expected share of experts used by at least one token, with uniform routing.
        touched = 1 - (1 - shape.experts_per_token / shape.experts) ** sequences
        weights += shape.layers * shape.expert_parameters * touched
    if not shape.tied_embeddings:
        weights -= shape.embedding_parameters
    shared_by = min(rollout.tensor_parallel, shape.kv_heads)
    read = weights * rollout.value_bytes / rollout.tensor_parallel
    read += sequences * context_tokens * shape.kv_bytes_per_token(rollout.value_bytes) / shared_by
    # 4 * q_width operations per context token: scores and weighted values.
    flops = sequences * (shape.forward_flops(1, 0) + 4 * shape.layers * shape.q_width * context_tokens)
    reading = read / (gpu.memory_gb_s * 1e9 * gpu.bandwidth_efficiency)
    arithmetic = flops / (rollout.tensor_parallel * gpu.peak_tflops * 1e12 * gpu.inference_efficiency)
    # Two all-reduces of the hidden state per layer.
    exchanged = 4 * shape.layers * sequences * shape.hidden * rollout.value_bytes
    exchange = exchanged * (rollout.tensor_parallel - 1) / rollout.tensor_parallel
    exchanging = exchange / gpu.link_bytes_s(rollout.tensor_parallel <= rollout.gpus_per_node)
    return max(reading, arithmetic) + exchanging + gpu.decode_step_overhead_s


def concurrency(run: Run, gpu: Gpu) -> float:
    """Return the number of concurrent sequences of an engine: its limit, or what its KV cache holds at mean length."""
    # On average, a sequence is halfway through its response.
    held = run.batch.prompt_tokens + run.batch.response_tokens / 2
    return max(1.0, min(run.rollout.max_sequences, kv_tokens(run, gpu) / held))


def generation(run: Run, gpu: Gpu) -> float:
    """Return the seconds in which the engines generate all responses.

    While responses wait, an engine runs at its full concurrency. Then it drains: fewer and fewer sequences are left
    until the last one on any engine ends. Response lengths are distributed as in `Lengths`.
    """
    shape, rollout, batch = run.shape, run.rollout, run.batch
    engines = rollout.gpus / rollout.tensor_parallel
    waiting = max(1.0, batch.responses / engines)
    at_once = min(waiting, concurrency(run, gpu))
    lengths = Lengths(batch.response_tokens, batch.max_response_tokens, batch.limit_share)
    middle = batch.prompt_tokens + batch.response_tokens / 2
    full = (waiting - at_once) * batch.response_tokens / at_once * decode_step_s(shape, run, gpu, at_once, middle)
    drain, width = 0.0, batch.max_response_tokens / _DRAIN_POINTS
    for i in range(_DRAIN_POINTS):
        tokens = (i + 0.5) * width
        left = lengths.longer_than(tokens)
        # Probability that any response of the step is this long, so that one engine is still busy.
        any_left = -math.expm1(batch.responses * math.log1p(-left)) if left < 1 else 1.0
        step = decode_step_s(shape, run, gpu, max(1.0, at_once * left), batch.prompt_tokens + tokens)
        drain += any_left * width * step
    prefill_flops = waiting * shape.forward_flops(batch.prompt_tokens, batch.prompt_tokens**2)
    prefill = prefill_flops / (rollout.tensor_parallel * gpu.peak_tflops * 1e12 * gpu.inference_efficiency)
    return prefill + full + drain + waiting * gpu.request_overhead_s
