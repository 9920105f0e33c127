"""cfpo_verl.rewards: what counts as the right answer, and through verl's own loader."""

import pytest

from cfpo_verl.rewards import compute_score
from cfpo_verl.rewards.extract import canonical_answer, last_boxed


@pytest.mark.parametrize(
    ("response", "gold", "expected"),
    [
        ("12", "12", 1),
        (" 12\n", "12", 1),
        ("012", "12", 1),
        ("12.0", "12", 1),
        ("1,234", "1234", 1),
        ("$18", "18", 1),
        ("-3", "-3", 1),
        ("so 3 + 4 is 7\n#### 7", "7", 1),
        ("#### 5\nno, wait\n#### 7 ", "7", 1),
        ("13", "12", 0),
        ("12?", "12", 0),
        ("maybe 12", "12", 0),
        ("12 or 13", "12", 0),
        ("12 13", "12", 0),
        ("1 2", "12", 0),
        ("3", "-3", 0),
        ("1,23", "123", 0),
        ("", "12", 0),
        ("####", "12", 0),
        ("#### 7 #### 8", "7", 0),
        ("nan", "12", 0),
        ("1e1", "10", 0),
        ("١٢", "12", 0),
    ],
)
def test_scores(response, gold, expected):
    assert compute_score("arithmetic", response, gold) == {"score": expected, "acc": expected}


def test_takes_whatever_else_verl_passes():
    assert compute_score("s", "1", "1", {"index": 0}, reward_router_address=None)["score"] == 1.0


@pytest.mark.parametrize(
    ("response", "gold", "expected"),
    [
        (r"so \boxed{\frac{1}{2}}", r"\frac{1}{2}", 1),
        (r"\boxed{1} \boxed{\dfrac{1}{2} }.", r"\frac{1}{2}", 1),
        (r"#### $\left( 3, \frac{\pi}{2} \right)$.", r"\left( 3, \frac{\pi}{2} \right)", 1),
        (r"\boxed{12}", "12", 1),
        (r"\boxed{$12$}", "12", 1),
        ("### Solution\n#### Step 1\nadd\n#### Step 2\nSo \\boxed{5}.", "5", 1),
        ("So \\boxed{5}.\n####", "5", 1),
        ("\\boxed{5}\n#### 6", "5", 0),
        ("#### 5.", "5", 1),
        ("#### \\boxed{5}", "5", 1),
        ("#### 5..", "5", 0),
        (r"\boxed{1 2}", "12", 0),
        (r"\boxed{\frac{1}{3}}", r"\frac{1}{2}", 0),
        (r"\boxed{}", r"\frac{1}{2}", 0),
        (r"\boxed{x", "x", 0),
        (r"\frac{1}{2} or \frac{1}{3}", r"\frac{1}{2}", 0),
        ("text{east}", "text{west}", 0),
    ],
)
def test_scores_of_expressions(response, gold, expected):
    assert compute_score("HuggingFaceH4/MATH-500", response, gold)["score"] == expected


@pytest.mark.parametrize("gold", ["", "x", "12 apples", "nan"])
def test_a_gold_answer_that_no_response_can_match_is_an_error(gold):
    with pytest.raises(ValueError, match="ground_truth must be a plain number, got"):
        compute_score("arithmetic", "12", gold)


@pytest.mark.parametrize("gold", ["", " ", "$$", "#### ", "x #### y"])
def test_a_gold_expression_must_score_1_against_itself(gold):
    with pytest.raises(ValueError, match="must be an answer that the reward scores 1 against itself"):
        compute_score("HuggingFaceH4/MATH-500", gold, gold)


@pytest.mark.parametrize(
    ("text", "boxed"),
    [
        (r"\boxed{1}", "1"),
        (r"\boxed {1}", "1"),
        (r"\fbox{1}", "1"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\text{a\}b}}", r"\text{a\}b}"),
        (r"\boxed{a{b}{c{d}}} }", "a{b}{c{d}}"),
        (r"$\boxed 5$", "5"),
        (r"\boxed{1} \boxed{2", "1"),
        (r"\boxed{2 \boxed{1}", "1"),
        (r"\boxed{a \boxed{1} b}", "1"),
        (r"} \boxed{1}", "1"),
        (r"\\ \boxed{1} \\\boxed{2}", "2"),
        (r"\boxed{", None),
        ("boxed{1}", None),
    ],
)
def test_last_boxed(text, boxed):
    assert last_boxed(text) == boxed


def test_verls_loader_finds_it():
    from verl.utils.import_utils import load_extern_object

    assert load_extern_object("pkg://cfpo_verl.rewards", "compute_score") is compute_score


def test_a_response_that_repeats_itself_takes_no_longer_than_its_length():
    """Ten times the text, about ten times the steps: the number of regular expression matches, not a time."""
    import re

    from cfpo_verl.rewards import extract

    class Counting:
        def __init__(self):
            self.matches = 0

        def finditer(self, text):
            for match in real.finditer(text):
                self.matches += 1
                yield match

    real = extract._BOX_OR_BRACE
    assert isinstance(real, re.Pattern)
    counts = []
    for repeats in (100, 1000):
        extract._BOX_OR_BRACE = Counting()
        try:
            assert last_boxed("\\boxed{" * repeats) is None
            counts.append(extract._BOX_OR_BRACE.matches)
        finally:
            extract._BOX_OR_BRACE = real
    assert counts == [100, 1000]


def test_answers_that_want_the_same_are_one():
    same = [("2", "2.0"), ("1,000", "1000"), (r"\dfrac12", r"\frac12"), ("$x$", "x")]
    assert all(canonical_answer(a) == canonical_answer(b) for a, b in same)
    assert len({canonical_answer(a) for a, _b in same}) == 4
