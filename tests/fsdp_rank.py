"""One rank of verl's FSDP2 engine on the CPU: the gradients of every loss and aggregation, whatever the cut.

    python fsdp_rank.py MODEL_DIR OUT.pt MICRO_BATCHES...       (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT set)

Writes {(loss, aggregation, number of micro-batches): (loss, whole gradient)} from rank 0, and under "left out" what
optimiser steps on a batch do of which a part is left out because it is not finite, see `leave_out`.
"""

import sys

import torch
import verl  # noqa: F401  loads the plugin
from verl.utils import tensordict_utils as tu
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.config import HFModelConfig
from verl.workers.engine import EngineRegistry
from verl_batches import AGGREGATIONS, LOSSES, compose, loss_function, make_batch, nested, part_of


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


def parameters(engine) -> torch.Tensor:
    return torch.cat([parameter.full_tensor().detach().flatten() for parameter in engine.module.parameters()]).clone()


def leave_out(engine) -> dict[str, object]:
    """Take steps on two micro-batches per rank, of which one on the last rank is left out.

    Returns:
        The gradient without it ("data"), the one that is expected ("expected"), whether each of three steps changed a
        parameter ("moved": NaN in the data, in the model, and a sound batch), and how many are NaN after each ("nan").
    """
    ranks, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    function = loss_function("cfpo", "token-mean", "actor_rollout_ref.actor.policy_loss.non_finite=skip")
    whole = make_batch()

    def step(take: bool, advantages: float | None = None) -> torch.Tensor:
        data = part_of(whole, ranks, rank)
        rows = [row.clone() for row in data["advantages"].unbind()]
        if advantages is not None and rank == ranks - 1:
            for row in rows[len(rows) // 2 :]:
                row.fill_(advantages)
        data["advantages"] = nested(rows)
        tu.assign_non_tensor(
            data,
            use_dynamic_bsz=False,
            micro_batch_size_per_gpu=len(data) // 2,
            global_batch_size=len(whole),
            temperature=1.0,
            use_remove_padding=False,
            use_fused_kernels=False,
            calculate_entropy=False,
        )
        before = parameters(engine)
        engine.optimizer_zero_grad()
        engine.forward_backward_batch(data, function)
        gradient = torch.cat([parameter.grad.full_tensor().flatten() for parameter in engine.module.parameters()])
        if take:
            engine.optimizer_step()
            engine.lr_scheduler_step()
            after = parameters(engine)
            moved.append(bool((after != before)[before.isfinite()].any()))
            nan.append(int((~after.isfinite()).sum()))
        return gradient

    moved: list[bool] = []
    nan: list[int] = []
    engine.lr_scheduler_step()  # the learning rate of the first step is 0 with a warm-up
    # Without advantages a response has neither surrogate nor penalty.
    expected = step(take=False, advantages=0.0)
    found = step(take=True, advantages=float("nan"))
    weight = engine.module.get_output_embeddings().weight
    with torch.no_grad():
        local = weight.to_local()
        kept = local.clone()
        if rank == 0:
            local[0, 0] = float("nan")
    step(take=True)
    with torch.no_grad():
        local.copy_(kept)
    step(take=True)
    return {"data": found, "expected": expected, "moved": moved, "nan": nan}


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
        found["left out"] = leave_out(engine)
    if torch.distributed.get_rank() == 0:
        torch.save(found, out)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
