"""Units of measure beside a number: which words are one, in one spelling each, and which of them differ."""

from __future__ import annotations

import re

_SPACES = "\u00a0\u2009\u202f"
# Units, each with its other names, between semicolons.
_UNIT_NAMES = (
    "$ dollar dollars usd bucks; € euro euros eur; £ gbp; pound pounds; ¥ yen jpy yuan; ₹ rupee rupees inr Rs; "
    "¢ cent cents; m meter meters metre metres; cm centimeter centimeters centimetre centimetres; "
    "mm millimeter millimeters millimetre millimetres; km kilometer kilometers kilometre kilometres; in inch inches; "
    "ft foot feet; mi mile miles; g gram grams; kg kilogram kilograms; mg milligram milligrams; lb lbs; "
    "oz ounce ounces; l L liter liters litre litres; ml mL milliliter milliliters millilitre millilitres; "
    "s sec secs second seconds; ms millisecond milliseconds; min mins minute minutes; h hr hrs hour hours; "
    "d day days; ° degree degrees deg; °C celsius; K kelvin kelvins; J joule joules; kJ kilojoule kilojoules; "
    "N newton newtons; W watt watts; V volt volts; A amp amps ampere amperes; Hz hertz; Pa pascal pascals; "
    "mol mole moles; Ω ohm ohms; rad radian radians"
)
UNIT_OF = {name: names[0] for names in map(str.split, _UNIT_NAMES.split(";")) for name in names}
# Words for which either unit may be meant.
_MEANS = {"pound": ("£", "lb"), "°": ("°C", "°F", "rad")}
# Units that may follow a number without a space, or that are a single letter: 2x, 3e and 5k are not quantities of x.
_SHORT_UNITS = (
    "M T C F H Å °F eV keV MeV GeV nm pm fm kW MW GW mW kV mV mA kHz MHz GHz kPa MPa atm bar kN cal kcal mM nM "
    "kgs lb lbs lbf yd gal cc hr hrs mins sec secs rpm ppm dB Wb sq mph usd USD eur EUR am pm AM PM L mL"
)
_ATTACHED = {*UNIT_OF.values(), *_SHORT_UNITS.split()}
UNIT_OF["mi per h"] = "mph"
_UNIT_TOKEN = re.compile(r"\s*([A-Za-zÀ-ɏµΩ°Å¢$€£][A-Za-zÀ-ɏ'’-]*)(\^?\{?-?[1-4]\}?(?![0-9]))?\s*([*×/]?)")
_MAX_WORDS = 6
_MONEY = "$€£¥₹"
# Words after a number that change it, or that say there is another one.
_CHANGING = (
    "or and to not nor but if than less more plus minus times over under through until point else versus vs "
    "divided multiplied increased decreased reduced raised if else otherwise below wrong incorrect "
    "pi tau e i x sqrt root inf infinity mod log ln sin cos tan exp squared cubed factorial half halves third "
    "thirds quarter quarters fourths fifth fifths sixth sixths seventh sevenths eighth eighths ninth ninths tenth "
    "tenths hundredth hundredths thousandth thousandths zero one two three four five six seven eight nine ten "
    "eleven twelve twenty thirty forty fifty hundred thousand million billion trillion dozen"
)
_NOT_UNITS = set(_CHANGING.split())


def same_unit(one: str, other: str) -> bool:
    """Whether two units are the same, or either is missing; money per day and money count as the same."""
    if not one or not other or one == other or one in _MEANS.get(other, ()) or other in _MEANS.get(one, ()):
        return True
    short, long = sorted((one, other), key=len)
    return short in _MONEY and long.startswith(short + " ")


def read_unit(rest: str) -> str | None:
    """The unit that ``rest`` is in one spelling, ``""`` if there is none; ``None`` if it is no unit."""
    bare = rest.strip(" \t\r\n" + _SPACES)
    if not bare:
        return ""
    if bare.startswith("/"):
        bare = "per " + bare[1:].lstrip()
        rest = " " + bare
    bare = re.sub(r"^(?:square|sq\.?)\s+([A-Za-z]+)", r"\1^2", re.sub(r"^cubic\s+([A-Za-z]+)", r"\1^3", bare))
    words: list[str] = []
    at = 0
    while at < len(bare):
        match = _UNIT_TOKEN.match(bare, at)
        if match is None or len(words) == _MAX_WORDS:
            return None
        word, power, joint = match.groups()
        if word.lower() in _NOT_UNITS or (len(word) == 1 and word not in _ATTACHED):
            return None
        attached = at == 0 and rest[0] not in " \t\r\n" + _SPACES
        if attached and word not in _ATTACHED:
            return None
        exponent = (power or "").strip("^{}")
        words.append(UNIT_OF.get(word, UNIT_OF.get(word.lower(), word) if len(word) > 2 else word) + exponent)
        words += ["per"] if joint == "/" else []
        at = match.end()
    name = " ".join(words)
    return UNIT_OF.get(name, name)
