"""Glue to verl: prompts are tokenized by verl's own code, so that they are the same as in training."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cfpo_verl.errors import first_line
from cfpo_verl.evaluation.sets import EvaluationError


@dataclass(frozen=True)
class Prompter:
    """Encoder and decoder of a model.

    Args:
        chat_template: Its chat template.
        revision: Commit on the hub; None for a folder.
        context: Maximum length of prompt plus response, in tokens; None if the model's config does not say.
        encode: Turns messages into tokens.
        decode: Turns tokens into text with special tokens.
        decode_response: Turns tokens into text without special tokens, as verl's reward loop does.
    """

    chat_template: str
    revision: str | None
    context: int | None
    encode: Callable[[Sequence[Mapping[str, str]]], list[int]]
    decode: Callable[[Sequence[int]], str]
    decode_response: Callable[[Sequence[int]], str]


def load_prompter(path: str, kwargs: Mapping[str, Any], trust_remote_code: bool = False) -> Prompter:
    """Load tokenizer and chat template through the token builder of verl's agent loop.

    Args:
        path: Folder or hub id.
        kwargs: Arguments of the chat template, verl's `data.apply_chat_template_kwargs`.
        trust_remote_code: Whether the model folder's own Python code may run.

    Raises:
        EvaluationError: If tokenizer or config cannot be loaded, or there is no chat template.
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
        raise EvaluationError(f"{path}: the tokenizer has no chat template, which verl needs to build prompts")

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
