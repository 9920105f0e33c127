"""What of a training run decides its memory and its time."""

from dataclasses import dataclass, replace
from typing import Literal

from cfpo_verl.plan.shapes import ModelShape

Engine = Literal["fsdp", "fsdp2", "megatron"]


@dataclass(frozen=True)
class Trainer:
    """The side that computes probabilities and updates the weights.

    Args:
        engine: verl's training engine.
        gpus: GPUs of all machines together.
        gpus_per_node: GPUs of one machine.
        shards: FSDP: GPUs that hold one copy of weights, gradients and optimiser between them.
        sequence_parallel: FSDP: GPUs that share each sequence (Ulysses).
        tensor_parallel: Megatron: GPUs that share each matrix, and with it the activations of norms.
        pipeline_parallel: Megatron: stages of layers.
        context_parallel: Megatron: GPUs that share each sequence.
        expert_parallel: Megatron: GPUs that share the experts of a layer.
        distributed_optimizer: Megatron: whether data-parallel ranks share the optimiser.
        weight_bytes: Bytes of a stored parameter; FSDP keeps gradients and both moments in the same type.
        compute_bytes: Bytes of a value in forward and backward passes.
        recompute: Whether layers keep their input only and are computed again in the backward pass.
        param_offload: Weights and gradients leave the GPU outside of training phases.
        optimizer_offload: The optimiser leaves the GPU outside of training phases.
        stays_offloaded: FSDP2's offload_policy: weights, gradients and optimiser live in the machine's memory.
        update_tokens: Tokens of the largest micro-batch of an update, on one GPU.
        log_prob_tokens: The same for a pass that computes probabilities only.
        update_sequences: Sequences of a micro-batch of an update if their number is fixed; None if tokens decide.
        log_prob_sequences: The same for probabilities only.
        fused_kernels: Whether logits are never held as a whole.
        scales_logits: Whether the temperature is not 1, which copies the logits.
        entropy_in_update: Whether the update computes the entropy too.
        entropy_chunk_tokens: Tokens whose entropy is computed at once; None for all.
        compiled_entropy: FSDP: whether torch.compile fuses the entropy.
        recomputes_old_log_prob: Whether a pass computes the old probabilities (not in bypass mode).
        reference: Whether a reference policy is evaluated. FSDP always keeps it in the machine's memory.
        reference_offload: Megatron: whether it leaves the GPU when it is not evaluated.
        pads_sequences: Whether each sequence is padded to the longest of its micro-batch.
    """

    engine: Engine
    gpus: int
    gpus_per_node: int
    shards: int = 1
    sequence_parallel: int = 1
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    context_parallel: int = 1
    expert_parallel: int = 1
    distributed_optimizer: bool = True
    weight_bytes: int = 4
    compute_bytes: int = 2
    recompute: bool = True
    param_offload: bool = False
    optimizer_offload: bool = False
    stays_offloaded: bool = False
    update_tokens: int = 16384
    log_prob_tokens: int = 16384
    update_sequences: int | None = None
    log_prob_sequences: int | None = None
    fused_kernels: bool = False
    scales_logits: bool = False
    entropy_in_update: bool = False
    entropy_chunk_tokens: int | None = None
    compiled_entropy: bool = True
    recomputes_old_log_prob: bool = True
    reference: bool = False
    reference_offload: bool = False
    pads_sequences: bool = False

    @property
    def is_megatron(self) -> bool:
        """Whether Megatron trains."""
        return self.engine == "megatron"

    @property
    def gpus_per_sequence(self) -> int:
        """GPUs that work on the same sequences."""
        return self.sequence_parallel * self.tensor_parallel * self.pipeline_parallel * self.context_parallel

    @property
    def data_parallel(self) -> int:
        """Groups of GPUs that work on sequences of their own."""
        return self.gpus // self.gpus_per_sequence


@dataclass(frozen=True)
class Rollout:
    """The inference engine.

    Args:
        gpus: GPUs of all engines together.
        gpus_per_node: GPUs of one machine.
        colocated: Whether the engines sit on the trainer's GPUs and take turns with it.
        tensor_parallel: GPUs of one engine (pipeline stages included).
        memory_share: Share of a GPU's memory that an engine takes (gpu_memory_utilization).
        sleeps: Whether an engine gives its memory back while the trainer works (free_cache_engine).
        value_bytes: Bytes of a weight, and of a key or value.
        max_sequences: Sequences that an engine works on at once, at most.
        kv_cache_gb: Size of the cache where it is not what is left of memory_share (CPU); None otherwise.
    """

    gpus: int
    gpus_per_node: int
    colocated: bool = True
    tensor_parallel: int = 1
    memory_share: float = 0.5
    sleeps: bool = True
    value_bytes: int = 2
    max_sequences: int = 256
    kv_cache_gb: float | None = None


@dataclass(frozen=True)
class Batch:
    """The work of a step.

    Args:
        prompts: Prompts of a step.
        responses_per_prompt: Responses to each.
        mini_batch_prompts: Prompts of an optimiser step.
        epochs: How often each response is used.
        prompt_tokens: Mean length of a prompt.
        response_tokens: Mean length of a response.
        max_prompt_tokens: Longest prompt.
        max_response_tokens: Longest response.
        limit_share: Share of responses that run into max_response_tokens (verl's response_length/clip_ratio).
        steps: Steps of the run; None if unknown.
    """

    prompts: int
    responses_per_prompt: int
    mini_batch_prompts: int
    epochs: int
    prompt_tokens: float
    response_tokens: float
    max_prompt_tokens: int
    max_response_tokens: int
    limit_share: float = 0.01
    steps: int | None = None

    @property
    def responses(self) -> int:
        """Responses of a step."""
        return self.prompts * self.responses_per_prompt

    @property
    def optimizer_steps(self) -> int:
        """Optimiser steps of a step of the trainer."""
        return self.epochs * max(1, self.prompts // self.mini_batch_prompts)

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return self.max_prompt_tokens + self.max_response_tokens

    @property
    def sequence_tokens(self) -> float:
        """Mean tokens of a sequence."""
        return self.prompt_tokens + self.response_tokens

    @property
    def tokens(self) -> float:
        """Tokens of a step, prompts included."""
        return self.responses * self.sequence_tokens


@dataclass(frozen=True)
class Run:
    """A training run: model, trainer, inference engine, work."""

    shape: ModelShape
    trainer: Trainer
    rollout: Rollout
    batch: Batch

    def with_trainer(self, **changes: object) -> "Run":
        """Return the run with some of the trainer's settings changed."""
        return replace(self, trainer=replace(self.trainer, **changes))  # type: ignore[arg-type]

    def with_rollout(self, **changes: object) -> "Run":
        """Return the run with some of the inference engine's settings changed."""
        return replace(self, rollout=replace(self.rollout, **changes))  # type: ignore[arg-type]

    def on_gpus(self, gpus: int) -> "Run":
        """Return the run on another number of GPUs in all, shares of trainer and engines as they are.

        FSDP shards over all GPUs if it did, else over as many as before.
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
        """GPUs of trainer and engines together."""
        return self.trainer.gpus if self.rollout.colocated else self.trainer.gpus + self.rollout.gpus
