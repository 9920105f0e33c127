"""cfpo_verl.rewards.extract: finding the final answer of a response."""

import re

import pytest

from cfpo_verl.rewards import extract
from cfpo_verl.rewards.extract import extract_answer, last_boxed


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"So it is \boxed{12}.", "12"),
        (r"First \boxed{1}. So \boxed{\dfrac{1}{2} }.", r"\dfrac{1}{2}"),
        (r"\boxed{1}" + "\n" + r"\boxed{2}", "2"),
        (r"$x = \boxed{5}$", "5"),
        (r"\fbox{5}", "5"),
        (r"\boxed 5.", "5"),
        (r"\boxed{1} \boxed{2", "1"),
        # Several boxes in one sentence are one answer, a list; the same one twice is one.
        (r"It is \boxed{3} or \boxed{4}.", "3, 4"),
        (r"\boxed{3}, \boxed{4}", "3, 4"),
        (r"$\boxed{3}$ and so $\boxed{3}$", "3"),
        (r"The \boxed{1} was a step. It is \boxed{2.5} or \boxed{3}", "2.5, 3"),
        (r"\boxed{a \boxed{1} b}", "1"),
        # The last box counts, even if it is empty.
        (r"\boxed{5} \n \boxed{}".replace(r"\n", "\n"), None),
        ("12", None),
        ("", None),
    ],
)
def test_the_last_box_is_the_answer(response, answer):
    assert extract_answer(response) == answer


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"<think>\boxed{1}</think> It is \boxed{2}.", "2"),
        (r"\boxed{1}</think> It is \boxed{2}.", "2"),
        (r"<think>\boxed{1}</think>", None),
        (r"<think>\boxed{1}", None),
        (r"<think>a</think><think>\boxed{1}</think> \boxed{3}", "3"),
        ("<think>The answer is 1.</think>\nAnswer: 2", "2"),
        ("<think>#### 1", None),
    ],
)
def test_thoughts_are_no_answer(response, answer):
    assert extract_answer(response, ("hashes", "answer_line", "whole")) == answer


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("so 3 + 4 is 7\n#### 7", "7"),
        ("#### 5\nno, wait\n#### 7 ", "7"),
        ("#### Step 1\nadd\n#### 8", "8"),
        ("### Solution\n#### Step 1\nadd\n#### Step 2\nSo \\boxed{5}.", "5"),
        ("\\boxed{5}\n#### 6", "5"),
        ("So \\boxed{5}.\n####", "5"),
        ("####", None),
        ("7", None),
        ("#### **72**", "72"),
    ],
)
def test_hashes(response, answer):
    assert extract_answer(response, ["hashes"]) == answer


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("The answer is 12.", "12"),
        ("The final answer is: 12", "12"),
        ("Final Answer: The final answer is $\\frac{1}{2}$. I hope it is correct.", r"\frac{1}{2}"),
        ("**Answer:** 3.5", "3.5"),
        ("**Final Answer**: (1, 2)", "(1, 2)"),
        ("Answer: $34$", "34"),
        ("Answer: \\(34\\).", "34"),
        ("answer is\n\n42\nbye", "42"),
        ("The answer is 1. No: the answer is 2.", "2"),
        ("The answer is 3. It is odd.", "3"),
        ("The answer is 5 because it has to be", "5 because it has to be"),
        ("**Final Answer**\n\n5", "5"),
        ("the answer isn't known", None),
        ("the answer", None),
        ("the answer is", None),
    ],
)
def test_answer_line(response, answer):
    assert extract_answer(response, ["answer_line"]) == answer


def test_a_line_without_end_is_no_short_answer():
    line = "\\(5" + "\\)" * 1000 + "a"
    assert extract_answer(f"answer: {line}", ["answer_line"]) == line


def test_the_whole_response():
    assert extract_answer(" 12 \n", ["whole"]) == "12"
    assert extract_answer("  ", ["whole"]) is None


def test_fallbacks_are_tried_in_order():
    assert extract_answer("The answer is 1.\n#### 2", ["hashes", "answer_line"]) == "2"
    assert extract_answer("The answer is 1.\n#### 2", ["answer_line", "hashes"]) == "1"


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


def test_a_response_that_repeats_itself_takes_no_longer_than_its_length():
    """Ten times the text, about ten times the steps, counted as regular expression matches instead of time."""

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
            assert extract_answer("\\boxed{" * repeats) is None
            counts.append(extract._BOX_OR_BRACE.matches)
        finally:
            extract._BOX_OR_BRACE = real
    # Once from the start of the last line with a box, once from the start of the text.
    assert counts == [200, 2000]
