"""Read the settings of a run from a composed verl config."""

from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cfpo_verl.demands import (
    data_files,
    generates_separately,
    generation_nodes,
    has_critic,
    has_lora,
    has_reference,
    trainer_nodes,
    worker_variables,
)
from cfpo_verl.errors import first_line
from cfpo_verl.files import reading
from cfpo_verl.plan.errors import PlanError
from cfpo_verl.plan.run import Batch, Engine, Rollout, Run, Trainer
from cfpo_verl.plan.shapes import shape_of

_BYTES = {"fp32": 4, "float32": 4, "bf16": 2, "bfloat16": 2, "fp16": 2, "float16": 2}
# vLLM's default for VLLM_CPU_KVCACHE_SPACE, in GiB.
_CPU_KV_CACHE_GIB = "4"
# What the estimate multiplies or divides by.
_COUNTS = (
    "data.train_batch_size",
    "data.max_prompt_length",
    "data.max_response_length",
    "actor_rollout_ref.actor.ppo_mini_batch_size",
    "actor_rollout_ref.actor.ppo_epochs",
    "actor_rollout_ref.rollout.n",
    "actor_rollout_ref.rollout.max_num_seqs",
    "actor_rollout_ref.rollout.tensor_model_parallel_size",
    "actor_rollout_ref.rollout.pipeline_model_parallel_size",
)
_DEFAULT_RESPONSE_TOKENS = 2048
_DEFAULT_PROMPT_TOKENS = 256


def read_run(
    config: DictConfig,
    response_tokens: float | None = None,
    prompt_tokens: float | None = None,
    limit_share: float = 0.01,
) -> Run:
    """Return the settings that determine a run's memory and time.

    Args:
        config: A composed config of verl's ppo_trainer.
        response_tokens: Mean response length; half of the maximum, but at most 2048, if None.
        prompt_tokens: Mean prompt length; half of the maximum, but at most 256, if None.
        limit_share: Share of responses that reach the length limit.

    Raises:
        PlanError: If plan does not support the config, or its parallel sizes do not divide the GPUs.
    """
    try:
        shape = shape_of(str(config.actor_rollout_ref.model.path))
        _check_covered(config)
        batch = _batch(config, response_tokens, prompt_tokens, limit_share)
        run = Run(shape, _trainer(config, batch), _rollout(config), batch)
    except OmegaConfBaseException as error:
        raise PlanError(f"{error.full_key}: {first_line(error)}") from error
    _check_division(run)
    return run


def _check_covered(config: DictConfig) -> None:
    for key in _COUNTS:
        value = OmegaConf.select(config, key, throw_on_missing=True)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise PlanError(f"{key}={value!r}: must be an integer of at least 1")
    actor = config.actor_rollout_ref.actor
    if actor.strategy not in ("fsdp", "fsdp2", "megatron"):
        raise PlanError(
            f"actor_rollout_ref.actor.strategy={actor.strategy} is not supported by plan. Choose one of: fsdp, fsdp2, "
            "megatron"
        )
    if has_critic(config):
        raise PlanError(
            f"algorithm.adv_estimator={config.algorithm.adv_estimator} trains a critic, which plan does not estimate. "
            "Choose one without, for example algorithm.adv_estimator=grpo"
        )
    if has_lora(config):
        raise PlanError(
            "LoRA is not supported by plan. Set actor_rollout_ref.model.lora_rank=0 and lora_adapter_path=null to plan "
            "full fine-tuning"
        )


def _check_division(run: Run) -> None:
    trainer, rollout = run.trainer, run.rollout
    if trainer.gpus % trainer.gpus_per_sequence:
        keys = (
            "tensor, pipeline and context parallel sizes" if trainer.is_megatron else "ulysses_sequence_parallel_size"
        )
        raise PlanError(
            f"{trainer.gpus} GPUs are not a multiple of {trainer.gpus_per_sequence}, the product of the actor's "
            f"{keys}. Change trainer.nnodes, trainer.n_gpus_per_node or these sizes"
        )
    if rollout.gpus % rollout.tensor_parallel:
        raise PlanError(
            f"{rollout.gpus} GPUs are not a multiple of the {rollout.tensor_parallel} of one inference engine. "
            "Change actor_rollout_ref.rollout.tensor_model_parallel_size"
        )
    if not trainer.is_megatron and trainer.gpus % trainer.shards:
        raise PlanError(
            f"actor_rollout_ref.actor.fsdp_config.fsdp_size={trainer.shards} does not divide {trainer.gpus} GPUs. "
            "Choose a divisor, or -1 for all"
        )


def _rows(config: DictConfig) -> int | None:
    """Return the number of rows in the training files, None unless all are local parquet files."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    paths = [Path(str(file)).expanduser() for file in data_files(config, "train_files")]
    if not all(path.is_file() and path.suffix == ".parquet" for path in paths):
        return None
    rows = 0
    for path in paths:
        try:
            with reading(path):
                rows += pq.read_metadata(path).num_rows
        except pa.ArrowInvalid as error:
            raise PlanError(f"data.train_files: {path}: not a parquet file ({first_line(error)})") from error
    return rows


def _batch(config: DictConfig, response_tokens: float | None, prompt_tokens: float | None, limit_share: float) -> Batch:
    data, actor = config.data, config.actor_rollout_ref.actor
    steps = config.trainer.total_training_steps
    if steps is None and (rows := _rows(config)) is not None:
        steps = config.trainer.total_epochs * (rows // data.train_batch_size)
    for name, value, longest in (
        ("--response-tokens", response_tokens, data.max_response_length),
        ("--prompt-tokens", prompt_tokens, data.max_prompt_length),
    ):
        if value is not None and not 0 < value <= longest:
            raise PlanError(f"{name} must be above 0 and at most {longest}, the maximum in the config, got {value:g}")
    if not 0 <= limit_share < 1:
        raise PlanError(f"--limit-share must be at least 0 and below 1, got {limit_share}")
    return Batch(
        prompts=data.train_batch_size,
        responses_per_prompt=config.actor_rollout_ref.rollout.n,
        mini_batch_prompts=actor.ppo_mini_batch_size,
        epochs=actor.ppo_epochs,
        prompt_tokens=prompt_tokens or min(_DEFAULT_PROMPT_TOKENS, data.max_prompt_length / 2),
        response_tokens=response_tokens or min(_DEFAULT_RESPONSE_TOKENS, data.max_response_length / 2),
        max_prompt_tokens=data.max_prompt_length,
        max_response_tokens=data.max_response_length,
        limit_share=limit_share,
        steps=steps,
    )


def _micro_batch(
    dynamic: bool, budget: int | None, sequences: int | None, longest: int, shared_by: int
) -> tuple[int, int | None]:
    """Return the tokens per GPU of the largest micro-batch, and its number of sequences if that is fixed."""
    if dynamic:
        # verl puts a sequence longer than the budget into its own micro-batch.
        return max(int(budget or 0), -(-longest // shared_by)), None
    if not sequences:
        raise PlanError(
            "neither a token budget nor a micro-batch size is set. Set actor_rollout_ref.actor.use_dynamic_bsz=true, "
            "or actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu and "
            "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu"
        )
    return -(-sequences * longest // shared_by), sequences


def _trainer(config: DictConfig, batch: Batch) -> Trainer:
    actor, rollout, model = (
        config.actor_rollout_ref.actor,
        config.actor_rollout_ref.rollout,
        config.actor_rollout_ref.model,
    )
    gpus = trainer_nodes(config).gpus
    settings: dict[str, Any] = _megatron(actor.megatron) if actor.strategy == "megatron" else _fsdp(actor, gpus)
    shared_by = settings.get("sequence_parallel", 1) * settings.get("context_parallel", 1)
    update_tokens, update_sequences = _micro_batch(
        actor.use_dynamic_bsz,
        actor.ppo_max_token_len_per_gpu,
        actor.ppo_micro_batch_size_per_gpu,
        batch.longest,
        shared_by,
    )
    log_prob_tokens, log_prob_sequences = _micro_batch(
        rollout.log_prob_use_dynamic_bsz,
        rollout.log_prob_max_token_len_per_gpu,
        rollout.log_prob_micro_batch_size_per_gpu,
        batch.longest,
        shared_by,
    )
    engine = actor.megatron if actor.strategy == "megatron" else actor.fsdp_config
    bypass = OmegaConf.select(config, "algorithm.rollout_correction.bypass_mode", default=False)
    if actor.strategy != "megatron":
        settings["recompute"] = model.enable_gradient_checkpointing
    return Trainer(
        engine=cast(Engine, actor.strategy),
        gpus=gpus,
        gpus_per_node=config.trainer.n_gpus_per_node,
        param_offload=engine.param_offload,
        optimizer_offload=engine.optimizer_offload,
        update_tokens=update_tokens,
        log_prob_tokens=log_prob_tokens,
        update_sequences=update_sequences,
        log_prob_sequences=log_prob_sequences,
        fused_kernels=model.use_fused_kernels,
        scales_logits=rollout.temperature != 1.0,
        entropy_in_update=actor.calculate_entropy or actor.entropy_coeff != 0,
        entropy_chunk_tokens=(
            engine.entropy_from_logits_chunk_size if engine.entropy_from_logits_with_chunking else None
        ),
        recomputes_old_log_prob=not bypass,
        reference_offload=bool(OmegaConf.select(config, "actor_rollout_ref.ref.megatron.param_offload", default=False)),
        reference=has_reference(config),
        pads_sequences=not model.use_remove_padding,
        **settings,
    )


def _width(key: str, dtype: str) -> int:
    """Return the bytes per value of a dtype."""
    if dtype not in _BYTES:
        raise PlanError(f"{key}={dtype} is not supported by plan. Choose one of: {', '.join(_BYTES)}")
    return _BYTES[dtype]


def _fsdp(actor: DictConfig, gpus: int) -> dict[str, Any]:
    engine = actor.fsdp_config
    precision = engine.get("mixed_precision") or {}
    return {
        # As create_device_mesh in verl.workers.engine.fsdp.utils.
        "shards": gpus if engine.fsdp_size < 0 or engine.fsdp_size >= gpus else engine.fsdp_size,
        "sequence_parallel": actor.ulysses_sequence_parallel_size,
        "weight_bytes": _width("actor_rollout_ref.actor.fsdp_config.model_dtype", engine.model_dtype or "fp32"),
        "compute_bytes": _width(
            "actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype", precision.get("param_dtype", "bf16")
        ),
        "stays_offloaded": bool(engine.offload_policy) and actor.strategy == "fsdp2",
        "compiled_entropy": engine.use_torch_compile,
    }


def _megatron(engine: DictConfig) -> dict[str, Any]:
    return {
        "tensor_parallel": engine.tensor_model_parallel_size,
        "pipeline_parallel": engine.pipeline_model_parallel_size,
        "context_parallel": engine.context_parallel_size,
        "expert_parallel": engine.expert_model_parallel_size,
        "distributed_optimizer": engine.use_distributed_optimizer,
        "weight_bytes": 4,
        "recompute": engine.override_transformer_config.get("recompute_granularity") == "full",
    }


def _rollout(config: DictConfig) -> Rollout:
    rollout, trainer = config.actor_rollout_ref.rollout, config.trainer
    nodes = generation_nodes(config)
    kv_cache_gib = worker_variables(config).get("VLLM_CPU_KVCACHE_SPACE", _CPU_KV_CACHE_GIB)
    return Rollout(
        gpus=nodes.gpus,
        gpus_per_node=nodes.gpus_per_node,
        colocated=not generates_separately(config),
        tensor_parallel=rollout.tensor_model_parallel_size * rollout.pipeline_model_parallel_size,
        memory_share=rollout.gpu_memory_utilization,
        sleeps=rollout.free_cache_engine,
        value_bytes=_width("actor_rollout_ref.rollout.dtype", rollout.dtype),
        max_sequences=rollout.max_num_seqs,
        kv_cache_gb=float(kv_cache_gib) * 2**30 / 1e9 if trainer.device == "cpu" else None,
    )
