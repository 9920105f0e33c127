"""Prompt lengths in tokens, as verl counts them."""

from collections.abc import Callable, Sequence

from jinja2 import TemplateError

from cfpo_verl.data_prep.schema import DataError
from cfpo_verl.errors import first_line

Message = dict[str, str]


def token_counter(tokenizer_name: str) -> Callable[[Sequence[Message]], int]:
    """Return a function that counts the tokens of a prompt, including the chat template and its generation prompt.

    Args:
        tokenizer_name: Folder or hub id of a model.

    Raises:
        DataError: If there is no tokenizer, or it has no chat template.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_name)
    except Exception as error:  # transformers and tokenizers raise whatever the hub or a broken file makes them raise
        raise DataError(f"tokenizer {tokenizer_name}: cannot be loaded ({first_line(error)})") from error
    if tokenizer.chat_template is None:
        raise DataError(
            f"tokenizer {tokenizer_name}: has no chat template, which verl needs for prompts. Give another model"
        )

    def count(messages: Sequence[Message]) -> int:
        try:
            return len(tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, return_dict=False))
        except TemplateError as error:
            raise DataError(
                f"tokenizer {tokenizer_name}: its chat template refuses the prompt {str(messages)[:200]} "
                f"({first_line(error)})"
            ) from error

    return count
