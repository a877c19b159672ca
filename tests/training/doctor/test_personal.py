"""Personal data found by its own checks, and nothing else. All numbers are made up."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.doctor.personal import (
    find_personal_data,
    is_bank_card,
    is_chinese_id,
    redact,
)

# From the standards themselves: GB 11643's example, card networks' test numbers, reserved numbers.
FOUND = [
    ("我的手机是13800138000。", "phone", "13800138000"),
    ("电话：+86 138-0013-8000", "phone", "+86 138-0013-8000"),
    ("手机１３８００１３８０００请回复", "phone", "１３８００１３８０００"),
    ("打010-62345678找我", "phone", "010-62345678"),
    ("Call (415) 555-2671 now", "phone", "(415) 555-2671"),
    ("call 415-555-2671.", "phone", "415-555-2671"),
    ("ring +44 20 7946 0958", "phone", "+44 20 7946 0958"),
    ("身份证11010519491231002X，", "id_card", "11010519491231002X"),
    ("620102198001010754", "id_card", "620102198001010754"),  # a card's Luhn sum, too
    ("SSN 536-22-1234", "id_card", "536-22-1234"),
    ("卡号6222 0200 0000 0000 000", "bank_card", "6222 0200 0000 0000 000"),
    ("Visa 4111 1111 1111 1111", "bank_card", "4111 1111 1111 1111"),
    ("Visa 4012-8888-8888-1881!", "bank_card", "4012-8888-8888-1881"),
    ("Amex 378282246310005", "bank_card", "378282246310005"),
    ("write to jane.doe+x@mail.example.co.uk.", "email", "jane.doe+x@mail.example.co.uk"),
    ("邮箱zhang_3@example.com请查收", "email", "zhang_3@example.com"),
]


@pytest.mark.parametrize(("text", "kind", "piece"), FOUND)
def test_each_kind_is_found_where_it_stands(text: str, kind: str, piece: str) -> None:
    found = [(each.kind, text[each.start : each.end]) for each in find_personal_data(text)]
    assert found == [(kind, piece)]


@pytest.mark.parametrize(
    "text",
    [
        "110105194912310021 and 11010519491331002X",  # wrong checksum, month 13
        "666-12-3456 000-12-3456 900-12-3456 123-00-4567",
        "4012888888881882 1234567890123456 2000000000001236",  # Luhn sum, issuer
        "order 20481, 1.13800138000, 913800138000, 13800138000001, v1.2.3, 10.0.0.1, 2024-01-01",
        "1700000000000 3.14159265358979 1,234,567,890 2024-01-01 12:30:45",
        "13800138000.5 13800138000-1 +1 23 45 13800138000/2",
        "a@b, @handle, x@y.z, 5@example",
        "f13800138000a sha 4012888888881881ab",
    ],
)
def test_numbers_that_fail_their_check_are_numbers(text: str) -> None:
    assert find_personal_data(text) == []


def test_redaction_leaves_the_rest_and_nothing_to_find() -> None:
    text = "我是张三，13800138000，11010519491231002X，a@example.com，4012888888881881。"
    redacted = redact(text)
    assert redacted == "我是张三，[PHONE]，[ID_CARD]，[EMAIL]，[BANK_CARD]。"
    assert redact(redacted) == redacted


@given(st.integers(0, 10**17 - 1))
def test_of_the_last_digits_of_an_id_card_exactly_one_fits(number: int) -> None:
    body = f"110105{1950 + number % 60}0228{number % 1000:03}"
    assert sum(is_chinese_id(body + last) for last in "0123456789X") == 1


@given(st.integers(0, 10**13 - 1))
def test_of_the_last_digits_of_a_card_exactly_one_fits(number: int) -> None:
    body = f"62{number:013}"
    assert sum(is_bank_card(body + last) for last in "0123456789") == 1


@given(st.text())
def test_places_are_in_order_and_inside_the_text(text: str) -> None:
    ends = [0]
    for each in find_personal_data(text):
        assert ends[-1] <= each.start < each.end <= len(text)
        ends.append(each.end)


def test_a_text_of_a_megabyte_is_read_in_one_go() -> None:
    digits = "".join(random.Random(0).choices("0123456789 -", k=1_000_000))
    began = time.perf_counter()
    for text in (digits, "a." * 500_000, "a@a." * 250_000, "1" * 1_000_000):
        find_personal_data(text)
    assert time.perf_counter() - began < 10
