"""One rank of verl's FSDP2 engine on the CPU: the gradients of every loss and aggregation, whatever the cut.

    python fsdp_rank.py MODEL_DIR OUT.pt MICRO_BATCHES...       (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT set)

Writes {(loss, aggregation, number of micro-batches): (loss, whole gradient)} from rank 0.
"""

import sys

import torch
import verl  # noqa: F401  loads the plugin
from verl.utils import tensordict_utils as tu
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.config import HFModelConfig
from verl.workers.engine import EngineRegistry
from verl_batches import AGGREGATIONS, LOSSES, compose, loss_function, make_batch, part_of


def build_engine(model_dir: str):
    actor = omega_conf_to_dataclass(compose().actor_rollout_ref.actor)
    engine = EngineRegistry.new(
        model_type="language_model",
        backend="fsdp2",
        model_config=HFModelConfig(
            path=model_dir, use_remove_padding=False, override_config={"attn_implementation": "eager"}
        ),
        engine_config=actor.engine,
        optimizer_config=actor.optim,
        checkpoint_config=actor.checkpoint,
    )
    engine.initialize()
    return engine


def measure(engine, policy_loss: str, loss_agg_mode: str, micro_batches: int) -> tuple[float, torch.Tensor]:
    ranks = torch.distributed.get_world_size()
    whole = make_batch()
    data = part_of(whole, ranks, torch.distributed.get_rank())
    tu.assign_non_tensor(
        data,
        use_dynamic_bsz=False,
        micro_batch_size_per_gpu=len(data) // micro_batches,
        global_batch_size=len(whole),
        temperature=1.0,
        use_remove_padding=False,
        use_fused_kernels=False,
        calculate_entropy=False,
    )
    engine.optimizer_zero_grad()
    output = engine.forward_backward_batch(data, loss_function(policy_loss, loss_agg_mode))
    loss = torch.tensor(sum(output["loss"]))
    torch.distributed.all_reduce(loss, op=torch.distributed.ReduceOp.SUM)
    gradient = torch.cat([parameter.grad.full_tensor().flatten() for parameter in engine.module.parameters()])
    return loss.item() / ranks, gradient


def main(model_dir: str, out: str, *micro_batches: str) -> None:
    torch.distributed.init_process_group("gloo")
    engine = build_engine(model_dir)
    with engine.train_mode():
        found = {
            (policy_loss, loss_agg_mode, int(count)): measure(engine, policy_loss, loss_agg_mode, int(count))
            for policy_loss in [*LOSSES, "vanilla"]
            for loss_agg_mode in AGGREGATIONS
            for count in micro_batches
        }
    if torch.distributed.get_rank() == 0:
        torch.save(found, out)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
