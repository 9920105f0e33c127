"""Find the model that an evaluation is about, and what its run says of it."""

import hashlib
import os
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cfpo_verl.doctor.model import is_folder
from cfpo_verl.evaluation.sets import EvaluationError
from cfpo_verl.export.checkpoints import find_checkpoint, is_model, lookup, run_config
from cfpo_verl.export.merge import RECORD, exported
from cfpo_verl.files import read_json_object, reading

_EDGE_BYTES = 1 << 20


@dataclass(frozen=True)
class EvalModel:
    """A model that vLLM can load.

    Args:
        path: Folder, absolute for engines that start elsewhere, or hub id.
        given: What the user gave.
        run_dir: The run of `cfpo-verl train` it comes from.
        step: Its training step.
        config: The resolved config of that run, empty if there is none.
    """

    path: str
    given: str
    run_dir: str | None = None
    step: int | None = None
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What it is called if nobody says otherwise."""
        return Path(self.run_dir or self.path).name

    @property
    def chat_template_kwargs(self) -> dict[str, Any]:
        """What the run gives its chat template besides the messages."""
        return dict(lookup(self.config, "data.apply_chat_template_kwargs", {}))

    def as_dict(self) -> dict[str, Any]:
        """Return what a summary says of the model."""
        return {"path": self.path, "given": self.given, "run_dir": self.run_dir, "step": self.step}


def find_model(given: str, step: int | None = None, trust_remote_code: bool = False) -> EvalModel:
    """Return the model that a word of the command line means; a checkpoint of verl is exported first.

    Args:
        given: A Hugging Face folder, a hub id, a run folder of `cfpo-verl train`, or a checkpoint of verl.
        step: Which checkpoint of a run; None for the last one.
        trust_remote_code: Whether code of the model's folder may run.

    Raises:
        CheckpointError: If it is a folder and nothing of these.
        ExportError: If the export fails.
        EvaluationError: If `step` is given for a model that is no run.
    """
    path = Path(os.path.expanduser(given))
    if is_model(path):
        if step is not None:
            raise EvaluationError(f"{given} is a model already: --step is for the checkpoints of a run")
        record = path / RECORD
        made_from = read_json_object(record).get("checkpoint") if record.is_file() else None
        folder = str(path.absolute())
        if not isinstance(made_from, str) or not Path(made_from).is_dir():
            return EvalModel(folder, given)
        checkpoint = find_checkpoint(Path(made_from))
        return _of_run(folder, given, checkpoint.run_dir, checkpoint.step)
    if not is_folder(given):
        return EvalModel(given, given)
    checkpoint = find_checkpoint(path, step)
    return _of_run(str(exported(checkpoint, trust_remote_code)), given, checkpoint.run_dir, checkpoint.step)


def _of_run(path: str, given: str, run_dir: Path | None, step: int | None) -> EvalModel:
    if run_dir is None:
        return EvalModel(path, given, None, step)
    return EvalModel(path, given, str(run_dir), step, run_config(run_dir))


def fingerprint(path: str, revision: str | None) -> str:
    """Stand for a model's files, so that an evaluation is not continued with another model in the same place.

    Of weight files the size, the first and the last MiB are read: training changes nearly all weights.

    Args:
        path: Folder or hub id.
        revision: Commit on the hub.
    """
    folder = Path(path)
    if not folder.is_dir():
        return f"{path}@{revision}"
    digest = hashlib.sha256()
    with reading(folder):
        for file in sorted(folder.iterdir()):
            if file.is_file() and file.name not in (RECORD, "README.md"):
                size = file.stat().st_size
                digest.update(f"{file.name} {size}".encode())
                with file.open("rb") as opened:
                    digest.update(opened.read(_EDGE_BYTES))
                    opened.seek(max(0, size - _EDGE_BYTES))
                    digest.update(opened.read(_EDGE_BYTES))
    return digest.hexdigest()


def command_line() -> str:
    """Return the command that was given, to be repeated."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
