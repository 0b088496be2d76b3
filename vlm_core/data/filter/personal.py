"""Personal data and addresses in captions: pure functions over strings; a kind that has check digits must have them right.

Sources: methods/data.md 4. IBAN: ISO 13616 (mod 97) with the length of its country. Cards: Luhn (ISO 7812). Personal numbers: US social security (areas that
exist), Korean resident registration (a date that exists), French NIR (mod 97), Spanish DNI and NIE (mod 23), Chinese resident identity (ISO 7064 mod 11-2),
Brazilian CPF (mod 11).
"""

import ipaddress
import re
from collections.abc import Callable, Collection, Sequence
from datetime import date
from typing import Any

import numpy as np
from numpy.typing import NDArray

EMAIL = re.compile(r"[\w.+-]+\s?(?:@|\[at\]|\(at\))\s?[\w-]+(?:\.[\w-]+)*\.[a-z]{2,}", re.IGNORECASE)
URL = re.compile(r"(?:https?://|ftp://|www\.)\S+|\b[\w-]+\.(?:com|org|net|info|biz|co\.uk|edu|gov)\b(?:/\S*)?", re.IGNORECASE)
PHONE = re.compile(r"(?<![\w.])(?:\+\d{1,3}[\s.-]?)?(?:\(\d{1,4}\)[\s.-]?)?\d{2,4}(?:[\s.-]\d{2,4}){2,4}(?![\w.])")
_THOUSANDS = re.compile(r"\d{1,3}(?:[ .]\d{3})+")
_YEARS = re.compile(r"(?<!\d)(?:1[5-9]|20)\d\d(?!\d)")

IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}")
IBAN_LENGTH = {
    name: int(length)
    for name, length in re.findall(
        r"([A-Z]{2})(\d\d)",
        "AD24AE23AL28AT20AZ28BA20BE16BG22BH22BR29BY28CH21CR22CY28CZ24DE22DK18DO28EE20EG29ES24FI18FO18FR27GB22GE22GI23GL18GR27GT28HR21HU28IE22IL23IQ23IS26IT27"
        "JO30KW30KZ20LB28LC32LI21LT20LU20LV21LY25MC27MD24ME22MK19MR27MT31MU30NL18NO15PK24PL28PS29PT25QA29RO24RS22SA24SC31SE24SI19SK24SM27ST25SV28TL23TN24TR26"
        "UA29VA22VG24XK20",
    )
}
CARD = re.compile(r"(?<![\w.-])[2-6](?:[ -]?\d){12,18}(?![\w-])")
CARD_SHAPE = re.compile(r"4\d{12}(?:\d{3}){0,2}|5[1-5]\d{14}|2[2-7]\d{14}|3[47]\d{13}|3(?:0[0-5]|[68]\d)\d{11}|35\d{14}|6\d{15,18}")  # lengths of each network
IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?!\.?\w)")
IPV6 = re.compile(r"(?<![\w:.])[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?![\w:.])")
_VERSION = re.compile(r"(?:\bv|\bver|\bversion|\bbuild|\brelease)\.? ?$", re.IGNORECASE)
US_SSN = re.compile(r"(?<![\w-])(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\w-])")
KOREAN_RRN = re.compile(r"(?<![\w-])(\d{2})(\d{2})(\d{2})-([1-8])\d{6}(?![\w-])")
FRENCH_NIR = re.compile(r"(?<![\w-])[12] ?\d{2} ?(?:0[1-9]|1[0-2]) ?(?:\d{2}|2[AB]) ?\d{3} ?\d{3} ?\d{2}(?![\w-])")
SPANISH_DNI = re.compile(r"(?<![\w-])[XYZ\d]\d{7}-?[A-Z](?![\w-])")
CHINESE_ID = re.compile(r"(?<!\w)[1-9]\d{5}(\d{4})(\d{2})(\d{2})\d{3}[\dX](?!\w)")
BRAZILIAN_CPF = re.compile(r"(?<![\w.-])\d{3}\.\d{3}\.\d{3}-\d{2}(?![\w-])")


def personal(text: Sequence[str], kinds: Collection[str]) -> NDArray[Any]:
    """Per caption the first kind of personal data or address in it, of the kinds that are looked for, or ''."""
    looked = [(kind, has) for kind, has in KINDS.items() if kind in kinds]
    return np.array([next((kind for kind, has in looked if has(t)), "") for t in text], dtype=object)


def has_phone(text: str) -> bool:
    """A date, years in a row and a number with separated thousands are not telephone numbers."""
    found = PHONE.search(text)
    digits = found.group() if found else ""
    return sum(map(str.isdigit, digits)) >= 8 and not _YEARS.search(digits) and not _THOUSANDS.fullmatch(digits)


def has_iban(text: str) -> bool:
    for found in IBAN.finditer(text):
        compact = found.group().replace(" ", "")
        number = compact[: IBAN_LENGTH.get(compact[:2], len(compact) + 1)]
        if len(number) == IBAN_LENGTH.get(compact[:2]) and int("".join(str(int(char, 36)) for char in number[4:] + number[:4])) % 97 == 1:
            return True
    return False


def has_card(text: str) -> bool:
    numbers = (re.sub(r"[ -]", "", found) for found in CARD.findall(text))
    return any(CARD_SHAPE.fullmatch(number) and luhn(number) for number in numbers)


def luhn(digits: str) -> bool:
    """Every second digit from the right counts double, and the sum of all digits is a multiple of ten."""
    doubled = (int(digit) * (1 + place % 2) for place, digit in enumerate(reversed(digits)))
    return sum(value - 9 * (value > 9) for value in doubled) % 10 == 0


def has_ip_address(text: str) -> bool:
    """An address, and not the number of a program's version."""
    return any(_is_address(found.group()) and not _VERSION.search(text[: found.start()]) for pattern in (IPV4, IPV6) for found in pattern.finditer(text))


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return text != "::"


def has_national_id(text: str) -> bool:
    if US_SSN.search(text) or any(_date(int(year), month, day) for year, month, day, _ in KOREAN_RRN.findall(text)):
        return True
    checks = ((FRENCH_NIR, _nir), (SPANISH_DNI, _dni), (CHINESE_ID, _chinese), (BRAZILIAN_CPF, _cpf))
    return any(right(re.sub(r"[ .-]", "", found.group())) for pattern, right in checks for found in pattern.finditer(text))


def _date(year: int, month: str, day: str) -> bool:
    try:
        return bool(date(year if year >= 100 else 2000 + year % 100, int(month), int(day)))
    except ValueError:
        return year < 100 and (int(month), int(day)) == (2, 29) and year % 4 == 0


def _nir(number: str) -> bool:
    digits = number[:13].replace("2A", "19").replace("2B", "18")
    return 97 - int(digits) % 97 == int(number[13:])


def _dni(number: str) -> bool:
    digits = number[:8].translate(str.maketrans("XYZ", "012"))
    return number[8] == "TRWAGMYFPDXBNJZSQVHLCKE"[int(digits) % 23]


def _chinese(number: str) -> bool:
    weighted = sum(int(digit) * pow(2, 17 - place, 11) for place, digit in enumerate(number[:17]))
    return _date(int(number[6:10]), number[10:12], number[12:14]) and number[17] == "10X98765432"[weighted % 11]


def _cpf(number: str) -> bool:
    def check(digits: str) -> int:
        left = sum(int(digit) * (len(digits) + 1 - place) for place, digit in enumerate(digits)) % 11
        return 0 if left < 2 else 11 - left

    return len(set(number)) > 1 and number[9:] == f"{check(number[:9])}{check(number[:10])}"


# Kind -> is it there. The order is that in which a caption's kind is named; what has check digits comes before telephone numbers, which look like anything.
KINDS: dict[str, Callable[[str], bool]] = {
    "email": lambda text: bool(EMAIL.search(text)),
    "url": lambda text: bool(URL.search(text)),
    "iban": has_iban,
    "card": has_card,
    "national_id": has_national_id,
    "ip_address": has_ip_address,
    "phone": has_phone,
}
