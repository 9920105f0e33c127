"""Memory of one GPU in GB (10**9 bytes), by part and phase. docs/plan.md has all formulas."""

from dataclasses import dataclass

from cfpo_verl.plan.hardware import Gpu
from cfpo_verl.plan.run import Run, Trainer
from cfpo_verl.plan.shapes import ModelShape

GB = 1e9
# fp32 master weights and both Adam moments of Megatron's optimiser, and its fp32 gradients.
_MEGATRON_OPTIMIZER_BYTES = 12
_MEGATRON_GRADIENT_BYTES = 4
_MEGATRON_WEIGHT_BYTES = 2
_FP32_BYTES = 4


@dataclass(frozen=True)
class Phase:
    """Peak memory of one GPU in one phase.

    Args:
        name: update, log_prob or rollout.
        parts_gb: {part: GB}, without parts of size 0.
    """

    name: str
    parts_gb: dict[str, float]

    @property
    def total_gb(self) -> float:
        """Sum of the parts."""
        return sum(self.parts_gb.values())


@dataclass(frozen=True)
class Stage:
    """Parameters that one GPU computes with: the full model for FSDP, one rank's part for Megatron.

    Args:
        layers: Number of layers; a fraction if the stages do not divide them.
        dense: Parameters outside the experts.
        experts: Parameters of experts.
        has_head: Whether the stage has the output layer.
    """

    layers: float
    dense: float
    experts: float
    has_head: bool

    @property
    def parameters(self) -> float:
        """All parameters of the stage."""
        return self.dense + self.experts


def stages(shape: ModelShape, trainer: Trainer) -> list[Stage]:
    """Return the first and last stage of Megatron's pipeline, each as one GPU holds it; the first has the embedding."""
    tensor, pipeline = trainer.tensor_parallel, trainer.pipeline_parallel
    layers = shape.layers / pipeline
    dense = layers * (shape.layer_parameters - shape.expert_parameters) / tensor
    experts = layers * shape.expert_parameters / trainer.expert_parallel
    table = shape.embedding_parameters / tensor
    if pipeline == 1:
        return [Stage(layers, dense + table * (1 if shape.tied_embeddings else 2), experts, True)]
    # With tied embeddings, the first and the last stage each hold a copy.
    first, last = Stage(layers, dense + table, experts, False), Stage(layers, dense + table, experts, True)
    return [first, last]


def layer_activation_bytes(shape: ModelShape, value_bytes: int) -> int:
    """Return the bytes that autograd saves for one token in one layer of the transformers implementation.

    Counted tensor by tensor with flash or sdpa attention (which save q, k, v, the output and a log-sum-exp per head):
    the inputs of both norms in fp32, their normalised values and outputs; of the MLP, gate, up, activated gate and
    product. For dense models this equals what saved_tensors_hooks count, to the byte (tests/test_plan_torch.py).
    """
    norms = 2 * (_FP32_BYTES * shape.hidden + 2 * value_bytes * shape.hidden + _FP32_BYTES)
    attention = 2 * value_bytes * (shape.q_width + shape.kv_width) + _FP32_BYTES * shape.heads
    if shape.qk_norm:
        attention += (_FP32_BYTES + value_bytes) * (shape.q_width + shape.kv_width)
        attention += _FP32_BYTES * (shape.heads + shape.kv_heads)
    mlp = 4 * value_bytes * shape.intermediate
    if shape.experts:
        # Our estimate: gathering an expert's tokens and weighting its output each add a copy of the hidden state.
        mlp = shape.experts_per_token * (mlp + 2 * value_bytes * shape.hidden) + _FP32_BYTES * shape.experts
    return norms + attention + mlp


def megatron_layer_activation_bytes(shape: ModelShape, value_bytes: int) -> int:
    """Return the same for Megatron's fused layers, before division by the tensor-parallel size.

    The 34 * hidden of arXiv:2205.05198, counted for gated MLPs without dropout and with flash attention: input and
    output of both norms, q, k, v and the output of attention, the fused gate and up, and their product.
    """
    mlp = 3 * value_bytes * shape.intermediate
    if shape.experts:
        mlp = shape.experts_per_token * (mlp + 2 * value_bytes * shape.hidden) + _FP32_BYTES * shape.experts
    attention = 2 * value_bytes * (shape.q_width + shape.kv_width) + _FP32_BYTES * shape.heads
    return 4 * value_bytes * shape.hidden + attention + mlp


def logit_bytes(trainer: Trainer, with_gradient: bool) -> int:
    """Return the peak bytes per logit, counted in the source of verl 0.9.1.

    FSDP: the logits in the compute dtype, and a copy if the temperature is not 1. flash-attn's cross-entropy replaces
    them by their gradient in place unless the entropy is computed too. Megatron: logits in bf16, an fp32 copy that
    becomes the softmax, and the gradient. The entropy needs softmax, product and gradients unless chunked or compiled.
    """
    if trainer.fused_kernels:
        return 0
    value = trainer.compute_bytes
    entropy = trainer.entropy_in_update if with_gradient else True
    if trainer.is_megatron:
        copies = 2 * value if entropy else 0  # a clone, and the softmax of the entropy
        if entropy and trainer.entropy_chunk_tokens:
            copies = value
        return value + _FP32_BYTES + copies + (value if with_gradient else 0)
    total = value * (2 if trainer.scales_logits else 1)
    if with_gradient and entropy:
        total += 2 * value if trainer.entropy_chunk_tokens else 4 * value
    elif entropy and not (trainer.compiled_entropy or trainer.entropy_chunk_tokens):
        total += 2 * value
    return total


def _logits(shape: ModelShape, trainer: Trainer, tokens: int, with_gradient: bool) -> float:
    total = tokens * shape.vocabulary * logit_bytes(trainer, with_gradient)
    entropy = trainer.entropy_in_update or not with_gradient
    if entropy and trainer.entropy_chunk_tokens and not trainer.fused_kernels:
        # One chunk in fp32, its softmax and their product.
        total += min(tokens, trainer.entropy_chunk_tokens) * shape.vocabulary * 3 * _FP32_BYTES
    return total / trainer.tensor_parallel


def _gathered(shape: ModelShape, trainer: Trainer, with_gradient: bool) -> float:
    """Return the bytes FSDP gathers: embeddings, two layers, and one unit's gradient with its fp32 copy."""
    if trainer.shards == 1 and trainer.weight_bytes == trainer.compute_bytes:
        return 0
    tables = shape.embedding_parameters * (1 if shape.tied_embeddings else 2)
    weights = trainer.compute_bytes * (tables + 2 * shape.layer_parameters)
    if not with_gradient:
        return weights
    return weights + (trainer.compute_bytes + _FP32_BYTES) * max(tables, shape.layer_parameters)


def _activations(shape: ModelShape, trainer: Trainer, stage: Stage, tokens: int, micro_batches: int) -> float:
    """Return the bytes of activations of all micro-batches in flight, and of one recomputed layer if there is one."""
    per_layer = (megatron_layer_activation_bytes if trainer.is_megatron else layer_activation_bytes)(
        shape, trainer.compute_bytes
    )
    kept = trainer.compute_bytes * shape.hidden if trainer.recompute else per_layer
    # 1F1B: the first stage has as many micro-batches in flight as there are stages, the last stage has one.
    in_flight = 1 if stage.has_head else min(trainer.pipeline_parallel, micro_batches)
    total = in_flight * stage.layers * kept + (per_layer if trainer.recompute else 0)
    return tokens * total / trainer.tensor_parallel


def _resident(shape: ModelShape, trainer: Trainer, stage: Stage) -> dict[str, float]:
    """Return the bytes of weights, gradients and optimiser states on one GPU during training."""
    if trainer.stays_offloaded:
        return {"weights": 0, "gradients": 0, "optimizer": 0}
    if not trainer.is_megatron:
        # ZeRO stage 3 (arXiv:1910.02054): all states are sharded.
        share = shape.parameters * trainer.weight_bytes / trainer.shards
        return {"weights": share, "gradients": share, "optimizer": 2 * share}
    ranks = trainer.gpus // (trainer.tensor_parallel * trainer.pipeline_parallel)
    expert_ranks = trainer.gpus // (trainer.expert_parallel * trainer.pipeline_parallel)
    optimizer = _MEGATRON_OPTIMIZER_BYTES * stage.parameters
    if trainer.distributed_optimizer:
        optimizer = _MEGATRON_OPTIMIZER_BYTES * (stage.dense / ranks + stage.experts / expert_ranks)
    return {
        "weights": _MEGATRON_WEIGHT_BYTES * stage.parameters,
        "gradients": _MEGATRON_GRADIENT_BYTES * stage.parameters,
        "optimizer": optimizer,
    }


def kv_cache_gb(run: Run, gpu: Gpu) -> float:
    """Return the GB of one GPU that are left for the KV cache; negative if the weights do not fit."""
    rollout = run.rollout
    if rollout.kv_cache_gb is not None:
        return rollout.kv_cache_gb
    return rollout.memory_share * gpu.memory_gb - engine_weights_gb(run) - gpu.engine_reserved_gb


def engine_weights_gb(run: Run) -> float:
    """Return the GB of an inference engine's weights on one GPU."""
    return run.shape.parameters * run.rollout.value_bytes / run.rollout.tensor_parallel / GB


def kv_tokens(run: Run, gpu: Gpu) -> float:
    """Return the number of tokens that fit into an engine's KV cache."""
    shared_by = min(run.rollout.tensor_parallel, run.shape.kv_heads)
    per_token = run.shape.kv_bytes_per_token(run.rollout.value_bytes) / shared_by
    return max(0.0, kv_cache_gb(run, gpu)) * GB / per_token


def _engine(run: Run, gpu: Gpu) -> dict[str, float]:
    if run.rollout.kv_cache_gb is not None:
        return {"engine weights": engine_weights_gb(run), "kv cache": run.rollout.kv_cache_gb}
    return {
        "engine weights": engine_weights_gb(run),
        "kv cache": max(0.0, kv_cache_gb(run, gpu)),
        "engine reserve": gpu.engine_reserved_gb,
    }


def micro_batches(run: Run) -> int:
    """Return the number of micro-batches per optimiser step in one data-parallel group."""
    trainer, batch = run.trainer, run.batch
    sequences = max(1.0, batch.mini_batch_prompts * batch.responses_per_prompt / trainer.data_parallel)
    return _micro_batches(sequences, batch.sequence_tokens, trainer, trainer.update_sequences, trainer.update_tokens)


def log_prob_micro_batches(run: Run) -> int:
    """Return the number of micro-batches of one pass over the full batch."""
    trainer, batch = run.trainer, run.batch
    sequences = max(1.0, batch.responses / trainer.data_parallel)
    limit = trainer.log_prob_sequences
    return _micro_batches(sequences, batch.sequence_tokens, trainer, limit, trainer.log_prob_tokens)


def _micro_batches(sequences: float, length: float, trainer: Trainer, limit: int | None, tokens: int) -> int:
    if limit:
        return max(1, -int(-sequences // limit))
    return max(1, -int(-sequences * length // (tokens * trainer.sequence_parallel * trainer.context_parallel)))


def phases(run: Run, gpu: Gpu) -> list[Phase]:
    """Return the peak memory of each phase of a step, for the GPU that needs most."""
    shape, trainer, rollout = run.shape, run.trainer, run.rollout
    found = []
    full_model = [Stage(shape.layers, shape.parameters, 0, True)]
    for name, tokens, with_gradient in (
        ("update", trainer.update_tokens, True),
        ("log_prob", trainer.log_prob_tokens, False),
    ):
        candidates = []
        for stage in stages(shape, trainer) if trainer.is_megatron else full_model:
            parts = _resident(shape, trainer, stage)
            if not with_gradient:
                parts["gradients"] = 0
                if trainer.optimizer_offload:
                    parts["optimizer"] = 0
            if not trainer.is_megatron:
                parts["gathered"] = _gathered(shape, trainer, with_gradient)
            if with_gradient:
                parts["activations"] = _activations(shape, trainer, stage, tokens, micro_batches(run))
            else:
                # Without gradients, only one layer's tensors exist at a time.
                per_layer = layer_activation_bytes(shape, trainer.compute_bytes)
                parts["activations"] = tokens * per_layer / trainer.tensor_parallel
            if stage.has_head:
                parts["logits"] = _logits(shape, trainer, tokens, with_gradient)
            if trainer.is_megatron and trainer.reference and not trainer.reference_offload:
                parts["reference"] = _MEGATRON_WEIGHT_BYTES * stage.parameters
            parts_gb = {part: size / GB for part, size in parts.items()}
            if rollout.colocated and not rollout.sleeps:
                parts_gb |= _engine(run, gpu)
            candidates.append(_phase(name, parts_gb, gpu))
        found.append(max(candidates, key=lambda phase: phase.total_gb))
    return [*found, _rollout(run, gpu, full_model)]


def _rollout(run: Run, gpu: Gpu, full_model: list[Stage]) -> Phase:
    trainer = run.trainer
    parts: dict[str, float] = {}
    if run.rollout.colocated:
        candidates = stages(run.shape, trainer) if trainer.is_megatron else full_model
        stage = max(candidates, key=lambda each: each.parameters)
        resident = _resident(run.shape, trainer, stage)
        if not trainer.param_offload:
            parts["weights"] = resident["weights"] / GB
            if trainer.is_megatron:
                # Megatron's gradient buffer is freed only by offloading.
                parts["gradients"] = resident["gradients"] / GB
        if trainer.is_megatron and trainer.reference and not trainer.reference_offload:
            parts["reference"] = _MEGATRON_WEIGHT_BYTES * stage.parameters / GB
        if not trainer.optimizer_offload:
            parts["optimizer"] = resident["optimizer"] / GB
    return _phase("rollout", {**parts, **_engine(run, gpu)}, gpu)


def _phase(name: str, parts_gb: dict[str, float], gpu: Gpu) -> Phase:
    return Phase(name, {part: size for part, size in {**parts_gb, "reserve": gpu.reserved_gb}.items() if size})
