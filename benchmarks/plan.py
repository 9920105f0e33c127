"""Compare the estimates of `cfpo-verl plan` with published and measured times and peaks.

    python -m benchmarks.plan    # the tables of docs/plan.md; a test compares the two
    python -m benchmarks.plan --figure docs/plan_scale.png

Nothing is run: each row has the settings that its source gives, and plan estimates the rest, with one set of
efficiencies for all. If a source does not give the mean response length, we use the one at which the update of its
first row is right; that cell tests nothing and is marked with =.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from cfpo_verl.plan.hardware import Gpu, find_gpu
from cfpo_verl.plan.memory import phases
from cfpo_verl.plan.report import draw_scaling
from cfpo_verl.plan.run import Batch, Rollout, Run, Trainer
from cfpo_verl.plan.scale import scale
from cfpo_verl.plan.shapes import shape_of
from cfpo_verl.plan.step_time import step_time
from cfpo_verl.terminal import App

FULLY_ASYNC = "https://github.com/verl-project/verl/blob/main/docs/advance/fully_async.md"
ONE_STEP_OFF = "https://github.com/verl-project/verl/blob/main/docs/advance/one_step_off.md"
NEMO = "https://github.com/NVIDIA-NeMo/RL/blob/main/docs/about/performance-summary.md"
PRIME_RL = "https://github.com/PrimeIntellect-ai/prime-rl/tree/main/benchmarks/baselines"
PERFORMANCE = "performance.md"


@dataclass(frozen=True)
class Published:
    """A published run and its known settings.

    Args:
        name: System, model, setting.
        source: Where the times are from.
        run: Its settings.
        gpu: Its GPU type.
        times_s: {phase of StepTime or total: seconds}; "update and others" stands for a trainer that reports only that.
        peak_gb: Largest memory of a GPU while it trains, if reported.
        fitted: Phase by which the mean length of responses was found, if the source does not give it.
    """

    name: str
    source: str
    run: Run
    gpu: Gpu
    times_s: dict[str, float]
    peak_gb: float | None = None
    fitted: str | None = None


def with_length(run: Run, response_tokens: float) -> Run:
    """Return the run with another mean length of responses."""
    return replace(run, batch=replace(run.batch, response_tokens=response_tokens))


def length_for(run: Run, gpu: Gpu, update_s: float) -> float:
    """Return the mean length of responses at which the update takes so long, by bisection."""
    low, high = 1.0, float(run.batch.max_response_tokens)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if step_time(with_length(run, middle), gpu).update_s < update_s else (low, middle)
    return high


def _dapo(gpus: int, max_response_tokens: int, responses: int, trainer: Trainer, rollout: Rollout) -> Run:
    """Return DAPO on 512 prompts of DAPO-Math-17k; their mean length is our guess, the rest verl's scripts."""
    batch = Batch(
        prompts=512,
        responses_per_prompt=responses,
        mini_batch_prompts=32,
        epochs=1,
        prompt_tokens=128,
        response_tokens=1000,
        max_prompt_tokens=2048,
        max_response_tokens=max_response_tokens,
    )
    return Run(shape_of("Qwen/Qwen2.5-Math-7B"), replace(trainer, gpus=gpus), rollout, batch)


def h20() -> Iterator[Published]:
    """Yield verl's tables for Qwen2.5-Math-7B on H20: synchronous on 16 to 128 GPUs, one step off on 4 + 12."""
    gpu = find_gpu("H20")
    budget = 2 * (2048 + 28672)
    fsdp = Trainer(
        engine="fsdp2",
        gpus=0,
        gpus_per_node=8,
        shards=2,
        sequence_parallel=4,
        param_offload=True,
        optimizer_offload=True,
        update_tokens=budget,
        log_prob_tokens=budget * 3 // 2,
    )
    times = {
        32: {"generation": 357.41, "old log-probabilities": 107.71, "update": 269.80, "total": 790.10},
        64: {"generation": 150.72, "old log-probabilities": 70.26, "update": 133.41, "total": 365.28},
        128: {"generation": 177.85, "old log-probabilities": 53.92, "update": 113.81, "total": 356.30},
    }
    length = 0.0
    for gpus, seconds in times.items():
        rollout = Rollout(gpus=gpus, gpus_per_node=8, tensor_parallel=2, memory_share=0.8)
        run = _dapo(gpus, 28672, 16, fsdp, rollout)
        length = length or length_for(run, gpu, seconds["update"])
        yield Published(
            f"verl sync, Qwen2.5-Math-7B, FSDP2, {gpus} H20",
            FULLY_ASYNC,
            with_length(run, length),
            gpu,
            seconds,
            fitted="update" if gpus == 32 else None,
        )

    # The engine provides the old probabilities. Responses continue across weight updates, which is not modelled.
    streaming = replace(fsdp, param_offload=False, optimizer_offload=False, recomputes_old_log_prob=False)
    for gpus, total_s in ((16, 294.77), (32, 189.26), (64, 150.63)):
        rollout = Rollout(gpus=gpus, gpus_per_node=8, colocated=False, tensor_parallel=2, memory_share=0.8)
        yield Published(
            f"verl fully async, the same, {gpus} + {gpus} H20",
            FULLY_ASYNC,
            with_length(_dapo(gpus, 28672, 16, streaming, rollout), length),
            gpu,
            {"total": total_s},
        )

    fsdp = replace(fsdp, update_tokens=2 * (2048 + 20480), log_prob_tokens=3 * (2048 + 20480))
    megatron = Trainer(
        engine="megatron",
        gpus=0,
        gpus_per_node=8,
        tensor_parallel=2,
        pipeline_parallel=2,
        weight_bytes=4,
        recompute=False,
        param_offload=True,
        optimizer_offload=True,
        update_tokens=2 * (2048 + 8192),
        log_prob_tokens=4 * (2048 + 8192),
        update_sequences=2,
        log_prob_sequences=4,
    )
    rows = {
        "FSDP2": (fsdp, 20480, 12, (321, 88, 286, 749), (458, 108, 337, 520)),
        "Megatron": (megatron, 8192, 16, (207, 119, 344, 699), (501, 120, 347, 566)),
    }
    for engine, (trainer, limit, responses, colocated, one_step_off) in rows.items():
        length = 0.0
        for gpus, engines, seconds in ((16, 0, colocated), (12, 4, one_step_off)):
            rollout = Rollout(
                gpus=engines or gpus, gpus_per_node=8, colocated=not engines, tensor_parallel=2, memory_share=0.8
            )
            # 12 GPUs keep their weights where they are.
            changes = {"param_offload": False, "optimizer_offload": False} if engines else {}
            run = _dapo(gpus, limit, responses, replace(trainer, **changes), rollout)
            length = length or length_for(run, gpu, seconds[2])
            names = ("generation", "old log-probabilities", "update", "total")
            yield Published(
                f"verl {'one step off' if engines else 'sync'}, the same, {engine}, "
                + (f"{engines} + {gpus} H20" if engines else f"{gpus} H20"),
                ONE_STEP_OFF,
                with_length(run, length),
                gpu,
                dict(zip(names, map(float, seconds), strict=True)),
                fitted=None if engines else "update",
            )


def nemo() -> Iterator[Published]:
    """Yield NeMo-RL's GRPO on H100; the tokens of a step follow from its tokens/s/GPU."""
    gpu = find_gpu("H100-80GB")
    rows = [
        ("Llama-3.1-8B", "v0.4", 16, 97.7, 1562, {"pipeline_parallel": 2}, 1),
        ("Qwen3-32B", "v0.4", 32, 393.0, 540, {"tensor_parallel": 4, "pipeline_parallel": 4}, 4),
        ("Qwen3-30B-A3B", "v0.4", 32, 225.0, 925, {"tensor_parallel": 2, "expert_parallel": 8}, 4),
        ("Qwen3-30B-A3B", "later", 32, 192.0, 1102, {"tensor_parallel": 2, "expert_parallel": 8}, 4),
    ]
    for model, version, gpus, total_s, tokens_s_gpu, parallel, engine_gpus in rows:
        sequence_tokens = tokens_s_gpu * gpus * total_s / 2048
        trainer = Trainer(engine="megatron", gpus=gpus, gpus_per_node=8, weight_bytes=4, **parallel)  # type: ignore[arg-type]
        batch = Batch(
            prompts=128,
            responses_per_prompt=16,
            mini_batch_prompts=32,
            epochs=1,
            prompt_tokens=100,
            response_tokens=sequence_tokens - 100,
            max_prompt_tokens=512,
            max_response_tokens=4096 - 512,
        )
        rollout = Rollout(gpus=gpus, gpus_per_node=8, tensor_parallel=engine_gpus, memory_share=0.6)
        yield Published(
            f"NeMo-RL {version}, {model}, Megatron, {gpus} H100",
            NEMO,
            Run(shape_of(model), trainer, rollout, batch),
            gpu,
            {"total": total_s},
        )


def prime_rl() -> Iterator[Published]:
    """Yield prime-rl's trainer alone on H100: two micro-batches of one sequence each, with recomputation."""
    gpu = find_gpu("H100-80GB")
    rows = [
        ("Qwen3-0.6B", 1, 16384, 1.992, 12.528),
        ("Qwen3-0.6B", 1, 65536, 12.176, 19.561),
        ("Qwen3-4B", 8, 16384, 4.688, 17.096),
        ("Qwen3-4B", 8, 65536, 30.286, 36.105),
        ("Qwen3-30B-A3B", 8, 16384, 8.174, 74.588),
    ]
    for model, gpus, tokens, step_s, peak_gib in rows:
        # Its logits are never materialised in full, as with verl's fused kernels.
        trainer = Trainer(
            engine="fsdp2",
            gpus=gpus,
            gpus_per_node=8,
            shards=gpus,
            update_tokens=tokens,
            update_sequences=1,
            fused_kernels=True,
        )
        # Every sequence is a "response" of full length.
        batch = Batch(2 * gpus, 1, 2 * gpus, 1, 0, tokens, 0, tokens, limit_share=0)
        run = Run(shape_of(model), trainer, Rollout(gpus, 8), batch)
        yield Published(
            f"prime-rl, {model}, {tokens // 1024}K, {gpus} H100",
            PRIME_RL,
            run,
            gpu,
            {"update": step_s},
            peak_gb=peak_gib * 2**30 / 1e9,
        )


def cpu() -> Iterator[Published]:
    """Yield our own runs on two cores."""
    gpu = find_gpu("cpu-2-cores")
    trainer = Trainer(
        engine="fsdp2", gpus=1, gpus_per_node=1, compute_bytes=4, compiled_entropy=False, pads_sequences=True
    )
    rollout = Rollout(1, 1, value_bytes=4, max_sequences=128, kv_cache_gb=2**30 / 1e9, sleeps=False)

    def run(
        model: str, prompts: int, responses: int, mini: int, lengths: tuple[float, float, int, int], micro: int
    ) -> Run:
        prompt, response, max_prompt, max_response = lengths
        batch = Batch(prompts, responses, mini, 1, prompt, response, max_prompt, max_response)
        tokens = micro * (max_prompt + max_response)
        sized = replace(
            trainer, update_tokens=tokens, log_prob_tokens=tokens, update_sequences=micro, log_prob_sequences=micro
        )
        return Run(shape_of(model), sized, rollout, batch)

    # Padded to the longest sequence of a micro-batch, which is shorter than the longest allowed.
    yield Published(
        "quickstart, 0.46 M, 256 responses of 4 tokens",
        PERFORMANCE,
        run("quickstart_seed0", 32, 8, 8, (10, 4, 11, 5), 64),
        gpu,
        {"generation": 4.01, "old log-probabilities": 0.77, "update": 0.89, "weight sync": 0.03, "total": 5.92},
    )
    yield Published(
        "SmolLM2-135M, 32 sequences of 54 tokens",
        PERFORMANCE,
        run("SmolLM2-135M", 8, 4, 2, (48, 6, 48, 6), 8),
        gpu,
        {"generation": 5.5, "old log-probabilities": 7.5, "update": 30.5, "total": 44.5},
    )
    yield Published(
        "SmolLM2-135M, 16 sequences of 130 tokens",
        PERFORMANCE,
        run("SmolLM2-135M", 8, 2, 2, (98, 32, 98, 32), 4),
        gpu,
        {"total": 71.5},
    )


def estimates(row: Published) -> dict[str, float]:
    """Return {phase: seconds} and the total, as estimated."""
    times = step_time(row.run, row.gpu)
    return {**times.phases_s(), "total": times.total_s}


def compare(rows: Iterator[Published]) -> list[dict[str, str]]:
    """Return one table row for each published run: published time, estimate and their ratio, phase by phase."""
    table = []
    for row in rows:
        estimated = estimates(row)
        cells = {"run": row.name, "mean response": f"{row.run.batch.response_tokens:.0f}"}
        for phase in ("generation", "old log-probabilities", "update", "total"):
            seconds = row.times_s.get(phase)
            mark = " =" if phase == row.fitted else ""
            cells[phase] = (
                f"{seconds:.3g} / {estimated[phase]:.3g} ({estimated[phase] / seconds:.2f}){mark}" if seconds else ""
            )
        table.append(cells)
    return table


def compare_memory(rows: Iterator[Published]) -> list[dict[str, str]]:
    """Return one table row for each published peak, without the reserve that plan adds."""
    table = []
    for row in rows:
        if row.peak_gb is None:
            continue
        update = next(phase for phase in phases(row.run, row.gpu) if phase.name == "update")
        estimated = update.total_gb - row.gpu.reserved_gb - _engine_gb(update.parts_gb)
        cell = f"{row.peak_gb:.1f} / {estimated:.1f} ({estimated / row.peak_gb:.2f})"
        table.append({"run": row.name, "peak, GB": cell})
    return table


def _engine_gb(parts_gb: dict[str, float]) -> float:
    return sum(parts_gb.get(part, 0.0) for part in ("engine weights", "kv cache", "engine reserve"))


def scaling_run() -> Run:
    """Return the example of docs/plan.md."""
    trainer = Trainer(engine="fsdp", gpus=8, gpus_per_node=8, shards=8)
    batch = Batch(512, 16, 128, 1, 256, 2000, 1024, 8192)
    return Run(shape_of("Qwen/Qwen2.5-7B"), trainer, Rollout(8, 8, memory_share=0.5), batch)


def scaling() -> list[dict[str, str]]:
    """Return one table row for each number of GPUs."""
    return [
        {
            "GPUs": f"{row.gpus:,}",
            "seconds per step": f"{row.step_s:.0f}",
            "of which generation": f"{row.generation_s:.0f}",
            "GPU hours, 100 steps": f"{row.gpu_hours_per_100_steps:,.0f}",
            "efficiency": f"{row.efficiency:.0%}",
        }
        for row in scale(scaling_run(), find_gpu("H100-80GB"))
    ]


SECTIONS: dict[str, Callable[[], list[dict[str, str]]]] = {
    "verl on H20 (seconds)": lambda: compare(h20()),
    "NeMo-RL on H100 (seconds)": lambda: compare(nemo()),
    "prime-rl's trainer on H100 (seconds)": lambda: compare(prime_rl()),
    "prime-rl's trainer on H100 (memory)": lambda: compare_memory(prime_rl()),
    "Two CPU cores (seconds)": lambda: compare(cpu()),
}


def to_markdown(rows: list[dict[str, str]]) -> str:
    """Return rows as a Markdown table, without columns that are empty in all of them."""
    columns = [column for column in rows[0] if any(row.get(column) for row in rows)]
    lines = [columns, ["---"] * len(columns), *([row[column] for column in columns] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def markdown() -> str:
    """Return the comparison as in docs/plan.md."""
    return "\n".join(f"**{title}**\n\n{to_markdown(section())}" for title, section in SECTIONS.items())


app = App()


@app.command()
def _main(
    figure: Annotated[Path | None, typer.Option(help="Draw the scaling example to this PNG file.")] = None,
) -> None:
    """Print the tables of docs/plan.md: how cost grows, and published times beside the estimated ones."""
    print(f"{to_markdown(scaling())}\n{markdown()}")
    if figure is not None:
        rows = scale(scaling_run(), find_gpu("H100-80GB"))
        draw_scaling(rows, "Qwen2.5-7B, FSDP on H100: the same batch on more GPUs (estimated)", figure)


if __name__ == "__main__":
    app()
