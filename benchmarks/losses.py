"""Time, memory and host synchronisations of our losses and advantages beside verl's own, in one run.

    python -m benchmarks.losses                         # all sizes that fit, on the CPU and on a GPU if there is one
    python -m benchmarks.losses --shapes 64x4096 --out a.json

Every loss is called as verl's actor calls it, metrics included, and followed by its backward pass. The order of the
losses changes from round to round, and times are medians over the rounds; compare the ratios, not the times.
"""

import json
import random
import statistics
import tempfile
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
import torch
import typer
import verl  # noqa: F401  loads the plugin
from rich.progress import track
from verl.trainer.ppo.core_algos import get_adv_estimator_fn, get_policy_loss_fn
from verl.workers.config import FSDPActorConfig, PolicyLossConfig

from benchmarks.tables import print_rows
from cfpo_verl.config import CfpoLossConfig, CfpoSequenceLossConfig, DrpoLossConfig
from cfpo_verl.files import write_atomically
from cfpo_verl.terminal import App

LOSSES: dict[str, PolicyLossConfig] = {
    "vanilla": PolicyLossConfig(),
    "gspo": PolicyLossConfig(loss_mode="gspo"),
    "sapo": PolicyLossConfig(loss_mode="sapo"),
    "cfpo": CfpoLossConfig(),
    "cfpo, linear tail": CfpoLossConfig(tail="linear"),
    "cfpo_sequence": CfpoSequenceLossConfig(),
    "drpo": DrpoLossConfig(),
}
SHAPES = "8x1024,64x4096,256x8192"
ESTIMATORS = ["grpo", "grpo_vectorized", "rloo", "rloo_vectorized", "cfpo_grpo", "cfpo_dr_grpo", "cfpo_rloo"]
ADVANTAGE_SHAPES = "8192x2048,8192x8192"
# Peak number of batch-sized tensors of the loss that needs most memory, its inputs included.
TENSORS_AT_ONCE = 25


def loss_batch(shape: tuple[int, int], device: str) -> dict[str, torch.Tensor]:
    """Return responses between half and all of T tokens long, with ratios as after an optimiser step or two."""
    responses, tokens = shape
    generator = torch.Generator().manual_seed(0)
    old = -torch.rand(shape, generator=generator) * 3
    lengths = torch.randint(tokens // 2, tokens + 1, (responses, 1), generator=generator)
    batch = {
        "old_log_prob": old,
        "log_prob": old + torch.randn(shape, generator=generator) / 10,
        "advantages": torch.randn(responses, 1, generator=generator).repeat(1, tokens),
        "response_mask": torch.arange(tokens) < lengths,
    }
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    batch["log_prob"].requires_grad_()
    return batch


def loss_step(policy_loss: PolicyLossConfig, batch: dict[str, torch.Tensor]) -> Callable[[], Any]:
    """Return a function that makes one forward and backward pass, as verl's actor does."""
    config = FSDPActorConfig(
        strategy="fsdp2", rollout_n=1, ppo_micro_batch_size_per_gpu=1, policy_loss=policy_loss, use_torch_compile=False
    )
    config.global_batch_info.update(
        dp_size=1, batch_num_tokens=int(batch["response_mask"].sum()), global_batch_size=len(batch["response_mask"])
    )
    function = get_policy_loss_fn(policy_loss.loss_mode)

    def step() -> None:
        batch["log_prob"].grad = None
        loss, _metrics = function(**batch, loss_agg_mode="seq-mean-token-mean", config=config, rollout_is_weights=None)
        loss.backward()

    return step


def advantage_step(name: str, shape: tuple[int, int]) -> Callable[[], Any]:
    """Return a function that estimates advantages as verl's trainer does: groups of 8 with random string ids."""
    responses, tokens = shape
    lengths = torch.randint(tokens // 2, tokens + 1, (responses,), generator=torch.Generator().manual_seed(0))
    rewards = torch.zeros(shape)
    rewards[torch.arange(responses), lengths - 1] = (torch.arange(responses) % 3 == 0).float()
    mask = (torch.arange(tokens) < lengths.unsqueeze(1)).long()
    uids = np.repeat(np.array([str(uuid.uuid4()) for _ in range(responses // 8)], dtype=object), 8)
    function = get_adv_estimator_fn(name)
    return lambda: function(token_level_rewards=rewards, response_mask=mask, index=uids)


def median_times_s(steps: dict[str, Callable[[], Any]], budget_s: float, device: str) -> dict[str, float]:
    """Run the steps in turns for about `budget_s` seconds, at least five rounds, and return the median of each."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    times: dict[str, list[float]] = {name: [] for name in steps}
    names, shuffler = list(steps), random.Random(0)
    for _ in range(2):
        for step in steps.values():
            step()
    end = time.perf_counter() + budget_s
    while time.perf_counter() < end or len(times[names[0]]) < 5:
        shuffler.shuffle(names)
        for name in names:
            wait()
            start = time.perf_counter()
            steps[name]()
            wait()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def peak_extra_bytes(step: Callable[[], Any], device: str) -> int:
    """Return the most that torch held during a step beyond what it held before."""
    if device == "cuda":
        step()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    with tempfile.TemporaryDirectory() as folder:
        profile.export_chrome_trace(f"{folder}/trace.json")
        events = json.loads(Path(folder, "trace.json").read_text())["traceEvents"]
    changes = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event.get("name") == "[memory]")
    held = np.cumsum([change for _time, change in changes])
    return int(held.max())


@contextmanager
def counting_synchronisations(device: str) -> Iterator[list[str]]:
    """Collect what makes the host wait for values of a tensor."""
    found: list[str] = []
    if device == "cuda":
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            yield found
            torch.cuda.set_sync_debug_mode("default")
            found += [str(warning.message) for warning in caught if "synchroniz" in str(warning.message)]
        return
    # A fake at the edge: a CPU never waits. These are the calls that would.
    originals = {name: getattr(torch.Tensor, name) for name in ("item", "tolist", "__bool__", "__float__", "__int__")}

    def counted(name: str) -> Callable[..., Any]:
        def call(self: torch.Tensor, *arguments: Any) -> Any:
            found.append(name)
            return originals[name](self, *arguments)

        return call

    for name in originals:
        setattr(torch.Tensor, name, counted(name))
    try:
        yield found
    finally:
        for name, original in originals.items():
            setattr(torch.Tensor, name, original)


def fits(shape: tuple[int, int], device: str) -> bool:
    """Return whether a batch of that shape leaves memory to spare."""
    free = torch.cuda.mem_get_info()[0] if device == "cuda" else psutil.virtual_memory().available
    return shape[0] * shape[1] * 4 * TENSORS_AT_ONCE < 0.8 * free


def measure_losses(shape: tuple[int, int], device: str, budget_s: float) -> list[dict[str, Any]]:
    """Return one row per loss."""
    batch = loss_batch(shape, device)
    steps = {name: loss_step(policy_loss, batch) for name, policy_loss in LOSSES.items()}
    times = median_times_s(steps, budget_s, device)
    peaks = {name: peak_extra_bytes(step, device) for name, step in steps.items()}
    rows = []
    for name, step in steps.items():
        with counting_synchronisations(device) as synchronisations:
            step()
        rows.append(
            {
                "loss": name,
                "shape": "x".join(map(str, shape)),
                "device": device,
                "time_ms": times[name] * 1e3,
                "time_ratio": times[name] / times["vanilla"],
                "peak_extra_mb": peaks[name] / 2**20,
                "memory_ratio": peaks[name] / peaks["vanilla"],
                "synchronisations": len(synchronisations),
            }
        )
    return rows


def measure_advantages(shape: tuple[int, int], budget_s: float) -> list[dict[str, Any]]:
    """Return one row per estimator, with the time relative to the faster of verl's two of its kind."""
    times = median_times_s({name: advantage_step(name, shape) for name in ESTIMATORS}, budget_s, "cpu")
    rows = []
    for name in ESTIMATORS:
        kind = "rloo" if "rloo" in name else "grpo"
        peer = min(times[kind], times[f"{kind}_vectorized"])
        rows.append(
            {
                "estimator": name,
                "shape": "x".join(map(str, shape)),
                "time_ms": times[name] * 1e3,
                "time_ratio": times[name] / peer,
            }
        )
    return rows


def shape_of(text: str) -> tuple[int, int]:
    """Parse 64x4096."""
    responses, _x, tokens = text.partition("x")
    if not (responses.isdigit() and tokens.isdigit() and int(responses) and int(tokens)):
        raise typer.BadParameter(f"a shape is RESPONSESxTOKENS, for example 64x4096, got {text!r}")
    return int(responses), int(tokens)


def shapes_of(text: str) -> list[tuple[int, int]]:
    """Parse 64x4096,8x1024; an empty text is an empty list.

    Raises:
        typer.BadParameter: If a shape is not RESPONSESxTOKENS.
    """
    return [shape_of(shape) for shape in text.split(",") if shape]


app = App()


@app.command()
def _main(
    shapes: Annotated[str, typer.Option(help="Batches of the losses, comma-separated; none if empty.")] = SHAPES,
    advantage_shapes: Annotated[
        str, typer.Option(help="Batches of the advantages, comma-separated; none if empty.")
    ] = ADVANTAGE_SHAPES,
    seconds: Annotated[float, typer.Option(help="Time for each shape, in seconds.")] = 10,
    out: Annotated[Path, typer.Option(help="JSON file to write.")] = Path("benchmarks/losses.json"),
) -> None:
    """Measure time, memory and host synchronisations of our losses and advantages beside verl's own.

    A shape is RESPONSESxTOKENS, for example 64x4096. Shapes that do not fit into memory are left out.
    """
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    work = [(shape, device) for device in devices for shape in shapes_of(shapes)]
    losses = []
    for shape, device in track(work, description="losses"):
        if not fits(shape, device):
            print(f"{shape[0]}x{shape[1]} left out on {device}: not enough memory")
            continue
        losses += measure_losses(shape, device, seconds)
    advantages = []
    for shape in track(shapes_of(advantage_shapes), description="advantages"):
        advantages += measure_advantages(shape, seconds)
    if losses:
        print_rows(losses, "losses: forward, metrics and backward")
    if advantages:
        print_rows(advantages, "advantages")
    write_atomically(
        out,
        json.dumps(
            {
                "torch": torch.__version__,
                "threads": torch.get_num_threads(),
                "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
                "losses": losses,
                "advantages": advantages,
            },
            indent=1,
        ),
    )
    print(out)


if __name__ == "__main__":
    app()
