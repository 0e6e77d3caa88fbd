"""Units, money and scales in all their spellings. The library of numbers in words knows none of them."""

from __future__ import annotations

from unicodedata import name as unicode_name

# Between commas stands a unit: its name, then other spellings. Plurals are found without their ending.
_LISTED = """
metre meter m, kilometre kilometer km, centimetre centimeter cm, millimetre millimeter mm,
micrometre micrometer micron μm, nanometre nanometer nm, mile mi, yard yd, foot feet ft, inch, fathom, league,
acre, hectare ha, square-metre m2 sqm, square-kilometre km2, cubic-metre m3, cubic-centimetre cm3 cc,
gram gramme g, kilogram kilo kg, milligram mg, microgram mcg μg, tonne t, ton, pound lb lbs gbp quid £, ounce oz,
litre liter l, millilitre milliliter ml, gallon gal,
second sec s, millisecond ms, minute min, hour hr hrs h, day, week wk, month, year yr yrs, decade,
century centuries, percent pct, degree, celsius centigrade, fahrenheit, kelvin K,
hertz hz, kilohertz khz, megahertz mhz, gigahertz ghz,
byte, kilobyte kb, megabyte mb, megabit Mb Mbit, gigabyte gb, gigabit Gb Gbit, terabyte tb,
watt w, milliwatt mW, kilowatt kw, megawatt MW, kilowatt-hour kwh, joule, kilojoule kj, volt v, ampere amp,
knot, mile-per-hour mph, kilometre-per-hour kmh kph,
dollar usd buck, euro eur, yen jpy, rupee inr rs, yuan cny rmb, franc chf, ruble rouble rub, won, cent
"""
_UNITS = {spelling: unit.split()[0] for unit in _LISTED.split(",") for spelling in unit.split()}
_MONEY = ("dollar", "euro", "pound", "yen", "rupee", "yuan", "franc", "ruble", "won")
_CODES = ("usd", "eur", "gbp", "jpy", "chf", "inr", "cny", "rub", "rs")
_GLUED = {"in": "inch"}
_SCALES = {
    **{"k": 10**3, "mn": 10**6, "mln": 10**6, "mio": 10**6, "bn": 10**9, "tn": 10**12},
    **{"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12},
}
_CAPITAL_SCALES = {"M": 10**6, "B": 10**9, "T": 10**12}
HEAT = ("celsius", "fahrenheit", "kelvin")
"""The units that "degrees" may mean."""


def unit(word: str, *, glued: bool = False) -> str:
    """Return the name of the unit that a word spells, singular or plural; empty if there is none. Capitals tell MW from
    mW.

    ``glued`` means that it follows its number without a space, as in ``10in``.
    """
    lowered = word.lower()
    if glued and lowered in _GLUED:
        return _GLUED[lowered]
    singulars = [lowered, *(lowered.removesuffix(ending) for ending in ("s", "es") if len(lowered) > len(ending) + 1)]
    if lowered == "has":  # the verb, not hectares
        return ""
    return next((_UNITS[spelling] for spelling in (word, *singulars) if spelling in _UNITS), "")


def money_code(word: str) -> str:
    """Return the unit of a code before its number, as in "USD 29"; empty if it is not such a code."""
    return _UNITS[word] if word in _CODES else ""


def scale(word: str, *, of_money: bool) -> int:
    """Return what the letters behind a number multiply it by: ``bn`` is a billion, and ``m`` is a million if it counts
    money; 0 if they are not a scale."""
    return _SCALES.get(word.lower(), 0) or _CAPITAL_SCALES.get(word.upper() if of_money else word, 0)


def is_money(name: str) -> bool:
    """Whether a unit is a currency."""
    return name in _MONEY


def unit_of_symbol(symbol: str) -> str:
    """Return the unit of a symbol, by its name in Unicode: ``$`` is the dollar sign, ``%`` the percent sign."""
    return unicode_name(symbol, "").removesuffix(" SIGN").rpartition(" ")[2].lower()
