"""cfpo_verl.rewards: what counts as the right answer, and through verl's own loader."""

import pytest

from cfpo_verl.rewards import compute_score
from cfpo_verl.rewards.extract import last_boxed


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
        (r"\boxed{", None),
        ("boxed{1}", None),
    ],
)
def test_last_boxed(text, boxed):
    assert last_boxed(text) == boxed


def test_verls_loader_finds_it():
    from verl.utils.import_utils import load_extern_object

    assert load_extern_object("pkg://cfpo_verl.rewards", "compute_score") is compute_score
