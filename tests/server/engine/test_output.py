"""Streamed text: whole characters, exact in sum, stop strings never shown."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from server.engine.output import OutputText


def decode_bytes(ids: list[int]) -> str:
    """A byte-level vocabulary: one token per byte, so characters are split as badly as can be."""
    return bytes(ids).decode("utf-8", errors="replace")


def stream(ids: list[int], stop: tuple[str, ...] = ()) -> tuple[list[str], bool]:
    output = OutputText(decode_bytes, stop)
    pieces: list[str] = []
    for token in ids:
        pieces.append(output.push(token))
        if output.is_stopped:
            break
    pieces.append(output.finish())
    return pieces, output.is_stopped


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd")))
def test_pieces_add_up_to_the_text_and_never_split_a_character(text: str) -> None:
    pieces, _ = stream(list(text.encode()))
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces)


@given(st.lists(st.integers(0, 255), max_size=60))
def test_broken_utf8_is_not_held_back_for_ever(ids: list[int]) -> None:
    output = OutputText(decode_bytes)
    num_silent = 0
    for token in ids:
        num_silent = 0 if output.push(token) else num_silent + 1
        assert num_silent <= 8


@given(
    st.text(st.sampled_from("abc§"), max_size=40),
    st.lists(st.text(st.sampled_from("abc§"), min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_a_stop_string_ends_the_text_before_itself(text: str, stop: list[str]) -> None:
    pieces, is_stopped = stream(list(text.encode()), tuple(stop))
    shown = "".join(pieces)
    assert is_stopped == any(s in text for s in stop)
    # The first stop string completed while streaming wins; nothing of it is ever shown.
    ends = [text.find(s) + len(s) for s in stop if s in text]
    first_end = min(ends, default=len(text))
    expected = min((text[:first_end].find(s) for s in stop if s in text[:first_end]), default=None)
    assert shown == (text if expected is None else text[:expected])


def test_text_that_only_begins_like_a_stop_string_is_shown_at_the_end() -> None:
    pieces, is_stopped = stream(list(b"see END"), ("END!",))
    assert "".join(pieces) == "see END"
    assert not is_stopped


def test_stops_are_ignored_until_the_minimum_length() -> None:
    output = OutputText(decode_bytes, ("b",))
    shown = output.push(ord("a"), check_stop=False) + output.push(ord("b"), check_stop=False)
    assert not output.is_stopped
    assert shown + output.finish() == "ab"
