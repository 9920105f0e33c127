"""Extract the final answer of a response, in time linear in its length."""

import re
from collections.abc import Sequence

from cfpo_verl.data_sources import Fallback

_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])")
# A box, an escaped character, or a brace.
_BOX_OR_BRACE = re.compile(r"\\(?:boxed|fbox)\s*(?:(\{)|([^\s{\\$]+))|\\.|([{}])", re.DOTALL)
# "The answer is", "Answer:", "**Answer:**", and a heading "**Final Answer**".
_ANSWER_LINE = re.compile(
    r"\banswer[ \t]{0,3}(?:\*\*)?[ \t]{0,3}(?:is\b|[:=])|\banswer\*\*[ \t]{0,3}(?=\n)", re.IGNORECASE
)
_MATH = re.compile(r"(\$+)([^$]+)\1(?=\W*$|\.\s)|\\\((.+?)\\\)(?=\W*$|\.\s)")
# Maximum length of an answer line that is searched for formulas.
_MAX_LINE = 1000
# End of a sentence, unlike the periods in 3.5 or "p.m. today".
_SENTENCE_END = re.compile(r"[.!?](?=\s+[A-Z]|\s*$)")


def extract_answer(text: str, fallbacks: Sequence[Fallback] = ("answer_line",)) -> str | None:
    r"""Return the part of a response that states its final answer, or None if there is none.

    This is the content of the last balanced `\boxed{...}`; without a box, the result of the first fallback that finds
    something. The reasoning up to `</think>` is ignored, and if `<think>` is never closed there is no answer. Several
    boxes in the same sentence are one answer, a list.

    Args:
        text: The response.
        fallbacks: Where to look if there is no box, in this order.

    Example:
        >>> extract_answer(r"First \boxed{1}. So it is \boxed{\frac{1}{2}}.")
        '\\frac{1}{2}'
        >>> extract_answer(r"It is \boxed{3} or \boxed{4}.")
        '3, 4'
        >>> extract_answer("3 + 4 is 7.\n#### 7\n", ["hashes"]), extract_answer("<think> 7")
        ('7', None)
    """
    _thought, end_of_thought, after = text.rpartition("</think>")
    if end_of_thought:
        text = after
    elif "<think>" in text:
        return None
    if _BOX.search(text):
        boxed = _final_boxes(text)
        if boxed is not None:
            return boxed or None
    for fallback in fallbacks:
        answer = _FALLBACKS[fallback](text)
        if answer:
            return answer
    return None


def last_boxed(text: str) -> str | None:
    r"""Return the content of the last `\boxed{...}` or `\fbox{...}` with balanced braces, or None.

    The last box is the one that starts last. Escaped braces are ignored. `\boxed 5` is supported. Time is linear in
    the length of any text, since a collapsed policy may repeat itself endlessly.

    Example:
        >>> last_boxed(r"\boxed{1} and then \boxed{\frac{2}{3}}")
        '\\frac{2}{3}'
        >>> last_boxed(r"\boxed{1} and then \boxed{2")
        '1'
        >>> last_boxed("no box") is None
        True
    """
    boxes = _boxes(text)
    return text[boxes[-1][2]].strip() if boxes else None


def _boxes(text: str) -> list[tuple[int, int, slice]]:
    """Return (start, end, slice of the content) of every balanced box, in order of their starts."""
    found: list[tuple[int, int, slice]] = []
    open_braces: list[tuple[int, int] | None] = []  # start of a box and of its content, None for other braces
    for token in _BOX_OR_BRACE.finditer(text):
        box, bare, brace = token.groups()
        if box:
            open_braces.append((token.start(), token.end()))
        elif bare:
            found.append((token.start(), token.end(), slice(token.start(2), token.start(2) + len(bare.rstrip(".,;")))))
        elif brace == "{":
            open_braces.append(None)
        elif brace == "}" and open_braces:
            begin = open_braces.pop()
            if begin is not None:
                found.append((begin[0], token.end(), slice(begin[1], token.start())))
    return sorted(found, key=lambda box: box[0])


def _final_boxes(text: str) -> str | None:
    """Return the content of the last box; if its sentence has several boxes, all of them as a list."""
    # Search the last line with a box first, since most of the response comes before it.
    last = max(text.rfind(r"\boxed"), text.rfind(r"\fbox"))
    line = text.rfind("\n", 0, last) + 1
    boxes = _boxes(text[line:])
    if boxes:
        text = text[line:]
    else:
        boxes = _boxes(text)
        if not boxes:
            return None
    together = [boxes[-1]]
    for box in reversed(boxes[:-1]):
        between = text[box[1] : together[0][0]]
        if box[1] > together[0][0]:
            continue  # this box contains the last one
        if "\n" in between or _SENTENCE_END.search(between):
            break
        together.insert(0, box)
    contents = list(dict.fromkeys(text[content].strip() for _begin, _end, content in together))
    return contents[0] if len(contents) == 1 else ", ".join(contents)


def _after_hashes(text: str) -> str | None:
    _before, marker, after = text.rpartition("####")
    lines = after.strip().splitlines()
    return lines[0].strip().strip("*").strip() if marker and lines else None


def _in_answer_line(text: str) -> str | None:
    ends = [match.end() for match in _ANSWER_LINE.finditer(text)]
    if not ends:
        return None
    rest = text[ends[-1] :].lstrip(" \t*:").lstrip()
    line = rest.splitlines()[0] if rest else ""
    if len(line) > _MAX_LINE:
        return line  # too long to be an answer
    math = _MATH.match(line)
    if math:
        return (math[2] or math[3]).strip()
    end = _SENTENCE_END.search(line)
    return (line[: end.start()] if end else line).strip().strip("*").strip() or None


def _all_of_it(text: str) -> str | None:
    return text.strip() or None


_FALLBACKS = {"hashes": _after_hashes, "answer_line": _in_answer_line, "whole": _all_of_it}
