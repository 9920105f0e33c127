"""One rank of a job that saves checkpoints with verl's own manager, and loads each one into every other model.

    python checkpoint_rank.py MODEL_DIR OUT_DIR      (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT set)

Leaves OUT_DIR/<name>/global_step_1/actor, and what verl said in OUT_DIR/loaded.json: {saved: {wanted: ""}}, or verl's
error. verl's engine does not run FSDP1 without a GPU, so the models are sharded here, in both versions as it does.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import verl  # noqa: F401  loads the plugin
from peft import LoraConfig, get_peft_model
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from transformers import AutoModelForCausalLM, AutoTokenizer
from verl.utils.checkpoint.fsdp_checkpoint_manager import FSDPCheckpointManager
from verl.utils.fsdp_utils import get_fsdp_wrap_policy

ALL = ("model", "optimizer", "extra")


@dataclass(frozen=True)
class Case:
    """A model as it is saved, and as a run would load it."""

    version: int = 2
    contents: tuple[str, ...] = ALL
    rank: int = 0
    alpha: int = 16


CASES = {
    "fsdp2": Case(),
    "fsdp1": Case(version=1),
    "fsdp2_hf_model": Case(contents=(*ALL, "hf_model")),
    "fsdp2_weights": Case(contents=("model",)),
    "fsdp1_weights": Case(version=1, contents=("model",)),
    "fsdp2_rank_4": Case(rank=4),
    "fsdp2_rank_8": Case(rank=8),
    "fsdp2_alpha_32": Case(rank=4, alpha=32),
}


def build(model_dir: str, case: Case) -> FSDPCheckpointManager:
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32, attn_implementation="eager")
    if case.rank:
        model = get_peft_model(model, LoraConfig(r=case.rank, lora_alpha=case.alpha, target_modules="all-linear"))
    if case.version == 1:
        policy = get_fsdp_wrap_policy(model)
        model = FullyShardedDataParallel(
            model, auto_wrap_policy=policy, device_mesh=mesh, device_id=torch.device("cpu")
        )
    else:
        for layer in [part for part in model.modules() if type(part).__name__ == "Qwen2DecoderLayer"]:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-3)
    return FSDPCheckpointManager(
        model=model,
        optimizer=optimizer,
        lr_scheduler=torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _step: 1.0),
        processing_class=AutoTokenizer.from_pretrained(model_dir),
        checkpoint_config={"save_contents": list(case.contents), "load_contents": list(case.contents)},
    )


def take_a_step(manager: FSDPCheckpointManager) -> None:
    manager.model(input_ids=torch.arange(8)[None]).logits.pow(2).mean().backward()
    manager.optimizer.step()
    manager.optimizer.zero_grad()


def answer(manager: FSDPCheckpointManager) -> torch.Tensor:
    """Return the logits of one prompt: they tell whether it is the same policy, whatever the sharding."""
    with torch.no_grad():
        return manager.model(input_ids=torch.arange(8)[None]).logits.clone()


def why_not_loaded(manager: FSDPCheckpointManager, folder: Path, expected: torch.Tensor) -> str:
    try:
        manager.load_checkpoint(str(folder))
        if not torch.allclose(answer(manager), expected, atol=1e-6):
            return "another policy"
        take_a_step(manager)
    except (RuntimeError, ValueError, AssertionError, FileNotFoundError, KeyError) as error:
        return f"{type(error).__name__}: {error}"[:200] or "no message"
    return ""


def main(model_dir: str, out: str) -> None:
    torch.distributed.init_process_group("gloo")
    loaded: dict[str, dict[str, str]] = {}
    for saved, case in CASES.items():
        manager = build(model_dir, case)
        take_a_step(manager)
        folder = Path(out, saved, "global_step_1", "actor")
        manager.save_checkpoint(str(folder), global_step=1)
        expected = answer(manager)
        loaded[saved] = {
            name: why_not_loaded(build(model_dir, wanted), folder, expected) for name, wanted in CASES.items()
        }
    if torch.distributed.get_rank() == 0:
        Path(out, "loaded.json").write_text(json.dumps(loaded, indent=1))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
