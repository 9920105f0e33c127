"""Glue: the tokens of a prompt, by verl's own code, so that a model is asked here what it was asked in training."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cfpo_verl.evaluation.sets import EvaluationError
from cfpo_verl.terminal import first_line


@dataclass(frozen=True)
class Prompter:
    """How a model is asked.

    Args:
        chat_template: Its template, None if it has none.
        revision: Commit of its files on the hub, None for a folder.
        context: Most tokens of prompt and response together, None if its config does not say.
        encode: From messages to tokens.
        decode: From tokens to text, special tokens included.
        decode_response: From tokens to text, without special tokens, as verl's reward loop reads it.
    """

    chat_template: str | None
    revision: str | None
    context: int | None
    encode: Callable[[Sequence[Mapping[str, str]]], list[int]]
    decode: Callable[[Sequence[int]], str]
    decode_response: Callable[[Sequence[int]], str]


def load_prompter(path: str, kwargs: Mapping[str, Any], trust_remote_code: bool = False) -> Prompter:
    """Load what is needed to ask a model: the very builder of tokens that verl's agent loop uses.

    Args:
        path: Folder or hub id.
        kwargs: For the chat template, verl's `data.apply_chat_template_kwargs`.
        trust_remote_code: Whether code of the model's folder may run.

    Raises:
        EvaluationError: If tokenizer or config cannot be loaded.
    """
    from jinja2 import TemplateError
    from transformers import AutoConfig
    from verl.utils import hf_tokenizer
    from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder

    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
        tokenizer = hf_tokenizer(path, trust_remote_code=trust_remote_code)
        builder = create_continuous_token_builder(
            tokenizer, hf_model_type=config.model_type, chat_template_kwargs=dict(kwargs)
        )
    except Exception as error:  # only libraries run above, and tokenizers raises plain Exceptions
        raise EvaluationError(f"{path}: the model cannot be loaded ({first_line(error)})") from error
    if not tokenizer.chat_template:
        raise EvaluationError(f"{path}: the tokenizer has no chat template, which verl needs to ask a model")

    def encode(messages: Sequence[Mapping[str, str]]) -> list[int]:
        try:
            return list(builder.build_initial_tokens([dict(message) for message in messages]))
        except TemplateError as error:  # a template may refuse a message, or fail on an argument
            raise EvaluationError(f"{path}: the chat template fails on a prompt ({first_line(error)})") from error

    return Prompter(
        tokenizer.chat_template,
        getattr(config, "_commit_hash", None),
        getattr(config, "max_position_embeddings", None),
        encode,
        lambda tokens: str(tokenizer.decode(tokens)),
        lambda tokens: str(tokenizer.decode(tokens, skip_special_tokens=True)),
    )
