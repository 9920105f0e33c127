"""Glue to vLLM: engines that take tokenized prompts and return responses as they finish."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeVar

from cfpo_verl.evaluation.sets import EvaluationError

# Seconds between two reports of an engine.
_TICK_S = 0.5

Handle = TypeVar("Handle")


@dataclass(frozen=True)
class EngineSettings:
    """Settings of an engine and of sampling, with vLLM's names.

    Args:
        model: Folder or hub id.
        dtype: Data type of weights and activations.
        max_model_len: Maximum length of prompt plus response, in tokens.
        tensor_parallel_size: GPUs per engine.
        gpu_memory_utilization: Share of GPU memory for vLLM.
        max_num_seqs: Maximum number of concurrent responses.
        enforce_eager: Whether to disable CUDA graphs and compilation.
        trust_remote_code: Whether the model folder's own Python code may run.
        temperature: Sampling temperature; 0 for greedy decoding.
        top_p: Nucleus sampling: probability mass to sample from.
        top_k: Number of most likely tokens to sample from; -1 for all.
        max_tokens: Maximum response length in tokens.
    """

    model: str
    dtype: str
    max_model_len: int
    tensor_parallel_size: int
    gpu_memory_utilization: float
    max_num_seqs: int
    enforce_eager: bool
    trust_remote_code: bool
    temperature: float
    top_p: float
    top_k: int
    max_tokens: int


@dataclass(frozen=True)
class Request:
    """A request for one response.

    Args:
        key: The caller's number for this request.
        prompt_token_ids: Tokens of the prompt.
        seed: Sampling seed.
    """

    key: int
    prompt_token_ids: Sequence[int]
    seed: int


@dataclass(frozen=True)
class Finished:
    """A finished response.

    Args:
        key: Key of its request.
        token_ids: Tokens of the response, including the end-of-sequence token.
        finish_reason: vLLM's finish reason: "stop", or "length" if the response was truncated.
    """

    key: int
    token_ids: list[int]
    finish_reason: str


@dataclass
class Progress:
    """What an engine has done since its last report.

    Args:
        finished: Responses finished since then.
        tokens: Tokens generated since then, including those of unfinished responses.
    """

    finished: list[Finished] = field(default_factory=list)
    tokens: int = 0


class Engine:
    """A vLLM engine in this process, or in a Ray actor."""

    def __init__(self, settings: EngineSettings) -> None:
        """Load the model, which takes seconds to minutes."""
        from cfpo_verl import cpu
        from cfpo_verl.cpu import vllm_metadata

        if cpu.is_selected():
            vllm_metadata.install()
        from vllm import EngineArgs, LLMEngine

        self._settings = settings
        self._engine = LLMEngine.from_engine_args(
            EngineArgs(
                model=settings.model,
                dtype=settings.dtype,
                max_model_len=settings.max_model_len,
                tensor_parallel_size=settings.tensor_parallel_size,
                gpu_memory_utilization=settings.gpu_memory_utilization,
                max_num_seqs=settings.max_num_seqs,
                enforce_eager=settings.enforce_eager,
                trust_remote_code=settings.trust_remote_code,
                disable_log_stats=True,
            )
        )
        self._tokens: dict[str, list[int]] = {}

    def work(self, requests: Sequence[Request]) -> Progress:
        """Add requests, then generate for half a second and report."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        for request in requests:
            sampling = SamplingParams(
                temperature=self._settings.temperature,
                top_p=self._settings.top_p,
                top_k=self._settings.top_k,
                max_tokens=self._settings.max_tokens,
                seed=request.seed,
                # Decoded with verl's tokenizer instead, as the reward loop does.
                detokenize=False,
                output_kind=RequestOutputKind.DELTA,
            )
            self._tokens[str(request.key)] = []
            prompt: Any = {"prompt_token_ids": list(request.prompt_token_ids)}
            self._engine.add_request(str(request.key), prompt, sampling)
        progress = Progress()
        end_s = time.monotonic() + _TICK_S
        while self._engine.has_unfinished_requests() and time.monotonic() < end_s:
            for output in self._engine.step():
                [part] = output.outputs
                self._tokens[output.request_id].extend(part.token_ids)
                progress.tokens += len(part.token_ids)
                if output.finished:
                    tokens = self._tokens.pop(output.request_id)
                    progress.finished.append(Finished(int(output.request_id), tokens, str(part.finish_reason)))
        return progress


def drive(
    engines: int,
    start: Callable[[int, list[Request]], Handle],
    wait: Callable[[list[Handle]], tuple[Handle, Progress]],
    requests: Iterable[Request],
    in_flight: int,
) -> Iterator[Progress]:
    """Keep several engines busy until all requests are finished, and yield their reports.

    Args:
        engines: Number of engines.
        start: Starts `Engine.work` on an engine, given by its index, and returns a handle.
        wait: Waits until one of the handles is done, and returns it with its report.
        requests: The requests, taken one by one as engines have room.
        in_flight: Maximum number of unfinished requests per engine.
    """
    left = iter(requests)
    load = [0] * engines
    busy: dict[Handle, int] = {}

    def refill(engine: int) -> None:
        batch = list(islice(left, in_flight - load[engine]))
        load[engine] += len(batch)
        if load[engine]:
            busy[start(engine, batch)] = engine

    for engine in range(engines):
        refill(engine)
    while busy:
        handle, progress = wait(list(busy))
        engine = busy.pop(handle)
        load[engine] -= len(progress.finished)
        yield progress
        refill(engine)


def generate_here(settings: EngineSettings, requests: Sequence[Request]) -> Iterator[Progress]:
    """Generate with one engine in this process. The first report is empty and means that the engine is ready."""
    engine = Engine(settings)
    yield Progress()
    yield from drive(
        1,
        lambda _engine, batch: lambda: engine.work(batch),
        lambda handles: (handles[0], handles[0]()),
        requests,
        2 * settings.max_num_seqs,
    )


def generate_on_cluster(
    settings: EngineSettings, requests: Sequence[Request], engines: int, env: dict[str, str]
) -> Iterator[Progress]:
    """Generate with several engines, each a Ray actor. The first report is empty and means that all are ready.

    Ray chooses the cluster as usual: RAY_ADDRESS, else one running on this machine, else a new one.

    Args:
        settings: Settings of every engine.
        requests: The requests.
        engines: Number of engines.
        env: Environment variables of the actors. If not empty, the engines run on CPUs and request no GPU.

    Raises:
        EvaluationError: If the cluster has too few GPUs, or CPUs.
    """
    import ray

    ray.init(runtime_env={"env_vars": env}, include_dashboard=False)
    needed = {"CPU": engines} if env else {"GPU": engines * settings.tensor_parallel_size}
    for name, number in needed.items():
        has = ray.cluster_resources().get(name, 0)
        if has < number:
            raise EvaluationError(
                f"--data-parallel {engines} needs {number} {name}s, but the Ray cluster has {has:g}. "
                "Give a smaller --data-parallel"
            )
    resources = {"num_cpus": 1, "num_gpus": 0 if env else settings.tensor_parallel_size}
    actors = [ray.remote(Engine).options(**resources).remote(settings) for _ in range(engines)]
    yield ray.get([actor.work.remote([]) for actor in actors])[0]

    def wait(handles: list[Any]) -> tuple[Any, Progress]:
        [ready], _others = ray.wait(handles, num_returns=1)
        return ready, ray.get(ready)

    # At most an equal share each, so that no engine idles while another has a queue.
    in_flight = min(2 * settings.max_num_seqs, -(-len(requests) // engines))
    yield from drive(engines, lambda engine, batch: actors[engine].work.remote(batch), wait, requests, in_flight)
