"""cfpo_verl.doctor.data: every file, every source, enough rows, prompts that fit, a reward that decides."""

import pyarrow.parquet as pq
import pytest
from doctor_configs import failed, gpu_config, ok, quickstart, warnings
from omegaconf import open_dict
from parquet_rows import write_rows

from cfpo_verl import warmup
from cfpo_verl.data_prep.schema import Problem, to_row
from cfpo_verl.doctor import data


@pytest.fixture
def config(arithmetic_files):
    """The quickstart's config with data that exists: 84 and 16 rows."""
    train_file, val_file = arithmetic_files
    return quickstart(f"data.train_files={train_file}", f"data.val_files={val_file}")


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    """A model folder with a tokenizer that has a token for each digit and sign, and puts 3 around a prompt."""
    folder = tmp_path_factory.mktemp("tokenizer")
    # A vocabulary of bytes and special tokens only, so that nothing is merged.
    warmup.train_tokenizer(["1+1="], 260).save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "qwen2"}')
    return folder


def rows_of(folder, name, *problems, source="arithmetic"):
    rows = [to_row(problem, source, "math", "train", index) for index, problem in enumerate(problems)]
    return str(write_rows(folder / name, rows))


def test_correct_data(config):
    found = list(data.check_data(config))
    assert failed(found) == warnings(found) == []
    train, val = ok(found)
    assert train.endswith("train.parquet, 84 rows of arithmetic")
    assert val.startswith("data.val_files: ")
    assert val.endswith("test.parquet, 16 rows of arithmetic")


def test_every_data_file_of_a_list_is_checked(config, arithmetic_files):
    no_prompt = arithmetic_files[0].with_name("no_prompt.parquet")
    pq.write_table(pq.read_table(arithmetic_files[0]).drop_columns(["prompt"]), no_prompt)
    config.data.train_files = [str(arithmetic_files[0]), str(no_prompt), "hdfs://cluster/elsewhere.parquet"]
    [problem] = failed(data.check_data(config))
    assert problem.startswith(f"data.train_files: {no_prompt}: column 'prompt' is missing")


def test_a_data_file_that_may_not_be_read(config, monkeypatch):
    def deny(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pyarrow.parquet.ParquetFile", deny)
    assert "cannot be read" in failed(data.check_data(config))[0]
    assert list(data.check_steps(config)) == []


def test_nothing_set_is_a_problem_too(config):
    config.data.val_files = None
    assert failed(data.check_data(config)) == ["data.val_files is not set. Give the path of a parquet file"]


def test_gold_answers_that_no_response_can_match(config, tmp_path):
    config.data.train_files = rows_of(tmp_path, "words.parquet", Problem("1+1=", "2"), Problem("What?", "twelve"))
    [problem] = failed(data.check_data(config))
    assert "words.parquet, row 1: ground_truth 'twelve' must be a plain number" in problem
    assert "(1 of 2 rows)" in problem
    config.reward.custom_reward_function.path = "pkg://my.rewards"
    assert failed(data.check_data(config)) == []


def test_tasks_that_no_answer_can_be_compared_in_are_refused(config, tmp_path):
    config.data.train_files = rows_of(
        tmp_path, "code.parquet", Problem("Write a program.", "{}"), source="codecontests"
    )
    [problem] = failed(data.check_data(config))
    assert "belongs to a task that no comparison of final answers can score" in problem


def test_large_files_are_sampled(config, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "_MOST_GOLDS", 2)
    config.data.train_files = rows_of(
        tmp_path,
        "words.parquet",
        Problem("1+1=", "2"),
        Problem("a", "3"),
        Problem("What?", "twelve"),
        Problem("b", "4"),
    )
    [problem] = failed(data.check_data(config))
    assert "row 2: ground_truth 'twelve'" in problem
    assert "(1 of 2 rows)" in problem


def test_unknown_sources(config, tmp_path):
    config.data.train_files = rows_of(tmp_path, "own.parquet", Problem("1+1=", "2"), source="my/own")
    [warning] = warnings(data.check_data(config))
    assert "own.parquet: data_source 'my/own' is unknown to the reward" in warning
    # verl's own reward raises NotImplementedError at the first response.
    config.reward.custom_reward_function.path = None
    problems = failed(data.check_data(config))
    assert "verl has no reward function for data_source 'my/own'" in problems[0]
    assert "verl has no reward function for data_source 'arithmetic'" in problems[1]


def test_a_reward_of_verl_that_lacks_a_package(config, tmp_path, monkeypatch):
    config.data.train_files = rows_of(tmp_path, "known.parquet", Problem("1+1=", "2"), source="openai/gsm8k")
    config.reward.custom_reward_function.path = None

    def lacking(*_arguments):
        raise ModuleNotFoundError("No module named 'pyext'")

    monkeypatch.setattr("verl.utils.reward_score.default_compute_score", lacking)
    problem = failed(data.check_data(config))[0]
    assert "verl cannot import (No module named 'pyext') its reward function for data_source 'openai/gsm8k'" in problem


@pytest.mark.parametrize("source", ["openai/gsm8k", "HuggingFaceH4/MATH-500", "math_dapo", "codecontests"])
def test_sources_that_verl_knows(config, tmp_path, source):
    file = rows_of(tmp_path, "known.parquet", Problem("1+1=", "2"), source=source)
    config.data.train_files = config.data.val_files = file
    config.reward.custom_reward_function.path = None
    assert failed(data.check_data(config)) == []


def test_steps(config):
    # 84 rows in batches of 32.
    assert ok(data.check_steps(config)) == ["84 rows, 2 steps per epoch, 20 in total"]
    config.trainer.total_training_steps = None
    config.trainer.total_epochs = 3
    assert ok(data.check_steps(config)) == ["84 rows, 2 steps per epoch, 6 in total"]


def test_fewer_rows_than_a_batch(config):
    config.data.train_batch_size = 85
    [problem] = failed(data.check_steps(config))
    assert problem.startswith(
        "data.train_files has 84 rows, fewer than data.train_batch_size=85: not enough for one step"
    )
    config.data.train_batch_size, config.data.train_max_samples = 32, 20
    assert "has 20 rows" in failed(data.check_steps(config))[0]


def test_more_steps_than_the_epochs_have(config):
    config.trainer.total_epochs = 3
    [warning] = warnings(data.check_steps(config))
    assert "total_training_steps=20 is more than trainer.total_epochs=3 x 2 steps per epoch" in warning
    assert "the run would end after step 6, without the final validation and checkpoint" in warning
    assert warning.endswith("Set trainer.total_epochs=10 or more")


def test_prompts_are_measured(config, tokenizer_folder):
    config.actor_rollout_ref.model.path = str(tokenizer_folder)
    train, _val = ok(data.check_prompts(config))
    assert train.endswith("train.parquet: prompts of at most 7 tokens, limit 16 (of 84 rows)")


def test_prompts_over_length(config, tokenizer_folder, tmp_path):
    config.actor_rollout_ref.model.path = str(tokenizer_folder)
    config.data.max_prompt_length, config.data.train_batch_size = 12, 1
    config.data.train_files = rows_of(tmp_path, "long.parquet", Problem("1+1=", "2"), Problem("1+1+1+1+1=", "5"))
    [problem] = failed(data.check_prompts(config))
    assert "1 prompts of 2 rows have more than data.max_prompt_length=12 tokens, up to 13" in problem
    assert "verl cuts off their beginning" in problem
    config.data.filter_overlong_prompts = True
    assert failed(data.check_prompts(config)) == []
    assert "1 prompts of 2 rows are longer than 12 tokens and will be dropped" in ok(data.check_prompts(config))[0]
    config.data.train_batch_size = 2
    [problem] = failed(data.check_prompts(config))
    assert "only 1 of 2 rows are left, fewer than data.train_batch_size=2" in problem


def test_of_a_large_file_the_longest_prompts_are_measured(config, tokenizer_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "_MOST_PROMPTS", 1)
    config.actor_rollout_ref.model.path = str(tokenizer_folder)
    config.data.max_prompt_length = 8
    config.data.train_files = rows_of(tmp_path, "long.parquet", Problem("1+1=", "2"), Problem("1+1+1+1+1=", "5"))
    [problem] = failed(data.check_prompts(config))
    assert "1 prompts of the 1 longest rows have more than" in problem


def test_a_chat_template_that_does_not_take_the_prompts(config, tokenizer_folder):
    config.actor_rollout_ref.model.path = str(tokenizer_folder)
    config.actor_rollout_ref.model.custom_chat_template = "{{ raise_exception('system first') }}"
    problem = failed(data.check_prompts(config))[0]
    assert "the tokenizer's chat template cannot render its prompts (system first)" in problem
    assert "verl drops every row instead" in problem


def test_a_torn_tokenizer(config, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    (tmp_path / "tokenizer.json").write_text("{")
    config.actor_rollout_ref.model.path = str(tmp_path)
    [problem] = failed(data.check_prompts(config))
    assert problem.startswith(f"the tokenizer of {tmp_path} cannot be loaded")


def test_no_tokenizer_at_hand(config):
    config.actor_rollout_ref.model.path = "./nowhere"
    assert ok(data.check_prompts(config)) == ["not measured: the tokenizer is not on this machine"]


def test_the_reward_is_tried_through_verls_loader(config):
    found = list(data.check_reward(config))
    assert failed(found) == []
    assert ok(found) == ["10 known answers scored correctly"]


def test_a_reward_that_cannot_decide_is_refused(config):
    config.reward.custom_reward_function.reward_kwargs.deadline_s = 1e-6
    [problem] = failed(data.check_reward(config))
    assert problem.startswith("reward.custom_reward_function: reward canary: the response")
    assert "(the comparison exceeded its time or memory limit)" in problem


def test_reward_kwargs_are_checked(config):
    kwargs = config.reward.custom_reward_function.reward_kwargs
    kwargs.memory_gb = 0
    [problem] = failed(data.check_reward(config))
    assert problem.startswith(
        "reward.custom_reward_function: reward_kwargs.memory_gb must be a number greater than 0, got 0"
    )
    with open_dict(kwargs):
        kwargs.diagnostic = True
    [problem] = failed(data.check_reward(config))
    assert "reward_kwargs.diagnostic is not known. Choose among: diagnostics, workers, deadline_s, memory_gb" in problem


def test_a_reward_function_that_is_not_there_is_named(config):
    config.reward.custom_reward_function.name = "compute"
    [problem] = failed(data.check_reward(config))
    assert "compute" in problem


def test_the_reward_of_somebody_else_is_left_alone(tmp_path):
    config = gpu_config("reward.custom_reward_function.path=pkg://my.rewards")
    assert list(data.check_reward(config)) == []
    config.reward.custom_reward_function.path = str(tmp_path / "reward.py")
    [problem] = failed(data.check_reward(config))
    assert "reward.py is not a file, which verl notices only after loading the models" in problem
    (tmp_path / "reward.py").touch()
    assert list(data.check_reward(config)) == []
