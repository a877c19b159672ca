"""What each rule changes, what none may touch, and that cleaning twice is cleaning once."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.doctor.cleaning import RULES, clean_text

ALL = tuple(RULES)


def clean(text: str, *rules: str) -> str:
    return clean_text(text, rules or ALL)[0]


@pytest.mark.parametrize(
    ("rule", "before", "after"),
    [
        ("html", "<p>Hello <b>you</b> &amp; me&excl;</p>", "\nHello you & me!\n"),
        ("html", '<a href="x">link</a><br/>next<!-- no --><script>1 < 2</script>', "link\nnext"),
        ("html", "&amp;amp;lt;b&gt;x", "x"),  # escaped twice
        ("html", "it`s <b>x</b>\nthat`s", "it`s x\nthat`s"),  # accents, no code
        ("control", "a\x00b\x1b[31mred\x1b[0m\u200b\ufeff", "abred"),
        ("nfkc", "ＡＢＣ　ﬁ ｶﾞ，好！？：；（。）……", "ABC fi ガ，好！？：；（。）……"),
        ("nfkc", "x² ½ ① ㎡ Ⅳ", "x² ½ ① ㎡ IV"),
        ("numbers", "１２．５％ 和 ３，４", "12.5% 和 3，4"),
        ("dates", "2024年1月1日，2024/1/2、2024-1-3 05 Jan 2024", None),
        ("dates", "Jan 1st, 2024; 3 May 2024.", "2024-01-01; 2024-05-03."),
        ("dates", "2024年1月1日12时", "2024-01-01 12时"),
        ("whitespace", " a  b\u3000c \r\n\r\n\n\n\td\t", "a b c\n\n\td"),
    ],
)
def test_a_rule_changes_what_it_names(rule: str, before: str, after: str | None) -> None:
    if after is None:
        after = "2024-01-01，2024-01-02、2024-01-03 2024-01-05"
    assert clean(before, rule) == after


UNTOUCHED = [
    *("2024-01-01", "1.23e5", "-1.5E-10", "1,234.5", "12,345,678", "3.14%", "0x1F", "1/2", "5:1"),
    *("13800138000", "+86 138-0013-8000", "(415) 555-2671", "400-123-4567", "010-12345678"),
    *("1.2.3", "v2.0.0-rc.1", "10.0.0.1", "::1", "12:30", "12:30:45.678", "2024-01-01T08:00:00Z"),
    *("01/02/2024", "2024/13/45", "2024.1.1", "20240101", "2024/1/1T08:00", "a/2024/1/1/b.txt"),
    *(
        "https://x.org/2024/1/1?a=1&copy=2",
        "2024年1月1日至3日",
        "2024年1月1日-2024年1月5日",
        "1995年",
    ),
    *("a < b", "a<b and c>d", "x <- y", "List<String>", "<think>hm</think>", "AT&T", "R&D;", "<3"),
    *(
        "`<b>  &amp;  １２`",
        "```\n<p>a</p>\n\n\n\n  x\t  y \n```",
        "“你好”，《书》：是——吗？（是！）",
    ),
    *("may 3 2024", "31 Feb 2024", "    return", "👨‍👩‍👧", "x²+y³", "1–3", "a\tb"),
]


@pytest.mark.parametrize("text", UNTOUCHED)
def test_what_says_something_survives(text: str) -> None:
    assert clean(f"See\n{text}\nhere") == f"See\n{text}\nhere"


numbers = st.one_of(
    st.integers(-(10**9), 10**9).map("{:,}".format),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.floats(0, 1e300).map("{:.3e}".format),
    st.dates().map(str),
    st.times().map(str),
    st.ip_addresses().map(str),
    st.from_regex(r"[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}", fullmatch=True).filter(str.isascii),
    st.from_regex(r"1[3-9][0-9]{9}", fullmatch=True).filter(str.isascii),
)


@given(number=numbers, left=st.sampled_from("，。 是(“"), right=st.sampled_from("，。 元)”"))
def test_no_number_date_time_address_or_version_is_damaged(
    number: str, left: str, right: str
) -> None:
    assert clean(f"x{left}{number}{right}y") == f"x{left}{number}{right}y"


# What the rules look for, in pieces, so that one rule's work makes work for another.
tags = ("<p>", "</p>", "b>", "&amp;", "&lt;", "#38;", "&#96;", "<script>", "</script>")
dates = ("2024年1月1日", "2024", "/1", "-1", "Jan ")
pieces = st.sampled_from(
    [*"<`\n\t１１．％²\u0301\x00\u200b\r至ﾊﾞ｀\ue000&>", "``", "```", *tags, *dates]
)


@settings(max_examples=300)
@given(st.lists(st.one_of(pieces, st.text(max_size=3)), max_size=25).map("".join))
def test_cleaning_twice_is_cleaning_once_and_each_edit_follows_from_the_last(text: str) -> None:
    cleaned, edits = clean_text(text, ALL)
    assert clean_text(cleaned, ALL) == (cleaned, [])
    steps = [text, *(edit.after for edit in edits)]
    assert [edit.before for edit in edits] == steps[:-1]
    assert steps[-1] == cleaned


@pytest.mark.parametrize("unit", ["<!--", "&amp;", "<a ", " ", "`` ``` ", "2024年", "<p x="])
def test_a_text_of_a_megabyte_is_read_in_one_go(unit: str) -> None:
    """Seen to take minutes where a pattern looked ahead from every blank to the end of the run."""
    text = unit * (1_000_000 // len(unit)) + "x"
    began = time.perf_counter()
    clean(text)
    assert time.perf_counter() - began < 10
