"""cfpo_verl.warmup: a Hugging Face model made in place, seeded, stopped in its window, cached."""

import json
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from cfpo_verl import commands, warmup
from cfpo_verl.data_prep.arithmetic import make_problems
from cfpo_verl.data_prep.schema import Problem
from cfpo_verl.files import FileError

# One answer for every problem is learnt in a few steps: the machinery is under test, not arithmetic.
EASY = [Problem(problem.question, "7") for problem in make_problems(operands=2, seed=0)]
# Any accuracy above the lower edge will do: the upper edge is tested with accuracies that are given.
CONFIG = warmup.WarmupConfig(
    hidden_size=32, layers=1, heads=2, batch_size=32, evaluate_every=2, samples=2, accuracy_high=1.0
)


@pytest.fixture(scope="module")
def warmed():
    return warmup.warm_up(EASY[16:], EASY[:16], CONFIG)


def test_stops_as_soon_as_it_is_good_enough(warmed):
    _model, _tokenizer, measurements = warmed
    *earlier, (_step, last) = measurements
    assert last >= CONFIG.accuracy_low
    assert all(accuracy < CONFIG.accuracy_low for _step, accuracy in earlier)


def test_is_seeded(warmed):
    model, _tokenizer, measurements = warmed
    again, _tokenizer, again_measurements = warmup.warm_up(EASY[16:], EASY[:16], CONFIG)
    assert measurements == again_measurements
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_the_window_decides(monkeypatch):
    def warm_up_measuring(*accuracies):
        given = iter(accuracies)
        monkeypatch.setattr(warmup, "sampled_accuracy", lambda *_args: next(given))
        return warmup.warm_up(EASY[16:], EASY[:16], replace(CONFIG, accuracy_high=0.35))[2]

    assert warm_up_measuring(0.19, 0.20) == [(2, 0.19), (4, 0.20)]
    assert warm_up_measuring(0.35) == [(2, 0.35)]
    with pytest.raises(warmup.WarmupError, match=r"jumped to 0\.36 at step 2, above 0\.35: measure more often"):
        warm_up_measuring(0.36)


def test_a_folder_that_is_something_else_is_not_replaced(warmed, tmp_path):
    (tmp_path / "precious").mkdir()
    warmup.save(tmp_path / "precious", *warmed, {})  # an empty one may be
    warmup.save(tmp_path / "precious", *warmed, {})  # and so may a model of ours
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "notes.txt").write_text("mine")
    with pytest.raises(FileError, match=r"notes exists and is not a warmed-up model.*Choose another --out"):
        warmup.save(tmp_path / "notes", *warmed, {})
    assert (tmp_path / "notes" / "notes.txt").read_text() == "mine"


def test_an_output_that_cannot_be_written_is_named(warmed, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match=r"file.*: cannot be written"):
        warmup.save(tmp_path / "file" / "m", *warmed, {})


def test_a_broken_record_is_named(tmp_path):
    (tmp_path / "warmup.json").write_text('{"fing')
    with pytest.raises(FileError, match=r"warmup\.json: not JSON .* choose another --out"):
        warmup.is_current(tmp_path, {})
    (tmp_path / "warmup.json").write_text("[]")
    assert not warmup.is_current(tmp_path, {})


def test_the_command_ends_with_1_where_the_model_does_not_learn(tmp_path, monkeypatch, arithmetic_files):
    monkeypatch.setattr(warmup, "WarmupConfig", lambda seed: replace(CONFIG, max_steps=2, accuracy_low=1.0, seed=seed))
    train, held_out = map(str, arithmetic_files)
    arguments = ["--train", train, "--held-out", held_out, "--out", str(tmp_path / "m")]
    result = CliRunner().invoke(commands.warmup, arguments, prog_name="cfpo-verl warmup")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("cfpo-verl warmup: the accuracy never reached 1.0 in 2 steps")
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "m").exists()


def test_not_learning_is_an_error():
    with pytest.raises(warmup.WarmupError, match=r"never reached 0\.2 in 4 steps"):
        warmup.warm_up(EASY[16:], EASY[:16], replace(CONFIG, max_steps=4, learning_rate=1e-9))


def test_every_digit_is_a_token_and_the_template_marks_turns(warmed):
    _model, tokenizer, _measurements = warmed
    assert tokenizer.tokenize("31+4=") == ["3", "1", "+", "4", "="]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "3+4="}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<|user|>3+4=<|end|><|assistant|>"
    assert tokenizer.decode(warmup.prompt_ids(tokenizer, Problem("3+4=", "7"))) == text


def test_saved_folder_loads_as_any_hugging_face_model(warmed, tmp_path):
    model, tokenizer, measurements = warmed
    made_from = {"config": {"seed": 0}, "sha256": ["a"]}
    warmup.save(tmp_path / "m", model, tokenizer, measurements, made_from)
    loaded, loaded_tokenizer = (kind.from_pretrained(tmp_path / "m") for kind in (AutoModelForCausalLM, AutoTokenizer))
    assert loaded.config.model_type == "qwen2"
    assert loaded.dtype == torch.float32
    assert loaded_tokenizer.eos_token == "<|end|>" != loaded_tokenizer.pad_token
    assert loaded_tokenizer.chat_template == tokenizer.chat_template
    inputs = torch.tensor([warmup.prompt_ids(loaded_tokenizer, EASY[0])])
    torch.testing.assert_close(loaded(inputs).logits, model(inputs).logits)
    assert json.loads((tmp_path / "m" / "warmup.json").read_text())["fingerprint"] == made_from


def test_cache_holds_only_for_the_same_config_and_data(warmed, tmp_path):
    file = tmp_path / "data"
    file.write_text("1")
    made_from = warmup.fingerprint(CONFIG, [file])
    assert not warmup.is_current(tmp_path / "m", made_from)
    warmup.save(tmp_path / "m", *warmed, made_from)
    assert warmup.is_current(tmp_path / "m", warmup.fingerprint(CONFIG, [file]))
    assert not warmup.is_current(tmp_path / "m", warmup.fingerprint(replace(CONFIG, seed=1), [file]))
    file.write_text("2")
    assert not warmup.is_current(tmp_path / "m", warmup.fingerprint(CONFIG, [file]))


def test_accuracy_is_that_of_the_reward():
    class AlwaysSeven(torch.nn.Module):
        def generate(self, input_ids, max_new_tokens, **_kwargs):
            seven, end = tokenizer.convert_tokens_to_ids(["7", "<|end|>"])
            return torch.cat([input_ids, torch.tensor([[seven, end]] * len(input_ids))], dim=1)

    tokenizer = warmup.train_tokenizer(["3+4=7"], 300)
    problems = [Problem("3+4=", "7"), Problem("1+1=", "2")]
    assert warmup.sampled_accuracy(AlwaysSeven(), tokenizer, problems, samples=3, max_new_tokens=2) == 0.5
