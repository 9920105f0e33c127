"""Checks of the data and the reward: files, sources, sizes, prompt lengths, and known answers."""

import asyncio
import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from omegaconf import DictConfig, OmegaConf

from cfpo_verl.data_prep.schema import DataError, check_file
from cfpo_verl.data_sources import data_source
from cfpo_verl.demands import data_files
from cfpo_verl.doctor.finding import Finding, failed, failed_with, ok, warning
from cfpo_verl.doctor.model import local_folder
from cfpo_verl.errors import UserError, first_line
from cfpo_verl.rewards import REWARD_KWARGS, canary, unfit_gold
from cfpo_verl.rewards import close as close_rewards

OUR_REWARD = "pkg://cfpo_verl.rewards"
# About 7 s for gold answers, and 2 s for tokenizing. Of larger files, evenly spaced rows are checked.
_MOST_GOLDS = 50_000
_MOST_PROMPTS = 2_000


def _is_read_here(file: Any) -> bool:
    # verl fetches remote files, and reads JSON itself.
    return file is not None and "://" not in str(file) and not str(file).endswith((".json", ".jsonl"))


def _evenly(items: Sequence[Any], most: int) -> Sequence[Any]:
    return items if len(items) <= most else [items[index * len(items) // most] for index in range(most)]


def check_data(config: DictConfig) -> Iterator[Finding]:
    """Check that verl can read every training and validation file, and that its answers can be scored."""
    for key in ("train_files", "val_files"):
        for file in data_files(config, key):
            if file is None:
                yield failed(f"data.{key} is not set", "Give the path of a parquet file")
            elif _is_read_here(file):
                for finding in _check_data_file(Path(file).expanduser(), config):
                    yield Finding(finding.status, f"data.{key}: {finding.found}", finding.way_out)


def _check_data_file(file: Path, config: DictConfig) -> Iterator[Finding]:
    try:
        rows = check_file(file, config.data.prompt_key)
    except DataError as error:
        yield failed_with(str(error))
        return
    table = pq.read_table(file, columns=["data_source", "reward_model"])
    sources = table.column("data_source").unique().to_pylist()
    yield from _check_sources(file, sources, config)
    if config.reward.custom_reward_function.path == OUR_REWARD:
        chosen = _evenly(range(rows), _MOST_GOLDS)
        golds = [
            (row["data_source"], row["reward_model"]["ground_truth"]) for row in table.take(list(chosen)).to_pylist()
        ]
        checked = [(row, gold, unfit_gold(source, gold)) for row, (source, gold) in zip(chosen, golds, strict=True)]
        unfit = [(row, gold, problem) for row, gold, problem in checked if problem]
        if unfit:
            row, gold, problem = unfit[0]
            yield failed(
                f"{file}, row {row}: ground_truth {gold!r} {problem}, so no response can score 1 ({len(unfit)} of "
                f"{len(golds)} rows)",
                "Remove such rows, or choose another reward.custom_reward_function",
            )
            return
    yield ok(f"{file}, {rows:,} rows of {', '.join(map(str, sources))}")


def _check_sources(file: Path, sources: list[str], config: DictConfig) -> Iterator[Finding]:
    """Check that the reward function knows the names of the data."""
    path = config.reward.custom_reward_function.path
    if path == OUR_REWARD:
        unknown = [source for source in sources if not _is_known(source)]
        if unknown:
            yield warning(
                f"{file}: data_source {unknown[0]!r} is unknown to the reward, which then accepts only answers in a "
                "box or after 'answer is'",
                "Prepare the data with `cfpo-verl data prepare`, or see docs/rewards.md",
            )
    elif path is None and not config.reward.reward_model.enable:
        reasons = {source: reason for source in sources if (reason := _why_verl_cannot_score(source))}
        for source, reason in list(reasons.items())[:1]:
            yield failed(
                f"{file}: {reason} data_source {source!r}: the run would fail after the first rollout",
                f"Set reward.custom_reward_function.path={OUR_REWARD}",
            )


def _is_known(source: str) -> bool:
    try:
        data_source(source)
    except KeyError:
        return False
    return True


def _why_verl_cannot_score(source: str) -> str | None:
    """Return why verl's own reward would fail for a data source, None if it would not."""
    from verl.utils.reward_score import default_compute_score

    if _is_known(source) and data_source(source).answer == "unsupported":
        return None  # verl scores it by running code or by search, which is not tried here
    try:
        default_compute_score(source, "", "")
    except NotImplementedError:
        return "verl has no reward function for"
    except ImportError as error:
        return f"verl cannot import ({error}) its reward function for"
    except Exception:
        return None  # it exists, and fails on an empty answer
    return None


def check_steps(config: DictConfig) -> Iterator[Finding]:
    """Check that the data is enough for one step, and for all that are asked for.

    verl divides by the steps of an epoch: with fewer rows than data.train_batch_size it stops after loading the models.
    """
    files = [Path(file).expanduser() for file in data_files(config, "train_files") if _is_read_here(file)]
    if not files or len(files) < len(data_files(config, "train_files")) or not all(map(os.path.isfile, files)):
        return
    try:
        rows = sum(pq.ParquetFile(file).metadata.num_rows for file in files)
    except (OSError, ValueError):
        return  # check_data reports it
    most = config.data.get("train_max_samples", -1)
    rows = min(rows, most) if most > 0 else rows
    steps_per_epoch = rows // config.data.train_batch_size
    if steps_per_epoch == 0:
        yield failed(
            f"data.train_files has {rows} rows, fewer than data.train_batch_size={config.data.train_batch_size}: not "
            "enough for one step, and verl divides by zero after loading the models",
            f"Set data.train_batch_size to {rows} or less, or use more data",
        )
        return
    possible, asked = steps_per_epoch * config.trainer.total_epochs, config.trainer.total_training_steps
    if asked is not None and asked > possible:
        yield warning(
            f"trainer.total_training_steps={asked} is more than trainer.total_epochs={config.trainer.total_epochs} x "
            f"{steps_per_epoch} steps per epoch: the run would end after step {possible}, without the final validation "
            "and checkpoint",
            f"Set trainer.total_epochs={-(-asked // steps_per_epoch)} or more",
        )
    yield ok(f"{rows:,} rows, {steps_per_epoch:,} steps per epoch, {possible if asked is None else asked:,} in total")


def _tokenizer(config: DictConfig) -> Any:
    """Load the tokenizer as verl does, but without the network; None if it is not on this machine."""
    model = config.actor_rollout_ref.model
    folder = local_folder(str(model.tokenizer_path or model.path))
    if folder is None:
        return None
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=model.trust_remote_code, local_files_only=True)
    if model.custom_chat_template is not None:
        tokenizer.chat_template = model.custom_chat_template
    return tokenizer


def check_prompts(config: DictConfig) -> Iterator[Finding]:
    """Check the lengths of the prompts with the model's tokenizer: of all, or of those with the most characters.

    verl's agent loops drop the beginning of a long prompt and only log it, whatever data.truncation says.
    """
    try:
        tokenizer = _tokenizer(config)
    except Exception as error:  # the files of a tokenizer can be broken in many ways
        yield failed(
            f"the tokenizer of {config.actor_rollout_ref.model.path} cannot be loaded ({first_line(error)})",
            "Check actor_rollout_ref.model.tokenizer_path",
        )
        return
    if tokenizer is None:
        yield ok("not measured: the tokenizer is not on this machine")
        return
    limit, options = config.data.max_prompt_length, config.data.apply_chat_template_kwargs
    given = OmegaConf.to_container(options, resolve=True)
    count = partial(_count_tokens, tokenizer, given if isinstance(given, dict) else {})
    for key in ("train_files", "val_files"):
        for file in data_files(config, key):
            if _is_read_here(file) and os.path.isfile(Path(file).expanduser()):
                yield from _check_prompts_of(Path(file).expanduser(), config, limit, count)


def _count_tokens(tokenizer: Any, options: dict[Any, Any], messages: list[dict[str, str]]) -> int:
    return len(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False, **options))


def _check_prompts_of(
    file: Path, config: DictConfig, limit: int, count: Callable[[list[dict[str, str]]], int]
) -> Iterator[Finding]:
    try:
        prompts = pq.read_table(file, columns=[config.data.prompt_key]).column(0).to_pylist()
    except (OSError, ValueError, KeyError):
        return  # check_data reports it
    longest_first = sorted(prompts, key=lambda messages: -sum(len(message["content"]) for message in messages))
    measured = longest_first[:_MOST_PROMPTS]
    try:
        lengths = [count(messages) for messages in measured]
    except Exception as error:  # chat templates raise anything
        yield failed(
            f"{file}: the tokenizer's chat template cannot render its prompts ({first_line(error)}): generation "
            "fails, and with data.filter_overlong_prompts=true verl drops every row instead",
            "Set actor_rollout_ref.model.custom_chat_template",
        )
        return
    too_long = sum(length > limit for length in lengths)
    extent = f"of {len(measured)} rows" if len(measured) == len(prompts) else f"of the {len(measured)} longest rows"
    if not too_long:
        yield ok(f"{file}: prompts of at most {max(lengths)} tokens, limit {limit} ({extent})")
    elif not config.data.filter_overlong_prompts:
        yield failed(
            f"{file}: {too_long} prompts {extent} have more than data.max_prompt_length={limit} tokens, up to "
            f"{max(lengths)}: verl cuts off their beginning, whatever data.truncation says",
            f"Set data.max_prompt_length={max(lengths)}, or data.filter_overlong_prompts=true to drop them",
        )
    elif (
        len(measured) == len(prompts)
        and len(prompts) - too_long < config.data.train_batch_size
        and (str(file) in map(str, data_files(config, "train_files")))
    ):
        yield failed(
            f"{file}: with data.filter_overlong_prompts=true only {len(prompts) - too_long} of {len(prompts)} rows are "
            f"left, fewer than data.train_batch_size={config.data.train_batch_size}",
            f"Set data.max_prompt_length up to {max(lengths)}, or a smaller batch",
        )
    else:
        yield ok(f"{file}: {too_long} prompts {extent} are longer than {limit} tokens and will be dropped")


def check_reward(config: DictConfig) -> Iterator[Finding]:
    """Score known answers with the reward function, loaded and called as verl's reward loop does."""
    chosen = config.reward.custom_reward_function
    if chosen.path is not None and "://" not in chosen.path and not os.path.isfile(chosen.path):
        yield failed(
            f"reward.custom_reward_function.path: {chosen.path} is not a file, which verl notices only after loading "
            "the models",
            f"Give a file that exists on every node, or a module as pkg://NAME, for example {OUR_REWARD}",
        )
    if chosen.path != OUR_REWARD:
        return
    from verl.trainer.ppo.reward import get_custom_reward_fn

    unknown = [key for key in chosen.get("reward_kwargs") or {} if key not in REWARD_KWARGS]
    if unknown:
        yield failed(
            f"reward.custom_reward_function.reward_kwargs.{unknown[0]} is not known",
            f"Choose among: {', '.join(REWARD_KWARGS)}",
        )
        return
    try:
        compute_score = get_custom_reward_fn(config)
        for source, response, gold, expected in canary.CASES:
            call = partial(
                compute_score, data_source=source, solution_str=response, ground_truth=gold, extra_info={"index": 0}
            )
            is_async = inspect.iscoroutinefunction(compute_score)
            scores = asyncio.run(call() if is_async else asyncio.to_thread(call))
            if scores["score"] != expected:
                raise canary.CanaryError(canary.explain(response, gold, scores["score"], expected))
        yield ok(f"{len(canary.CASES)} known answers scored correctly")
    except (UserError, ValueError, ImportError, AttributeError) as error:
        yield failed(f"reward.custom_reward_function: {error}", "See docs/rewards.md for the requirements")
    finally:
        close_rewards()
