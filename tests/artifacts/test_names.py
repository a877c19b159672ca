"""References parse back to what they print, and nothing else parses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifacts.errors import InvalidName
from artifacts.names import NAME, AdapterRef, check_alias, parse_ref

names = st.from_regex(NAME, fullmatch=True)
aliases = names.filter(lambda alias: not alias.isdigit())


@given(
    st.one_of(
        st.builds(AdapterRef, names),
        st.builds(AdapterRef, names, version=st.integers(1, 999_999_999)),
        st.builds(AdapterRef, names, alias=aliases),
    )
)
def test_a_printed_reference_parses_to_itself(ref: AdapterRef) -> None:
    assert parse_ref(str(ref)) == ref


@given(st.text(max_size=12))
def test_any_text_parses_back_or_is_an_invalid_name(text: str) -> None:
    try:
        ref = parse_ref(text)
    except InvalidName:
        return
    assert str(ref) == text


@pytest.mark.parametrize(
    "text",
    ["", "@1", "a@", "a@0", "a@01", "a@1@2", "a@-1", "a@١", "A", "a b", "a\n", "a@9999999999"],
)
def test_malformed_references_are_refused(text: str) -> None:
    with pytest.raises(InvalidName):
        parse_ref(text)


@pytest.mark.parametrize("alias", ["latest", "7", "", "X", "a@b"])
def test_aliases_that_could_be_read_otherwise_are_refused(alias: str) -> None:
    with pytest.raises(InvalidName):
        check_alias(alias)
