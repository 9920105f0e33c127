"""How long a prompt is, as verl counts it."""

from collections.abc import Callable, Sequence

from cfpo_verl.data_prep.schema import DataError

Message = dict[str, str]


def token_counter(tokenizer_name: str) -> Callable[[Sequence[Message]], int]:
    """Return a function that counts the tokens of a prompt: with the chat template and the words that begin an answer.

    Args:
        tokenizer_name: Folder or hub id of a model.

    Raises:
        DataError: If there is no tokenizer.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_name)
    except (OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [repr(error)])[0]
        raise DataError(f"tokenizer {tokenizer_name}: cannot be loaded ({reason})") from error

    def count(messages: Sequence[Message]) -> int:
        return len(tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, return_dict=False))

    return count
