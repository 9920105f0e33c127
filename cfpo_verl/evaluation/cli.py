"""`cfpo-verl eval`: generate and score, score responses from elsewhere, compare two evaluations."""

import json
from pathlib import Path
from typing import Annotated

import typer

from cfpo_verl.evaluation.sets import EvaluationError
from cfpo_verl.terminal import App, epilog

app = App(
    "Evaluate a model: accuracy with confidence intervals, from its own responses.",
    no_args_is_help=True,
    epilog=epilog(
        "cfpo-verl eval run runs/cpu_quickstart_cfpo_seed0 --sets arithmetic --out evals/cfpo",
        "cfpo-verl eval compare evals/grpo evals/cfpo",
    ),
)


@app.command(
    "run",
    epilog=epilog(
        "cfpo-verl eval run Qwen/Qwen2.5-Math-1.5B --sets aime24,math500 --n 32 --temperature 0.6 --out evals/base",
        "cfpo-verl eval run runs/cpu_quickstart_cfpo_seed0 --sets arithmetic --out evals/cfpo",
        "cfpo-verl eval run MODEL --sets math_suite --n 32 --data-parallel 8 --out evals/suite",
        exit_status="0 done; 1 failed while generating; 2 invalid input; 130 interrupted (run it again to resume)",
    ),
)
def eval_run(
    model: Annotated[
        str, typer.Argument(help="Model folder or hub id, run folder, or verl checkpoint.", metavar="MODEL")
    ],
    sets: Annotated[str, typer.Option(help="Comma-separated names of eval_sets or parquet files.")],
    out: Annotated[Path, typer.Option(help="Output folder. An unfinished evaluation is resumed.")],
    n: Annotated[int, typer.Option(help="Responses to sample for each problem.")] = 8,
    temperature: Annotated[float, typer.Option(help="Sampling temperature; 0 for greedy decoding.")] = 1.0,
    top_p: Annotated[float, typer.Option(help="Nucleus sampling: probability mass to sample from.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Number of most likely tokens to sample from; -1 for all.")] = -1,
    max_tokens: Annotated[
        int | None,
        typer.Option(help="Maximum response length in tokens.", show_default="that of the model's run, else 4096"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed from which each response's own seed is derived.")] = 0,
    limit: Annotated[
        int | None, typer.Option(help="Evaluate only the first LIMIT problems of each set.", show_default="all")
    ] = None,
    step: Annotated[
        int | None, typer.Option(help="Step of the run's checkpoint to use.", show_default="the last one")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(help="Name of the evaluation in tables.", show_default="name of the model's or run's folder"),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="vLLM's dtype option.", show_default="float32 on a CPU, else auto")
    ] = None,
    tensor_parallel: Annotated[int, typer.Option(help="GPUs per vLLM engine.")] = 1,
    data_parallel: Annotated[
        int, typer.Option(help="Number of engines; more than one run as actors on the Ray cluster.")
    ] = 1,
    gpu_memory_utilization: Annotated[
        float, typer.Option(help="Share of GPU memory for vLLM (its option of this name).")
    ] = 0.9,
    max_num_seqs: Annotated[
        int, typer.Option(help="Concurrent responses per engine (vLLM's option of this name).")
    ] = 256,
    chat_template_kwargs: Annotated[
        str,
        typer.Option(help="JSON object of arguments for the chat template, such as '{\"enable_thinking\": false}'."),
    ] = "{}",
    trust_remote_code: Annotated[bool, typer.Option(help="Allow the model folder's own Python code to run.")] = False,
) -> None:
    """Generate responses with vLLM, score them and print metrics.

    The metrics are avg@n, pass@k and maj@k with 95 percent intervals. verl's own code builds the prompts, so the
    numbers are comparable with validation during training.
    """
    from cfpo_verl.evaluation.running import RunOptions, run
    from cfpo_verl.evaluation.tables import print_summary

    try:
        kwargs = json.loads(chat_template_kwargs)
    except json.JSONDecodeError as error:
        raise EvaluationError(f"--chat-template-kwargs {chat_template_kwargs}: not JSON ({error})") from error
    if not isinstance(kwargs, dict):
        raise EvaluationError(f"--chat-template-kwargs must be a JSON object, got {chat_template_kwargs}")
    options = RunOptions(
        n=n,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        max_tokens=max_tokens,
        seed=seed,
        limit=limit,
        dtype=dtype,
        tensor_parallel=tensor_parallel,
        data_parallel=data_parallel,
        gpu_memory_utilization=gpu_memory_utilization,
        max_num_seqs=max_num_seqs,
        trust_remote_code=trust_remote_code,
        chat_template_kwargs=kwargs,
    )
    try:
        summary = run(model, sets, out, name, step, options)
    except KeyboardInterrupt:
        typer.echo(f"cfpo-verl eval run: interrupted; run the same command again to resume in {out}", err=True)
        raise SystemExit(130) from None
    print_summary(summary)
    typer.echo(out / "summary.json", err=True)


@app.command(
    "score", epilog=epilog("cfpo-verl eval score generations.parquet --out evals/others --name 'another model'")
)
def eval_score(
    file: Annotated[Path, typer.Argument(help="Parquet file with responses.", metavar="FILE.parquet")],
    out: Annotated[Path, typer.Option(help="Output folder of the evaluation.")],
    name: Annotated[
        str | None, typer.Option(help="Name of the evaluation in tables.", show_default="name of the file")
    ] = None,
) -> None:
    """Score responses generated elsewhere.

    The file needs the columns response (or responses, a list), data_source and gold. verl's own columns work too:
    reward_model for gold, extra_info for the problem.
    """
    from cfpo_verl.evaluation.running import score
    from cfpo_verl.evaluation.tables import print_summary

    print_summary(score(file, out, name))
    typer.echo(out / "summary.json", err=True)


@app.command(
    "compare",
    epilog=epilog("cfpo-verl eval compare evals/grpo evals/cfpo", "cfpo-verl eval compare A B --json"),
)
def eval_compare(
    first: Annotated[Path, typer.Argument(help="Folder of the first evaluation.", metavar="FIRST")],
    second: Annotated[Path, typer.Argument(help="Folder of the second evaluation.", metavar="SECOND")],
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list with one object per row.")] = False,
) -> None:
    """Compare two evaluations on the problems they share.

    Prints the difference of each metric with a 95 percent interval, and a sign test.
    """
    from cfpo_verl.evaluation.comparison import compare
    from cfpo_verl.evaluation.tables import print_comparison

    rows, notes = compare(first, second)
    for note in notes:
        typer.echo(f"cfpo-verl eval compare: note: {note}", err=True)
    if as_json:
        typer.echo(json.dumps([row.as_dict() for row in rows], indent=2))
    else:
        print_comparison(rows, str(first), str(second))
