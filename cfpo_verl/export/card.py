"""Write a model card that states only what is known about a run."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

from cfpo_verl.composing import verl_config_dir
from cfpo_verl.evaluation import store
from cfpo_verl.export.checkpoints import (
    Checkpoint,
    CheckpointError,
    find_checkpoint,
    lookup,
    run_config,
    weights_dtype,
)
from cfpo_verl.export.merge import PROMPT, Check, export
from cfpo_verl.files import read_json_object
from cfpo_verl.run_dir import attempt_files

CARD, CONFIG = "README.md", "training_config.yaml"


def export_with_card(
    path: Path, out: Path, step: int | None, evaluations: Sequence[Path], trust_remote_code: bool
) -> Check:
    """Export a checkpoint, compare it on a prompt and write its model card.

    Args:
        path: Run folder or checkpoint.
        out: Folder to create.
        step: Step of the run's checkpoint; None for the last complete one.
        evaluations: Folders of finished evaluations to quote in the card.
        trust_remote_code: Whether the model folder's own Python code may run.

    Raises:
        CheckpointError: If there is no such checkpoint or evaluation, or `out` is not empty.
        EvaluationError: If an evaluation's summary is not one.
        ExportError: If the merger fails, or the exported model differs from the checkpoint.
    """
    checkpoint = find_checkpoint(path, step)
    for folder in evaluations:
        if not (folder / store.SUMMARY).is_file():
            raise CheckpointError(
                f"{folder / store.SUMMARY}: no such file. --evaluation takes the folder of a finished `cfpo-verl eval`"
            )
    summaries = [store.read_summary(folder) for folder in evaluations]
    return export(
        checkpoint,
        out,
        trust_remote_code,
        lambda folder, check: write_card(folder, out.absolute().name, checkpoint, check, summaries),
    )


def write_card(
    folder: Path, title: str, checkpoint: Checkpoint, check: Check, evaluations: Sequence[Mapping[str, Any]]
) -> None:
    """Write the model card and the config of the run.

    Args:
        folder: Folder of the exported model.
        title: Title of the card.
        checkpoint: The checkpoint that was exported.
        check: Result of the comparison with the checkpoint.
        evaluations: Summaries of `cfpo-verl eval`.
    """
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    config = run_config(checkpoint.run_dir) if checkpoint.run_dir else {}
    base_model = lookup(config, "actor_rollout_ref.model.path")
    train_files = lookup(config, "data.train_files", [])
    results = [
        EvalResult("text-generation", name, name, metric, round(numbers["value"], 4))
        for evaluation in evaluations
        for name, found in evaluation["sets"].items()
        for metric, numbers in _shown(found)
    ]
    data = ModelCardData(
        # A local folder cannot be linked from a card on the hub.
        base_model=base_model if _is_hub_id(base_model) else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["reinforcement-learning", "verl", "cfpo_verl"],
        model_name=title,
        eval_results=results or None,
    )
    card = ModelCard.from_template(
        data,
        template_str=(files("cfpo_verl.export") / "model_card.md.jinja").read_text(),
        title=title,
        run=bool(config),
        base_model=base_model,
        loss=_loss(config),
        estimator=lookup(config, "algorithm.adv_estimator"),
        step=checkpoint.step,
        total_steps=lookup(config, "trainer.total_training_steps"),
        prompts=lookup(config, "data.train_batch_size"),
        responses=lookup(config, "actor_rollout_ref.rollout.n"),
        learning_rate=lookup(config, "actor_rollout_ref.actor.optim.lr"),
        seed=lookup(config, "seed"),
        data=[
            _data_file(path, checkpoint.run_dir)
            for path in ([train_files] if isinstance(train_files, str) else train_files)
        ],
        evaluations=[_table(evaluation) for evaluation in evaluations],
        prompt=PROMPT,
        dtype=weights_dtype(folder),
        check=asdict(check),
        versions=_versions(checkpoint.run_dir),
    )
    card.save(folder / CARD)
    if config and checkpoint.run_dir:
        import yaml

        # The environment variables in ray_kwargs may hold secrets, and the card is meant to be published.
        shown = {key: value for key, value in config.items() if key != "ray_kwargs"}
        (folder / CONFIG).write_text(yaml.safe_dump(shown, sort_keys=False))


def _is_hub_id(path: object) -> bool:
    return isinstance(path, str) and path.count("/") == 1 and path[0] not in "./~" and not Path(path).exists()


def _loss(config: dict[str, Any]) -> str:
    """Return the name of the loss with its options, leaving out verl's own options at their defaults.

    Any loss, third-party ones included, has its options in the same config node as verl's.
    """
    import yaml

    options = dict(lookup(config, "actor_rollout_ref.actor.policy_loss", {}))
    name = options.pop("loss_mode", "not known")
    of_verl = yaml.safe_load((Path(verl_config_dir()) / "actor" / "actor.yaml").read_text())["policy_loss"]
    # What happens with NaN says nothing about a run that has ended without any.
    unstated = {"_target_", *(["non_finite", "max_skipped"] if options.get("non_finite") == "raise" else [])}
    shown = [
        f"{key} {value}"
        for key, value in options.items()
        if key not in unstated and value is not None and not (key in of_verl and of_verl[key] == value)
    ]
    # verl's own losses also have options outside that node.
    outside = {key: lookup(config, f"actor_rollout_ref.actor.{key}") for key in _ACTOR_OPTIONS.get(name, ())}
    shown += [f"{key} {value}" for key, value in outside.items() if value is not None]
    return ", ".join([f"`{name}`", *shown])


_ACTOR_OPTIONS = {
    "vanilla": ("clip_ratio_low", "clip_ratio_high", "clip_ratio_c"),
    "gspo": ("clip_ratio_low", "clip_ratio_high"),
    "cispo": ("clip_ratio_low", "clip_ratio_high"),
    "sapo": ("tau_pos", "tau_neg"),
}


def _data_file(path: str, run_dir: Path | None) -> dict[str, Any]:
    manifest = Path(path).with_suffix(".manifest.json")
    known = read_json_object(manifest) if manifest.is_file() else None
    return {"path": path, "manifest": known}


def _shown(found: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the metrics to show: avg@n, pass@n and maj@n."""
    names = [f"{metric}@{found['samples']}" for metric in ("avg", "pass", "maj")]
    return [(name, found["metrics"][name]) for name in names]


def _table(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    settings = evaluation.get("generation")
    how = "responses generated elsewhere"
    if settings:
        how = ", ".join(
            f"{key.replace('_', ' ')} {settings[key]}"
            for key in ("temperature", "top_p", "top_k", "max_tokens", "seed")
        )
    rows = [
        {"set": name, "problems": found["problems"], "metric": metric, **numbers}
        for name, found in evaluation["sets"].items()
        for metric, numbers in _shown(found)
    ]
    return {"name": evaluation["name"], "how": how, "rows": rows}


def _versions(run_dir: Path | None) -> dict[str, str | None]:
    """Return the versions of the last attempt of a run."""
    files = list(attempt_files(run_dir, "versions").values()) if run_dir else []
    return read_json_object(files[-1]) if files else {}
