"""Choices that cannot go together, each refused by name with the reason and the way out.

verl's own validation accepts all of these and fails later, or trains something else. Each rule looks at the composed
config alone; only `missing_packages` looks at what is installed.
"""

from collections.abc import Callable, Iterator
from importlib.util import find_spec

from omegaconf import DictConfig, OmegaConf

# verl's group model_engine decides which keys the nodes of a model have; strategy decides which engine is started.
_STRATEGIES = {
    "dp": ("fsdp", "fsdp2", "fsdp_turbo"),
    "megatron": ("megatron",),
    "torchtitan": ("torchtitan",),
    "veomni": ("veomni",),
}

# Losses of whole responses in verl, for which one aggregation has a meaning.
_RESPONSE_LOSSES = {
    "gspo": "its ratio is that of a whole response, and the paper (arXiv:2507.18071) counts every response the same",
    "sapo": "verl's sapo averages over responses whatever is set, and only reference KL and entropy would change",
}

_MEGATRON_PACKAGES = {
    "megatron.core": "megatron-core",
    "megatron.bridge": "megatron-bridge",
    "transformer_engine": "transformer-engine",
}


def problems(config: DictConfig) -> list[str]:
    """Return what cannot work in a composed config, as sentences. Empty if nothing was found."""
    engine = list(_engine(config))
    # The other rules read keys that only an agreeing engine has.
    return engine or [problem for rule in _RULES for problem in rule(config)]


def _engine(config: DictConfig) -> Iterator[str]:
    expected = _STRATEGIES.get(config.model_engine, ())
    for role in ("actor", "ref"):
        strategy = config.actor_rollout_ref[role].strategy
        if expected and strategy not in expected:
            yield (
                f"model_engine={config.model_engine} does not go with actor_rollout_ref.{role}.strategy={strategy}: "
                "the keys would be those of one engine and the training that of another. Choose with backend=NAME, "
                "which sets both, and leave model_engine and strategy alone"
            )
            return


def _cpu(config: DictConfig) -> Iterator[str]:
    if config.trainer.device != "cpu":
        return
    # `cfpo-verl slurm` takes it out: there Ray has been started on every node.
    starts_ray = OmegaConf.select(config, "ray_kwargs.ray_init.num_gpus") is not None
    if config.trainer.nnodes > 1 and starts_ray:
        yield (
            f"backend=cpu with trainer.nnodes={config.trainer.nnodes}: it starts Ray on this machine alone and would "
            "wait for other nodes for ever. Choose topology=1x1, or run it with `cfpo-verl slurm submit`"
        )
    if config.trainer.v1.trainer_mode == "separate_async":
        yield (
            "backend=cpu with trainer.v1.trainer_mode=separate_async: weights would travel by nccl, which needs GPUs. "
            "Choose updates=x4 or another synchronous file of that group"
        )
    if OmegaConf.select(config, "model_size.megatron.expert_parallel", default=1) > 1:
        yield (
            f"backend=cpu with {config.actor_rollout_ref.model.path}: it has been tried with dense models only, and a "
            "mixture of experts of this size takes hundreds of gigabytes in float32. Choose a policy_model such as "
            "smollm2_135m_instruct"
        )


def _rollout_gpus(config: DictConfig) -> Iterator[str]:
    rollout = config.actor_rollout_ref.rollout
    separate = config.trainer.v1.trainer_mode == "separate_async"
    nodes = rollout.nnodes if separate else config.trainer.nnodes
    per_node = rollout.n_gpus_per_node if separate else config.trainer.n_gpus_per_node
    size = rollout.tensor_model_parallel_size * rollout.data_parallel_size * rollout.pipeline_model_parallel_size
    if (nodes * per_node) % size:
        yield (
            f"one copy of the model for generation takes {size} GPUs (tensor_model_parallel_size and its siblings in "
            f"actor_rollout_ref.rollout), and {nodes} x {per_node} GPUs cannot be divided into such copies. Choose a "
            "larger topology, or a smaller tensor_model_parallel_size"
        )


def _megatron_gpus(config: DictConfig) -> Iterator[str]:
    if config.model_engine != "megatron":
        return
    megatron, gpus = config.actor_rollout_ref.actor.megatron, config.trainer.nnodes * config.trainer.n_gpus_per_node
    pipeline = megatron.pipeline_model_parallel_size
    dense = megatron.tensor_model_parallel_size * pipeline * megatron.context_parallel_size
    # As Megatron counts: experts are spread over what tensor, context and data parallelism leave of a pipeline stage.
    expert_tensor = megatron.expert_tensor_parallel_size or megatron.tensor_model_parallel_size
    experts = megatron.expert_model_parallel_size * expert_tensor * pipeline
    for size, what in ((dense, "tensor x pipeline x context"), (experts, "expert x expert tensor x pipeline")):
        if gpus % size:
            yield (
                f"backend=megatron cuts the model over {size} GPUs ({what} parallel), and "
                f"{config.trainer.nnodes} x {config.trainer.n_gpus_per_node} GPUs cannot be divided into such parts. "
                "Choose a larger topology, or smaller sizes in actor_rollout_ref.actor.megatron"
            )
            return


def _response_losses(config: DictConfig) -> Iterator[str]:
    actor = config.actor_rollout_ref.actor
    reason = _RESPONSE_LOSSES.get(actor.policy_loss.loss_mode)
    if reason and actor.loss_agg_mode != "seq-mean-token-mean":
        yield (
            f"policy_loss={actor.policy_loss.loss_mode} with "
            f"actor_rollout_ref.actor.loss_agg_mode={actor.loss_agg_mode}: {reason}. Leave "
            "loss_agg_mode=seq-mean-token-mean, which that policy_loss sets"
        )


def _dynamic_sampling(config: DictConfig) -> Iterator[str]:
    if not config.algorithm.filter_groups.enable:
        return
    sampler = config.trainer.v1.sampler.custom_sampler
    if not config.trainer.use_v1:
        yield (
            "algorithm.filter_groups.enable=true with trainer.use_v1=false: the older trainer ignores it and would "
            "train on every group. Leave trainer.use_v1=true, or choose an algo without dynamic sampling"
        )
    elif sampler.path and sampler.name:
        yield (
            "algorithm.filter_groups.enable=true with trainer.v1.sampler.custom_sampler: verl leaves the filtering to "
            f"that sampler, and {sampler.name} would keep every group. Set path=null and name=null there"
        )
    if config.actor_rollout_ref.rollout.n < 2:
        yield (
            "algorithm.filter_groups.enable=true with actor_rollout_ref.rollout.n=1: there is no group to compare. "
            "Set actor_rollout_ref.rollout.n to 2 or more"
        )


def _separate_async(config: DictConfig) -> Iterator[str]:
    if not config.trainer.use_v1 or config.trainer.v1.trainer_mode != "separate_async":
        return
    rollout, steps = config.actor_rollout_ref.rollout, config.trainer.v1.separate_async.parameter_sync_step
    mini_batch = config.actor_rollout_ref.actor.ppo_mini_batch_size
    if rollout.nnodes < 1:
        yield (
            "trainer.v1.trainer_mode=separate_async with actor_rollout_ref.rollout.nnodes=0: nothing would generate. "
            "Choose with updates=one_step_off or updates=fully_async, which set it"
        )
    if rollout.checkpoint_engine.backend == "naive":
        yield (
            "trainer.v1.trainer_mode=separate_async with actor_rollout_ref.rollout.checkpoint_engine.backend=naive: "
            "new weights would never reach the nodes that generate. Set it to nccl"
        )
    if config.data.train_batch_size != steps * mini_batch:
        yield (
            f"trainer.v1.trainer_mode=separate_async takes {steps} mini-batches of {mini_batch} prompts between two "
            f"updates of the weights, which is not data.train_batch_size={config.data.train_batch_size}. "
            "Set updates_per_rollout, from which both follow"
        )


def _critic(config: DictConfig) -> Iterator[str]:
    if config.algorithm.adv_estimator == "gae" and config.critic.enable is False:
        yield (
            "algorithm.adv_estimator=gae needs a critic, and the experiments have critic.enable=false. "
            "Choose an algo, or set critic.enable=true"
        )


_RULES: tuple[Callable[[DictConfig], Iterator[str]], ...] = (
    _cpu,
    _rollout_gpus,
    _megatron_gpus,
    _response_losses,
    _dynamic_sampling,
    _separate_async,
    _critic,
)


def missing_packages(config: DictConfig) -> Iterator[str]:
    """Yield what the model engine of a config needs and this environment does not have, as sentences."""
    if config.model_engine != "megatron":
        return
    missing = [package for module, package in _MEGATRON_PACKAGES.items() if not _is_installed(module)]
    if missing:
        yield (
            f"backend=megatron needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed. "
            "Install verl with it (pip install 'verl[megatron,vllm]==0.9.1'), or choose backend=fsdp2"
        )


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # a parent package is missing
        return False
