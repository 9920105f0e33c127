"""The form in which problems are compared. Strings in, strings out."""

import hashlib
import re
import unicodedata

_WHITE_SPACE = re.compile(r"\s+")


def normalise(text: str) -> str:
    r"""Return a text without differences of case, white space and Unicode compatibility forms.

    Example:
        >>> normalise("  What\n is  X²? ")
        'what is x2?'
    """
    return _WHITE_SPACE.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip()


def fingerprint(*texts: str) -> str:
    """Return 32 hexadecimal digits that stand for some texts, in order.

    Example:
        >>> fingerprint("ab", "c") == fingerprint("a", "bc")
        False
    """
    joined = "\0".join(texts).encode("utf-8", errors="surrogatepass")
    return hashlib.blake2b(joined, digest_size=16).hexdigest()
