"""cfpo_verl.progress: a line for each step, while verl's file grows."""

import io
import json
import time

from cfpo_verl.progress import describe, following


def test_line_shows_what_there_is():
    metrics = {"critic/score/mean": 0.25, "actor/ppo_kl": 0.01, "val-core/arithmetic/acc/mean@4": 0.5}
    metrics |= {"actor/entropy": None, "val-core/gsm8k/acc/mean@1": None}  # how verl's logger writes NaN
    assert describe(2, metrics) == "step 2  reward 0.250  kl 0.0100  validation 0.500"


def test_follows_a_file_that_appears_later_and_waits_for_whole_lines(tmp_path):
    stream, file = io.StringIO(), tmp_path / "metrics.1.jsonl"
    with following(file, total_steps=2, stream=stream):
        first, second = (json.dumps({"step": n, "data": {"critic/score/mean": n / 4}}) + "\n" for n in (1, 2))
        with file.open("w", buffering=1) as writer:
            writer.write(first + second[:9])
            writer.flush()
            time.sleep(1.2)
            writer.write(second[9:])
    lines = [" ".join(line.split()) for line in stream.getvalue().splitlines()]
    assert "step 1 reward 0.250" in lines
    assert "step 2 reward 0.500" in lines
    assert "2/2" in lines[-1]


def test_a_metrics_file_that_cannot_be_read_does_not_end_the_run(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    stream = io.StringIO()
    with following(tmp_path / "metrics.jsonl", 3, stream):
        pass
    assert "metrics.jsonl: cannot be read (Is a directory). Training continues without progress" in stream.getvalue()
