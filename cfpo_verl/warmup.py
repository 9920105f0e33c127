"""Train a small causal language model from scratch, just enough for RL to have a signal.

The architecture is Qwen2 in the Hugging Face format, so verl and vLLM treat it as any other model. The tokenizer is
trained too, and nothing is downloaded.

The model imitates demonstrations that give the right answer in one of four phrasings, of which the verifier accepts
only the plain number. So, like a pretrained model, it knows more than it is rewarded for, and RL can improve it.
"""

import json
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from cfpo_verl.data_prep.schema import Problem
from cfpo_verl.data_prep.writing import sha256
from cfpo_verl.errors import UserError
from cfpo_verl.files import FileError, reading, writing
from cfpo_verl.rewards import compute_score

END = "<|end|>"
USER = "<|user|>"
ASSISTANT = "<|assistant|>"
PAD = "<|pad|>"

# Only the first is a plain number.
ANSWER_STYLES = ("{}", "{}?", "maybe {}", "{} or so")

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


class WarmupError(UserError):
    """The warm-up failed: the model learnt too little, or too much between two measurements."""

    exit_status = 1


@dataclass(frozen=True)
class WarmupConfig:
    """Settings of the warm-up; equal settings and data give the same model.

    Args:
        seed: Seed for the weights, the order of the examples and the sampling.
        hidden_size: Width of the model.
        layers: Number of transformer layers.
        heads: Number of attention heads. vLLM's CPU attention needs a head size (hidden_size / heads) of at least 32.
        vocabulary: Size of the byte-level BPE, special tokens included.
        batch_size: Examples per optimiser step.
        learning_rate: AdamW learning rate, constant after a linear warm-up of 50 steps.
        evaluate_every: Optimiser steps between two measurements of the accuracy.
        accuracy_low: Stop as soon as the sampled accuracy is at least this.
        accuracy_high: Fail if the accuracy is above this by then.
        max_steps: Give up after this many steps.
        samples: Responses per held-out prompt in a measurement, sampled at temperature 1.
        max_new_tokens: Longest response, in tokens.
    """

    seed: int = 0
    hidden_size: int = 128
    layers: int = 2
    heads: int = 4
    vocabulary: int = 300
    batch_size: int = 256
    learning_rate: float = 2e-3
    evaluate_every: int = 20
    accuracy_low: float = 0.20
    accuracy_high: float = 0.35
    max_steps: int = 1000
    samples: int = 4
    max_new_tokens: int = 8


def train_tokenizer(texts: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE in which every digit is a token of its own, with a chat template.

    Args:
        texts: Texts from which the merges are learnt.
        vocabulary: Number of tokens: 256 bytes, four special tokens, the rest merges.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, END, USER, ASSISTANT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, bos_token=None, chat_template=CHAT_TEMPLATE
    )


def build_model(tokenizer: PreTrainedTokenizerFast, config: WarmupConfig) -> Qwen2ForCausalLM:
    """Return a randomly initialised Qwen2 in float32 for the tokenizer."""
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden_size,
            intermediate_size=3 * config.hidden_size,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
        )
    )


def prompt_ids(tokenizer: PreTrainedTokenizerFast, problem: Problem) -> list[int]:
    """Return the prompt as verl presents it: with the chat template and its generation prompt."""
    messages = [{"role": "user", "content": problem.question}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return tokenizer.encode(text, add_special_tokens=False)


def _pad(sequences: list[list[int]], value: int, left: bool = False) -> torch.Tensor:
    width = max(map(len, sequences))
    padding = [[value] * (width - len(sequence)) for sequence in sequences]
    rows = [p + s if left else s + p for p, s in zip(padding, sequences, strict=True)]
    return torch.tensor(rows)


def _demonstrate(tokenizer: PreTrainedTokenizerFast, problem: Problem, demonstrator: random.Random) -> list[int]:
    answer = demonstrator.choice(ANSWER_STYLES).format(problem.answer)
    return [*tokenizer.encode(answer, add_special_tokens=False), tokenizer.eos_token_id]


@torch.no_grad()
def sampled_accuracy(
    model: Qwen2ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    problems: list[Problem],
    samples: int,
    max_new_tokens: int,
) -> float:
    """Return the fraction of right answers among `samples` responses per problem, sampled at temperature 1.

    Responses are scored by the reward that training uses.
    """
    prompts = [prompt_ids(tokenizer, problem) for problem in problems for _ in range(samples)]
    golds = [problem.answer for problem in problems for _ in range(samples)]
    inputs = _pad(prompts, tokenizer.pad_token_id, left=True)
    outputs = model.generate(
        input_ids=inputs,
        attention_mask=(inputs != tokenizer.pad_token_id).long(),
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=max_new_tokens,
    )
    responses = tokenizer.batch_decode(outputs[:, inputs.shape[1] :], skip_special_tokens=True)
    # The score of problems whose response is nothing but the answer.
    scores = [
        compute_score("arithmetic", response, gold)["acc"] for response, gold in zip(responses, golds, strict=True)
    ]
    return sum(scores) / len(scores)


def warm_up(
    train: list[Problem],
    held_out: list[Problem],
    config: WarmupConfig,
    on_measurement: Callable[[int, float], None] = lambda _step, _accuracy: None,
) -> tuple[Qwen2ForCausalLM, PreTrainedTokenizerFast, list[tuple[int, float]]]:
    """Train a new model on the task by next-token prediction until it sometimes succeeds.

    Args:
        train: Problems to learn from.
        held_out: Problems to measure the accuracy on; not trained on.
        config: Settings.
        on_measurement: Called with (step, accuracy) after every measurement.

    Returns:
        The model, its tokenizer, and all measurements as (step, accuracy).

    Raises:
        WarmupError: If the accuracy exceeded `accuracy_high` in one jump, or never reached `accuracy_low`.
    """
    torch.manual_seed(config.seed)
    demonstrator = random.Random(config.seed)
    texts = [problem.question + style.format(problem.answer) for problem in train for style in ANSWER_STYLES]
    tokenizer = train_tokenizer(texts, config.vocabulary)
    model = build_model(tokenizer, config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 50))
    measurements: list[tuple[int, float]] = []
    for step in range(1, config.max_steps + 1):
        batch = [
            (prompt_ids(tokenizer, problem), _demonstrate(tokenizer, problem, demonstrator))
            for problem in demonstrator.choices(train, k=config.batch_size)
        ]
        inputs = _pad([prompt + answer for prompt, answer in batch], tokenizer.pad_token_id)
        # -100 is the label that transformers ignores: only the answer is learnt.
        labels = _pad([[-100] * len(prompt) + answer for prompt, answer in batch], -100)
        mask = (inputs != tokenizer.pad_token_id).long()
        loss = model(input_ids=inputs, attention_mask=mask, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % config.evaluate_every:
            continue
        accuracy = sampled_accuracy(model, tokenizer, held_out, config.samples, config.max_new_tokens)
        measurements.append((step, accuracy))
        on_measurement(step, accuracy)
        if accuracy > config.accuracy_high:
            raise WarmupError(
                f"the accuracy jumped to {accuracy:.2f} at step {step}, above {config.accuracy_high}: "
                "measure more often (evaluate_every) or learn more slowly (learning_rate)"
            )
        if accuracy >= config.accuracy_low:
            return model, tokenizer, measurements
    raise WarmupError(
        f"the accuracy never reached {config.accuracy_low} in {config.max_steps} steps; the last measurements (step, "
        f"accuracy) are {measurements[-5:]}. Give data in which the answer is a number of a few digits, such as "
        "cfpo-verl data prepare arithmetic writes"
    )


def fingerprint(config: WarmupConfig, files: Sequence[Path]) -> dict[str, object]:
    """Return what determines a warmed-up model: its config and the hashes of its data files."""
    return {"config": asdict(config), "sha256": [sha256(file) for file in files]}


def is_current(out: Path, expected: dict[str, object]) -> bool:
    """Return whether `out` has a finished model with this fingerprint.

    Raises:
        FileError: If its `warmup.json` cannot be read.
    """
    record = out / "warmup.json"
    if not record.is_file():
        return False
    try:
        with reading(record):
            found = json.loads(record.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise FileError(f"{record}: not JSON ({error}). Remove {out}, or choose another --out") from error
    return isinstance(found, dict) and found.get("fingerprint") == expected


def check_replaceable(out: Path) -> None:
    """Refuse a folder that this module did not write, since saving would delete its content.

    Raises:
        FileError: If `out` exists, is not empty and has no `warmup.json`.
    """
    if out.exists() and not (out / "warmup.json").is_file() and (not out.is_dir() or any(out.iterdir())):
        raise FileError(f"{out} exists and is not a warmed-up model, so it is not overwritten. Choose another --out")


def save(
    out: Path,
    model: Qwen2ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    measurements: list[tuple[int, float]],
    made_from: dict[str, object],
) -> None:
    """Write a Hugging Face folder with a `warmup.json`, replacing an older one only when it is complete.

    Raises:
        FileError: If `out` is something else (see `check_replaceable`), or the system refuses to write it.
    """
    check_replaceable(out)
    unfinished = out.with_name(f"{out.name}.tmp")
    record = {"fingerprint": made_from, "measurements": measurements}
    with writing(out):
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        (unfinished / "warmup.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        shutil.rmtree(out, ignore_errors=True)
        unfinished.rename(out)
