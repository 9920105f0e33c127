"""Units of measurement and their canonical spelling."""

import re

_ALIASES = {
    "mm": "millimeter millimetre",
    "cm": "centimeter centimetre",
    "m": "meter metre",
    "km": "kilometer kilometre",
    "in": "inch inches",
    "ft": "foot feet",
    "yd": "yard",
    "mi": "mile",
    "mg": "milligram",
    "g": "gram gm",
    "kg": "kilogram",
    "lb": "pound",
    "oz": "ounce",
    "ton": "tonne",
    "l": "liter litre",
    "ml": "milliliter millilitre",
    "gal": "gallon",
    "ms": "millisecond",
    "s": "second sec",
    "min": "minute",
    "h": "hour hr",
    "day": "",
    "week": "",
    "month": "",
    "year": "yr",
    "$": "dollar usd buck",
    "cent": "",
    "°": "degree deg",
    "%": "percent",
    "rad": "radian",
    "unit": "",
    "pt": "point",
    "j": "joule",
    "n": "newton",
    "w": "watt",
    "v": "volt",
    "hz": "hertz",
    "kelvin": "",
    "nm": "nanometer nanometre",
    "ev": "",
    "kev": "",
    "mev": "",
    "kj": "kilojoule",
    "pa": "pascal",
    "kpa": "kilopascal",
    "gpa": "gigapascal",
    "arcsec": "arcsecond",
    "ly": "",
    "erg": "",
    "cal": "calorie",
    "å": "angstrom",
    "cup": "",
    "pint": "",
    "quart": "",
    "teaspoon": "",
    "tablespoon": "",
    "mol": "mole",
    "pc": "parsec",
    "au": "",
    "am": "a.m",
    "pm": "p.m",
}
_CANONICAL = {alias: name for name, aliases in _ALIASES.items() for alias in (name, *aliases.split())} | {
    "light year": "ly",
    "light-year": "ly",
}


def is_unit(name: str) -> bool:
    """Return whether a unit, spelled as by `unit_name`, is known.

    Example:
        >>> is_unit("erg/s"), is_unit("in^2"), is_unit("apples")
        (True, True, False)
    """
    return bool(name) and all(re.sub(r"\^[23]$", "", part) in _ALIASES for part in name.split("/"))


def is_bare_unit(text: str) -> bool:
    r"""Return whether words after a number are a unit even without `\text` around them.

    Single letters are variables there, and so are groups of two or three letters that are not a known unit.
    """
    words = re.findall(r"[A-Za-z.]+", text)
    return bool(words) and max(map(len, words)) > 1 and (is_unit(unit_name(text)) or min(map(len, words)) > 3)


def unit_name(text: str) -> str:
    """Return the canonical spelling of a unit; other words are returned in lower case.

    Example:
        >>> [unit_name(text) for text in ("square inches", "cm^2", "Dollars", "km per hour", "ways.")]
        ['in^2', 'cm^2', '$', 'km/h', 'ways']
    """
    if text.strip(" ~{}") == "K":  # in lower case, k would also mean a thousand
        return "kelvin"
    text = re.sub(r"[~{}\\]|\s*\.(?=\s|$)", " ", text.lower()).strip()
    text = re.sub(r"\s*(?:/|\bper\b)\s*", "/", text)
    text = re.sub(r"\s*\^\s*", "^", text)
    named = re.fullmatch(r"(square|sq|cubic|cu)\s+(.*)", text)
    if named:
        return f"{_word(named[2])}^{2 if named[1].startswith('sq') else 3}"
    power = re.fullmatch(r"(.*)\^([23])", text)
    if power:
        return f"{_word(power[1])}^{power[2]}"
    text = {"mph": "mi/h", "kph": "km/h", "kmph": "km/h"}.get(text, text)
    whole = "/".join(_word(part) for part in text.split("/"))
    return _CANONICAL.get(whole, whole)


def _word(text: str) -> str:
    text = text.strip()
    singular = text.removesuffix("s") if len(text) > 2 else text
    return _CANONICAL.get(text) or _CANONICAL.get(singular) or text
