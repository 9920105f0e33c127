"""data_prep.near_duplicates: what MinHash proposes and word runs confirm."""

import json
import random
import subprocess
import sys

import pytest
from conftest import shared_data

from cfpo_verl.data_prep import near_duplicates
from cfpo_verl.data_prep.near_duplicates import find_near_duplicates, jaccard, word_grams
from cfpo_verl.data_prep.text import quantities

STORY = (
    "Tom went to the market with his sister on a sunny morning and bought {} red apples and {} ripe pears for the "
    "whole family. How many pieces of fruit did they carry home?"
)


def test_a_changed_name_is_a_near_duplicate_and_the_first_is_kept():
    texts = ["What is 1 + 1?", STORY.format(3, 4), STORY.format(3, 4).replace("Tom", "Bob"), STORY.format(3, 4).upper()]
    # The name is the first word, and so in one run of three words only.
    runs = len(STORY.split()) - 2
    assert find_near_duplicates(texts, 0.8) == [(1, 2, (runs - 1) / (runs + 1)), (1, 3, 1.0)]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param("3+4+5=", "3+4+6=", id="sum"),
        pytest.param("3+4-5=", "3-4+5=", id="signs"),
        pytest.param(STORY.format(3, 4), STORY.format(3, 5), id="number"),
        pytest.param(STORY.format("three", "four"), STORY.format("three", "five"), id="number-word"),
        pytest.param(STORY.format(3, 4), STORY.format(4, 3), id="order"),
        pytest.param(r"Compute $\arccos (-1)$.", r"Compute $\arccos (1)$.", id="sign"),
    ],
)
def test_one_template_with_other_numbers_is_no_duplicate(one, other):
    assert find_near_duplicates([one, other], 0.01) == []
    assert find_near_duplicates([one, one], 0.01) == [(0, 1, 1.0)]


def test_the_most_similar_of_the_kept_ones_is_named():
    words = STORY.format(3, 4).split()
    text = " ".join(words)
    far, near = " ".join([*words[:-4], *"abcd"]), " ".join(["x", *words[1:]])
    grams = {name: word_grams(name) for name in (text, far, near)}
    assert jaccard(grams[far], grams[near]) < 0.75 < jaccard(grams[far], grams[text])
    assert find_near_duplicates([far, near, text], 0.75) == [(1, 2, jaccard(grams[near], grams[text]))]


def test_whatever_is_proposed_is_checked(monkeypatch):
    class ProposesAll:
        def __init__(self, **_settings):
            self.keys = []

        def insert(self, key, _sketch):
            self.keys.append(key)

        def query(self, _sketch):
            return self.keys

    monkeypatch.setattr(near_duplicates, "RMinHashLSH", ProposesAll)
    texts = [STORY.format(3, 4), STORY.format(3, 5), "Something else, 3 and 4", STORY.format(3, 4)]
    assert find_near_duplicates(texts, 0.5) == [(0, 3, 1.0)]


def test_answers_tell_templates_apart():
    texts = [r"We have $\sin A = 2\cos A$. What is $\tan A$?", r"We have $\sin A = 2\cos A$. What is $\cos A$?"]
    assert [pair[:2] for pair in find_near_duplicates(texts, 0.6)] == [(0, 1)]
    assert find_near_duplicates(texts, 0.6, answers=["2", "1"]) == []
    assert [pair[:2] for pair in find_near_duplicates(texts, 0.6, answers=["A ", "a"])] == [(0, 1)]


def test_texts_without_words_are_no_duplicates():
    assert find_near_duplicates(["", "", "$+$", "$+$"], 0.5) == []


def altered(text: str, changes: int, generator: random.Random) -> str:
    words = text.split()
    for place in generator.sample(range(len(words)), changes):
        words[place] = "w" + "".join(generator.choices("abcdefgh", k=6))
    return " ".join(words)


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.85])
def test_banding_misses_no_pair_that_comparing_all_finds(threshold):
    generator = random.Random(0)
    originals = [altered(" ".join("x" * 60), 60, generator) for _ in range(60)]
    texts = originals + [altered(text, generator.randrange(9), generator) for text in originals for _ in range(5)]
    grams = list(map(word_grams, texts))
    kept: list[int] = []
    expected = []
    for current, found in enumerate(grams):
        best = max(((jaccard(found, grams[earlier]), -earlier) for earlier in kept), default=(0.0, 0))
        if best[0] >= threshold:
            expected.append((-best[1], current, best[0]))
        else:
            kept.append(current)
    assert find_near_duplicates(texts, threshold) == expected
    assert len(expected) > 50


def test_the_same_texts_give_the_same_pairs_in_every_process():
    texts = [STORY.format(n % 7, n % 5).replace("Tom", f"Tom{'abc'[n % 3]}") for n in range(60)]
    code = (
        "import json, sys; from cfpo_verl.data_prep.near_duplicates import find_near_duplicates;"
        "print(json.dumps(find_near_duplicates(json.load(sys.stdin), 0.6)))"
    )
    runs = {
        subprocess.run([sys.executable, "-c", code], input=json.dumps(texts), capture_output=True, text=True).stdout
        for _ in range(2)
    }
    assert runs == {json.dumps(find_near_duplicates(texts, 0.6)) + "\n"}


def test_progress_is_told():
    told: list[int] = []
    find_near_duplicates(["a b c"] * 1500, 0.5, on_progress=told.append)
    assert told == [1000, 1500]


@pytest.mark.parametrize("threshold", [0, 1.01, -1])
def test_a_threshold_out_of_range_is_refused(threshold):
    with pytest.raises(ValueError, match="threshold must be above 0 and at most 1"):
        find_near_duplicates(["a"], threshold)


def test_answers_are_needed_for_all_or_none():
    with pytest.raises(ValueError, match="2 texts need as many answers, got 1"):
        find_near_duplicates(["a", "b"], 0.5, answers=["1"])


def problems(name: str, column: str) -> list[str]:
    return [json.loads(line)[column] for line in shared_data(name).read_text(encoding="utf-8").splitlines()]


def test_gsm8k_train_holds_one_near_duplicate():
    pairs = find_near_duplicates(problems("gsm8k_train.jsonl", "question"), 0.6)
    # Josie and Amanda, who received $50 as a gift.
    assert [pair[:2] for pair in pairs] == [(2483, 6691)]


def test_templates_of_gsm8k_with_other_numbers_stay():
    texts = problems("gsm8k_train.jsonl", "question")[:2000]
    changed = [text.replace("2", "7").replace("3", "8") for text in texts]
    differ = sum(quantities(a) != quantities(b) for a, b in zip(texts, changed, strict=True))
    pairs = find_near_duplicates(texts + changed, 0.5)
    assert len(pairs) == 2000 - differ
    assert all(dropped == kept + 2000 for kept, dropped, _similarity in pairs)
    assert 1000 < differ < 2000


def test_math_holds_templates_that_only_answers_tell_apart():
    texts = problems("math_test.jsonl", "problem")
    pairs = find_near_duplicates(texts, 0.8)
    assert len(pairs) == 16
    # Ways to arrange the letters of one word or another.
    assert sum(kept == 1215 for kept, _dropped, _similarity in pairs) == 7
    assert all(quantities(texts[kept]) == quantities(texts[dropped]) for kept, dropped, _ in pairs)
