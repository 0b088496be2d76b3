"""Personal data in captions, on hand-labelled cases and on numbers made with their check digits."""

from datetime import date

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_core.data.filter import personal
from vlm_core.data.filter.config import Personal

CASES = {
    "email": ["Jakob [chaosinfaith@hotmail.com]", "write to a.b-c+d@mail.example.co.kr now", "ann [at] example.org"],
    "url": ["see https://example.org/x?y", "www.example.org", "from example.com", "shop.example.co.uk/sale"],
    # the examples that banks, card networks and registries publish
    "iban": ["to DE89 3704 0044 0532 0130 00 please", "GB82WEST12345698765432", "IBAN FR14 2004 1010 0505 0001 3M02 606 THANKS"],
    "card": ["4111 1111 1111 1111", "paid with 5500-0000-0000-0004", "378282246310005"],
    "national_id": ["SSN 078-05-1120", "850101-1234567", "1 84 12 76 451 089 46", "12345678Z", "X1234567L", "11010519491231002X", "111.444.777-35"],
    "ip_address": ["seen at 192.168.10.12", "2001:db8::ff00:42:8329", "ping 8.8.8.8 now"],
    "phone": ["call +49 30 1234 5678", "(030) 123-45-67 89", "555 123 4567", "010-1234-5678"],
    "": [
        "meet me @ noon", "a dog.", "version 2.0.1", "10 20 30", "1990 - 1995 2001 2005", "2004-08-25 23:29", "on 12.05.2004", "6 x 4 cm", "U.S. flag", "node.js logo", "100 000 000 stars",
        "Windows v10.0.0.1", "at 12:30:45", "300.1.1.1", "SKU DE12ABCDEFGHIJKLMN", "a cat :: a dog",
    ],
}  # fmt: skip
KINDS = list(personal.KINDS)
WRONG = {  # one character off, or a day that does not exist
    "iban": ["DE89 3704 0044 0532 0130 01", "GB83WEST12345698765432"],
    "card": ["4111 1111 1111 1112", "4111 1111 1111 111", "378282246310006"],
    "national_id": [
        "12345678A", "111.444.777-36", "111.111.111-11", "11010519491231002Y", "11010519491331002X", "SSN 000-05-1120", "666-05-1120", "1 84 12 76 451 089 47", "850231-1234567", "A078-05-1120",
    ],
}  # fmt: skip


@pytest.mark.parametrize("kind", CASES)
def test_personal_data_is_found_and_dates_and_numbers_are_not(kind: str) -> None:
    assert personal.personal(CASES[kind], KINDS).tolist() == [kind] * len(CASES[kind])


@pytest.mark.parametrize("kind", WRONG)
def test_a_number_with_a_wrong_check_digit_is_none(kind: str) -> None:
    assert personal.personal(WRONG[kind], [kind]).tolist() == [""] * len(WRONG[kind])


def test_a_kind_that_is_switched_off_is_not_looked_for() -> None:
    text = ["ann@example.org", "www.example.org", "555 123 4567", "8.8.8.8"]
    assert personal.personal(text, ["email", "phone"]).tolist() == ["email", "", "phone", ""]
    assert personal.personal(text, []).tolist() == [""] * 4


def test_every_switch_of_the_settings_is_a_kind() -> None:
    assert set(Personal.model_fields) == set(KINDS)


def check_digit(digits: str) -> str:
    """By the definition of ISO 7812: from the right, every second one doubled and its digits added."""
    total = sum(sum(map(int, str(int(digit) * (2 if place % 2 == 0 else 1)))) for place, digit in enumerate(reversed(digits)))
    return str(-total % 10)


@settings(max_examples=100, deadline=None)
@given(st.from_regex(r"4[0-9]{14}|5[1-5][0-9]{13}|3[47][0-9]{12}|6[0-9]{14}", fullmatch=True), st.data())
def test_a_card_number_is_known_and_with_any_one_digit_wrong_it_is_none(body: str, data: st.DataObject) -> None:
    number = body + check_digit(body)
    assert personal.luhn(number)
    place = data.draw(st.integers(0, len(number) - 1))
    other = data.draw(st.sampled_from([digit for digit in "0123456789" if digit != number[place]]))
    assert not personal.luhn(number[:place] + other + number[place + 1 :])
    grouped = " ".join(number[i : i + 4] for i in range(0, len(number), 4))
    assert personal.personal([f"card {grouped} thanks", f"card {number}."], ["card"]).tolist() == ["card", "card"]


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(sorted(personal.IBAN_LENGTH)), st.data())
def test_an_account_number_is_known_with_its_check_digits_only(country: str, data: st.DataObject) -> None:
    account = data.draw(st.text("0123456789", min_size=(n := personal.IBAN_LENGTH[country] - 4), max_size=n))
    remainder = int("".join(str(int(char, 36)) for char in f"{account}{country}00")) % 97
    number = f"{country}{98 - remainder:02}{account}"
    grouped = " ".join(number[i : i + 4] for i in range(0, len(number), 4))
    assert personal.personal([number, f"pay {grouped} NOW", grouped.lower()], ["iban"]).tolist() == ["iban", "iban", ""]
    wrong = f"{country}{(98 - remainder) % 97 + 2:02}{account}"
    assert wrong == number or not personal.has_iban(wrong)


@settings(max_examples=60, deadline=None)
@given(st.dates(date(1930, 1, 1), date(2029, 12, 31)), st.integers(100, 999), st.integers(100000, 659999))
def test_a_chinese_number_needs_a_date_and_its_check_character(day: date, order: int, place: int) -> None:
    body = f"{place}{day:%Y%m%d}{order}"
    # ISO 7064 mod 11-2, in its recursive form
    state = 0
    for digit in body:
        state = (state + int(digit)) * 2 % 11
    right = "0123456789X"[(12 - state) % 11]
    assert [char for char in "0123456789X" if personal.has_national_id(body + char)] == [right]
