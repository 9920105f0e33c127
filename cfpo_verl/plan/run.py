"""The settings of a training run that determine its memory and time."""

from dataclasses import dataclass, replace
from typing import Literal

from cfpo_verl.plan.shapes import ModelShape

Engine = Literal["fsdp", "fsdp2", "megatron"]


@dataclass(frozen=True)
class Trainer:
    """The trainer, which computes log-probabilities and updates the weights."""

    engine: Engine
    """verl's training engine."""
    gpus: int
    """Total GPUs."""
    gpus_per_node: int
    """GPUs per node."""
    shards: int = 1
    """FSDP: GPUs over which one copy of weights, gradients and optimiser states is sharded."""
    sequence_parallel: int = 1
    """FSDP: GPUs that share each sequence (Ulysses)."""
    tensor_parallel: int = 1
    """Megatron: GPUs that share each matrix, and the activations of norms."""
    pipeline_parallel: int = 1
    """Megatron: pipeline stages."""
    context_parallel: int = 1
    """Megatron: GPUs that share each sequence."""
    expert_parallel: int = 1
    """Megatron: GPUs that share the experts of a layer."""
    distributed_optimizer: bool = True
    """Megatron: whether data-parallel ranks share the optimiser states."""
    weight_bytes: int = 4
    """Bytes per stored parameter. FSDP keeps gradients and both moments in the same dtype."""
    compute_bytes: int = 2
    """Bytes per value in forward and backward passes."""
    recompute: bool = True
    """Whether activations of layers are recomputed in the backward pass from each layer's input."""
    param_offload: bool = False
    """Whether weights and gradients leave the GPU outside training phases."""
    optimizer_offload: bool = False
    """Whether optimiser states leave the GPU outside training phases."""
    stays_offloaded: bool = False
    """FSDP2's offload_policy: whether weights, gradients and optimiser states live in host memory."""
    update_tokens: int = 16384
    """Tokens per GPU of the largest micro-batch of an update."""
    log_prob_tokens: int = 16384
    """The same for a pass that only computes log-probabilities."""
    update_sequences: int | None = None
    """Sequences per micro-batch of an update if that number is fixed; None with a token budget."""
    log_prob_sequences: int | None = None
    """The same for a pass that only computes log-probabilities."""
    fused_kernels: bool = False
    """Whether the logits are never materialised in full."""
    scales_logits: bool = False
    """Whether the temperature differs from 1, which copies the logits."""
    entropy_in_update: bool = False
    """Whether the update also computes the entropy."""
    entropy_chunk_tokens: int | None = None
    """Tokens per chunk of the entropy; None for all at once."""
    compiled_entropy: bool = True
    """FSDP: whether torch.compile fuses the entropy."""
    recomputes_old_log_prob: bool = True
    """Whether a separate pass computes the old log-probabilities (not in bypass mode)."""
    reference: bool = False
    """Whether there is a reference policy. FSDP always keeps it in host memory."""
    reference_offload: bool = False
    """Megatron: whether the reference leaves the GPU when it is not in use."""
    pads_sequences: bool = False
    """Whether each sequence is padded to the longest of its micro-batch."""

    @property
    def is_megatron(self) -> bool:
        """Whether Megatron trains."""
        return self.engine == "megatron"

    @property
    def gpus_per_sequence(self) -> int:
        """GPUs that process the same sequences."""
        return self.sequence_parallel * self.tensor_parallel * self.pipeline_parallel * self.context_parallel

    @property
    def data_parallel(self) -> int:
        """Number of data-parallel groups."""
        return self.gpus // self.gpus_per_sequence


@dataclass(frozen=True)
class Rollout:
    """The inference engines."""

    gpus: int
    """Total GPUs of all engines."""
    gpus_per_node: int
    """GPUs per node."""
    colocated: bool = True
    """Whether the engines share the trainer's GPUs and take turns with it."""
    tensor_parallel: int = 1
    """GPUs per engine, pipeline stages included."""
    memory_share: float = 0.5
    """Share of a GPU's memory that an engine takes (gpu_memory_utilization)."""
    sleeps: bool = True
    """Whether an engine frees its memory while the trainer works (free_cache_engine)."""
    value_bytes: int = 2
    """Bytes per weight, and per value of the KV cache."""
    max_sequences: int = 256
    """Maximum number of concurrent sequences per engine."""
    kv_cache_gb: float | None = None
    """Size of the KV cache on a CPU; None where it is the rest of memory_share."""


@dataclass(frozen=True)
class Batch:
    """The work of one step."""

    prompts: int
    """Prompts per step."""
    responses_per_prompt: int
    """Responses per prompt."""
    mini_batch_prompts: int
    """Prompts per optimiser step."""
    epochs: int
    """Number of times each response is used."""
    prompt_tokens: float
    """Mean prompt length."""
    response_tokens: float
    """Mean response length."""
    max_prompt_tokens: int
    """Maximum prompt length."""
    max_response_tokens: int
    """Maximum response length."""
    limit_share: float = 0.01
    """Share of responses that reach max_response_tokens (verl's response_length/clip_ratio)."""
    steps: int | None = None
    """Steps of the run; None if unknown."""

    @property
    def responses(self) -> int:
        """Responses per step."""
        return self.prompts * self.responses_per_prompt

    @property
    def optimizer_steps(self) -> int:
        """Optimiser steps per step of the trainer."""
        return self.epochs * max(1, self.prompts // self.mini_batch_prompts)

    @property
    def longest(self) -> int:
        """Maximum length of a sequence."""
        return self.max_prompt_tokens + self.max_response_tokens

    @property
    def sequence_tokens(self) -> float:
        """Mean length of a sequence."""
        return self.prompt_tokens + self.response_tokens

    @property
    def tokens(self) -> float:
        """Tokens per step, prompts included."""
        return self.responses * self.sequence_tokens


@dataclass(frozen=True)
class Run:
    """A training run: model, trainer, inference engines, work per step."""

    shape: ModelShape
    trainer: Trainer
    rollout: Rollout
    batch: Batch

    def with_trainer(self, **changes: object) -> "Run":
        """Return the run with changed settings of the trainer."""
        return replace(self, trainer=replace(self.trainer, **changes))  # type: ignore[arg-type]

    def with_rollout(self, **changes: object) -> "Run":
        """Return the run with changed settings of the inference engines."""
        return replace(self, rollout=replace(self.rollout, **changes))  # type: ignore[arg-type]

    def on_gpus(self, gpus: int) -> "Run":
        """Return the run on another total number of GPUs, split between trainer and engines in the same ratio.

        FSDP keeps its number of shards, unless it shards over all GPUs.
        """
        trainer, rollout = self.trainer, self.rollout
        total = trainer.gpus if rollout.colocated else trainer.gpus + rollout.gpus
        trainer_gpus, rollout_gpus = trainer.gpus * gpus // total, rollout.gpus * gpus // total
        shards = trainer_gpus if trainer.shards == trainer.gpus else min(trainer.shards, trainer_gpus)
        per_node = min(gpus, max(trainer.gpus_per_node, rollout.gpus_per_node))
        return self.with_trainer(gpus=trainer_gpus, shards=shards, gpus_per_node=per_node).with_rollout(
            gpus=rollout_gpus, gpus_per_node=per_node
        )

    @property
    def gpus(self) -> int:
        """Total GPUs of trainer and engines."""
        return self.trainer.gpus if self.rollout.colocated else self.trainer.gpus + self.rollout.gpus
