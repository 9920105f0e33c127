"""A run as a report sees it, from whatever source it was read."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cfpo_verl.errors import UserError
from cfpo_verl.report.metrics import Metrics

# A run that has written nothing for this time counts as stopped,
SILENCE_S = 600.0
# unless this many of its steps take longer.
SILENT_STEPS = 5


class ReportError(UserError):
    """An input of a report cannot be read; the message names it and the way out."""


@dataclass(frozen=True)
class State:
    """State of a run.

    Args:
        name: "finished", "in progress", "crashed", "stopped" or "unknown".
        detail: Description in a few words.
    """

    name: str
    detail: str


@dataclass(frozen=True)
class Response:
    """A response with its score.

    Args:
        source: Source of the response, for example "validation".
        step: Training step of the model, None if unknown.
        prompt: Prompt.
        text: Text of the response.
        gold: Gold answer, "" if unknown.
        answer: Answer that the verifier extracted, None if unknown.
        score: Score as reported.
        is_right: Whether the answer is right; if only a score is reported, whether it is above 0.5.
    """

    source: str
    step: int | None
    prompt: str
    text: str
    gold: str
    answer: str | None
    score: float
    is_right: bool


@dataclass(frozen=True)
class Run:
    """A run.

    Args:
        name: Name, unique in a report.
        origin: Kind of files that the run was read from.
        metrics: Metrics by step, ascending; empty before the first step is finished.
        state: State.
        config: Flat resolved config, None if unknown.
        versions: {package: version}.
        responses: A sample of the responses.
        notes: Remarks on the data for the reader.
        folder: File or folder that the run was read from.
    """

    name: str
    origin: str
    metrics: Metrics
    state: State = State("unknown", "")
    config: Mapping[str, str] | None = None
    versions: Mapping[str, str | None] = field(default_factory=dict)
    responses: tuple[Response, ...] = ()
    notes: tuple[str, ...] = ()
    folder: Path | None = None

    @property
    def last_step(self) -> int:
        """The last step with metrics, 0 before the first."""
        return max(self.metrics, default=0)


@dataclass(frozen=True)
class Evaluation:
    """The summary of `cfpo-verl eval` for one model.

    Args:
        name: Name of the evaluation.
        run_dir: Run folder of the model, None if unknown.
        step: Training step of the model, None if unknown.
        sets: {set: its part of the summary}.
        responses: A sample of the responses.
        notes: Remarks on the data for the reader.
        settings: Settings of the generation, in one line.
        folder: Folder that the evaluation was read from.
    """

    name: str
    run_dir: Path | None
    step: int | None
    sets: Mapping[str, Mapping[str, Any]]
    responses: tuple[Response, ...] = ()
    notes: tuple[str, ...] = ()
    settings: str = ""
    folder: Path | None = None


def judge_state(
    last_step: int, total_steps: int | None, last_words: str, is_done: bool, age_s: float, step_s: float
) -> State:
    """Return the state of a run.

    Args:
        last_step: Last step with metrics.
        total_steps: Planned number of steps, None if the config does not say.
        last_words: Last line of a traceback that ends the log, "" if there is none.
        is_done: Whether the log has what the trainer prints after the last step.
        age_s: Time since any file of the run was written, in seconds.
        step_s: Time of a step in seconds, 0 if unknown.

    Example:
        >>> judge_state(12, 20, "", False, age_s=30, step_s=5).detail
        'step 12 of 20, written 30 s ago'
    """
    progress = f"step {last_step}" + (f" of {total_steps}" if total_steps else "")
    if is_done or (total_steps and last_step >= total_steps):
        return State("finished", progress)
    if last_words:
        return State("crashed", f"{progress}: {last_words}")
    if age_s < max(SILENCE_S, SILENT_STEPS * step_s):
        return State("in progress", f"{progress}, written {_duration(age_s)} ago")
    return State("stopped", f"{progress}, last written {_duration(age_s)} ago")


def _duration(time_s: float) -> str:
    """Format a time in a suitable unit.

    Example:
        >>> _duration(45), _duration(600), _duration(7200), _duration(200_000)
        ('45 s', '10 min', '2 h', '2 days')
    """
    for unit, length_s, below_s in (("s", 1, 120), ("min", 60, 7200), ("h", 3600, 172_800)):
        if time_s < below_s:
            return f"{time_s / length_s:.0f} {unit}"
    return f"{time_s / 86_400:.0f} days"
