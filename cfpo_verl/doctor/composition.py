"""Checks of the config as a whole: its values can be computed, engine and strategy agree, a CPU can run it."""

import re
from collections.abc import Iterator

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cfpo_verl.demands import generates_separately, ray_counts
from cfpo_verl.doctor.finding import Finding, failed, failed_with

# verl's config group model_engine decides which keys a model's node has; strategy decides which engine is started.
_STRATEGIES = {
    "dp": ("fsdp", "fsdp2", "fsdp_turbo"),
    "megatron": ("megatron",),
    "torchtitan": ("torchtitan",),
    "veomni": ("veomni",),
}


def check_values(config: DictConfig) -> Iterator[Finding]:
    """Check that every value that is computed from others can be."""
    try:
        OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        reason = re.sub(r"^\w+ raised while resolving interpolation: ", "", str(error.msg).splitlines()[0])
        value = OmegaConf.to_container(error.parent_node, resolve=False)[error.key]  # type: ignore[index]
        found = f"{error.full_key}={value} cannot be computed: {reason}"
        if ". " in reason:  # one of our resolvers, which names a way out
            yield failed_with(found)
        else:
            yield failed(found, "Correct it or a key that it refers to; --cfg job shows the config")


def check_engine(config: DictConfig) -> Iterator[Finding]:
    """Check that the strategies are those of the model engine. verl's own validation accepts any."""
    expected = _STRATEGIES.get(config.model_engine, ())
    for role in ("actor", "ref"):
        strategy = config.actor_rollout_ref[role].strategy
        if expected and strategy not in expected:
            yield failed(
                f"model_engine={config.model_engine} does not go with actor_rollout_ref.{role}.strategy={strategy}: "
                "the config would have the keys of one engine, and another would train",
                "Choose with backend=NAME, which sets both, and leave model_engine and strategy alone",
            )
            return


def check_one_machine(config: DictConfig) -> Iterator[Finding]:
    """Check that a config for one machine, or for its CPU, asks for nothing that it cannot do."""
    counts = ray_counts(config)
    if config.trainer.nnodes > 1 and counts:
        # `cfpo-verl slurm` and `cfpo-verl k8s` unset them: there Ray has been started on every node.
        yield failed(
            f"trainer.nnodes={config.trainer.nnodes}, but ray_kwargs.ray_init sets {' and '.join(counts)} (as "
            "backend=cpu does), which starts Ray on one machine only: the run would wait for the other nodes forever",
            "Choose topology=1x1, or submit the run with `cfpo-verl slurm submit`",
        )
    if config.trainer.device != "cpu":
        return
    if generates_separately(config):
        yield failed(
            "backend=cpu with trainer.v1.trainer_mode=separate_async: the weights would be sent by NCCL, which needs "
            "GPUs",
            "Choose updates=x4 or another synchronous file of that group",
        )
    if OmegaConf.select(config, "model_size.megatron.expert_parallel", default=1) > 1:
        yield failed(
            f"backend=cpu with {config.actor_rollout_ref.model.path}: only dense models have been tried on a CPU, and "
            "a mixture of experts of this size takes hundreds of gigabytes in float32",
            "Choose a policy_model such as smollm2_135m_instruct",
        )
