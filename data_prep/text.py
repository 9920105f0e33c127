"""Normal forms in which problems are compared. Strings in, strings out."""

import hashlib
import re
import unicodedata

# A number with thousands separators as English and LaTeX write them: 1,000  1{,}000  1,\!000.
_GROUPED = re.compile(r"(?<![\d.])\d+(?:(?:,|\{,\}|,\\!)\d{3}(?!\d))+")
# A fast check that spares most texts the slow expression above.
_MAYBE_GROUPED = re.compile(r",(?:\}|\\!)?\d{3}")
_NUMBER = r"\d+(?:\.\d+)?"
_WORD = re.compile(rf"\\[a-z]+|{_NUMBER}|[^\W\d_]+")
# Commands that change the layout of a formula and not its meaning.
_LAYOUT_NAMES = (
    "quad qquad left right big bigg displaystyle textstyle limits nolimits text textbf textit emph mbox hbox "
    "mathrm mathbf mathit operatorname hspace vspace hfill noindent boldsymbol"
)
_LAYOUT = frozenset("\\" + name for name in _LAYOUT_NAMES.split())
_SAME = {"\\dfrac": "\\frac", "\\tfrac": "\\frac", "\\leq": "\\le", "\\geq": "\\ge", "\\neq": "\\ne"}

# A minus sign is next to no word of two or more letters: as in x-y and -3, unlike the hyphen in two-digit.
_QUANTITY = re.compile(rf"{_NUMBER}|[^\W\d_]+|[+*/<>=×÷]|(?<![^\W\d_]{{2}})[-−](?![^\W\d_]{{2}})")  # noqa: RUF001
_UP_TO_TWENTY = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
)
_OTHER_NUMBERS = (
    "thirty forty fifty sixty seventy eighty ninety hundred thousand million billion dozen half third quarter fourth "
    "fifth once twice thrice double triple quadruple"
)
_NUMBER_WORDS = {name: str(value) for value, name in enumerate(_UP_TO_TWENTY.split())}
_NUMBER_WORDS |= {name: name for name in _OTHER_NUMBERS.split()}


def normalise(text: str) -> str:
    r"""Return a text without differences of case, white space and Unicode compatibility forms.

    Example:
        >>> normalise("  What\n is  X²? ")
        'what is x2?'
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def fingerprint(*texts: str) -> str:
    """Return a fingerprint of some texts in order: 32 hexadecimal digits.

    Example:
        >>> fingerprint("ab", "c") == fingerprint("a", "bc")
        False
    """
    joined = "\0".join(texts).encode("utf-8", errors="surrogatepass")
    return hashlib.blake2b(joined, digest_size=16).hexdigest()


def _ungrouped(text: str) -> str:
    """Return a normalised text without the thousands separators of its numbers."""
    if not _MAYBE_GROUPED.search(text):
        return text
    return _GROUPED.sub(lambda number: "".join(filter(str.isdecimal, number[0])), text)


def words(text: str) -> list[str]:
    r"""Return the words of a problem, in order: LaTeX commands, numbers, and runs of letters.

    The rule, on the normalised text: `\\[a-z]+`, else a number (digits with thousands separators and decimals, the
    separators removed), else letters. Everything else (punctuation, `$`, signs, braces, `\,` and the like) only
    separates words. Layout commands are left out, and synonymous commands are mapped to one name.

    Example:
        >>> words(r"Tom's 1,000 apples cost $\$2.50$.")
        ['tom', 's', '1000', 'apples', 'cost', '2.50']
        >>> words(r"Find $\dfrac{1}{2}\,x^2 \quad \text{m}$") == words(r"find \frac12 x² m")
        False
        >>> words(r"Find $\dfrac{1}{2}\,x^2 \quad \text{m}$") == words(r"find \(\frac{1}{2} x²\) m")
        True
    """
    text = _ungrouped(normalise(text))
    found = _WORD.findall(text)
    if "\\" not in text:
        return found
    return [_SAME.get(word, word) for word in found if word not in _LAYOUT]


def quantities(text: str) -> list[str]:
    """Return the numbers and arithmetic signs of a problem, in order.

    Two problems made from one template differ here and in little else. Number words count, up to twenty as digits;
    `1,000` is 1000; a hyphen between words is not a sign.

    Example:
        >>> quantities("Five two-digit numbers x - 3 = 1,000")
        ['5', '2', '-', '3', '=', '1000']
    """
    found = []
    for token in _QUANTITY.findall(_ungrouped(normalise(text))):
        if token[0].isdecimal():
            found.append(token)
        elif token in _NUMBER_WORDS:
            found.append(_NUMBER_WORDS[token])
        elif not token[0].isalpha():
            found.append("-" if token == "−" else token)  # noqa: RUF001
    return found
