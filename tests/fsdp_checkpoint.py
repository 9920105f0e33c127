"""One rank of a job that writes a checkpoint of FSDP2 as verl's engine does.

python fsdp_checkpoint.py MODEL_DIR OUT_DIR      (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT set)
"""

import sys

import torch
import verl  # noqa: F401  loads the plugin
from fsdp_rank import build_engine


def main(model_dir: str, out: str) -> None:
    torch.distributed.init_process_group("gloo")
    engine = build_engine(model_dir)
    engine.save_checkpoint(out, global_step=3)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
