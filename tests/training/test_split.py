"""Parts: sizes, ties, strata, and that they depend on seed and content alone."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifacts.errors import InvalidData
from training.data.split import Parts, SplitRow, split_rows

EIGHT_ONE_ONE = (0.8, 0.1, 0.1)

some_rows = st.lists(
    st.builds(
        lambda group, cluster, stratum: (group, cluster, stratum),
        st.none() | st.integers(0, 8),
        st.none() | st.integers(0, 8),
        st.sampled_from("abc"),
    ),
    min_size=3,
    max_size=40,
)


def rows_of(drawn: list[tuple[int | None, int | None, str]]) -> list[SplitRow]:
    return [
        SplitRow(
            b"%d" % number,
            tuple((kind, tie) for kind, tie in zip("gc", ties, strict=True) if tie is not None),
            stratum,
        )
        for number, (*ties, stratum) in enumerate(drawn)
    ]


def alone(count: int) -> list[SplitRow]:
    return [SplitRow(b"%d" % number) for number in range(count)]


@given(drawn=some_rows, seed=st.integers(0, 5))
def test_no_row_is_in_two_parts_or_lost_and_ties_hold(
    drawn: list[tuple[int | None, int | None, str]], seed: int
) -> None:
    rows = rows_of(drawn)
    num_groups = len({_root(rows, row) for row in range(len(rows))})
    if num_groups < 3:
        with pytest.raises(InvalidData, match="stay together"):
            split_rows(rows, EIGHT_ONE_ONE, seed)
        return
    parts = split_rows(rows, EIGHT_ONE_ONE, seed)
    assert sorted(row for part in parts for row in part) == list(range(len(rows)))
    assert all(parts)
    part_of = {row: number for number, part in enumerate(parts) for row in part}
    for tie in {tie for row in rows for tie in row.ties}:
        assert len({part_of[n] for n, row in enumerate(rows) if tie in row.ties}) == 1


def _root(rows: list[SplitRow], row: int) -> int:
    """The first row that is tied to this one, over others if need be."""
    joined, grown = {row}, True
    while grown:
        ties = {tie for one in joined for tie in rows[one].ties}
        more = {n for n, other in enumerate(rows) if ties & set(other.ties)} - joined
        joined, grown = joined | more, bool(more)
    return min(joined)


@given(drawn=some_rows, seed=st.integers(0, 5), draw=st.randoms())
def test_the_order_of_rows_changes_nothing(
    drawn: list[tuple[int | None, int | None, str]], seed: int, draw: object
) -> None:
    rows = rows_of(drawn)
    shuffled = list(rows)
    draw.shuffle(shuffled)  # type: ignore[attr-defined]

    def contents(given: list[SplitRow]) -> list[list[bytes]] | str:
        try:
            parts = split_rows(given, EIGHT_ONE_ONE, seed)
        except InvalidData as error:
            return str(error)
        return [[given[row].identity for row in part] for part in parts]

    assert contents(rows) == contents(shuffled)


def sizes(parts: Parts) -> list[int]:
    return [len(part) for part in parts]


def test_the_parts_have_the_sizes_asked_for_and_depend_on_the_seed() -> None:
    rows = alone(200)
    parts = split_rows(rows, EIGHT_ONE_ONE, 0)
    assert sizes(parts) == [160, 20, 20]
    assert split_rows(rows, EIGHT_ONE_ONE, 1).test != parts.test
    assert sizes(split_rows(rows, (0.5, 0.0, 0.5), 0)) == [100, 0, 100]
    assert sizes(split_rows(rows, (1.0, 0.0, 0.0), 0)) == [200, 0, 0]
    assert sizes(split_rows(alone(3), EIGHT_ONE_ONE, 0)) == [1, 1, 1]


def test_rows_that_are_added_move_few_of_the_others() -> None:
    before = set(split_rows(alone(1000), EIGHT_ONE_ONE, 0).test)
    after = set(split_rows(alone(1010), EIGHT_ONE_ONE, 0).test)
    assert len(before - after) <= 2


@given(
    counts=st.lists(st.integers(1, 60), min_size=1, max_size=8).filter(lambda c: sum(c) >= 20),
    seed=st.integers(0, 3),
)
def test_every_part_has_each_stratum_in_its_share(counts: list[int], seed: int) -> None:
    rows = [
        SplitRow(b"%d %d" % (label, number), (), str(label))
        for label, count in enumerate(counts)
        for number in range(count)
    ]
    parts = split_rows(rows, EIGHT_ONE_ONE, seed)
    total = len(rows)
    for part, size in zip(parts[1:], (total // 10, total // 10), strict=True):
        found = Counter(rows[row].stratum for row in part)
        for label, count in enumerate(counts):
            assert abs(found[str(label)] - size * count / total) < 2
    trained = {rows[row].stratum for row in parts.train}
    assert trained == {row.stratum for row in rows}  # what is tested was trained
    if min(counts) > 1:
        assert sizes(parts)[1:] == [max(1, total // 10)] * 2


@pytest.mark.parametrize("seed", range(3))
def test_the_only_row_of_a_stratum_is_trained(seed: int) -> None:
    """Where the larger strata cannot fill the parts, the parts stay smaller."""
    rows = [SplitRow(b"%d" % n, (), str(n) if n < 12 else "many") for n in range(20)]
    parts = split_rows(rows, EIGHT_ONE_ONE, seed)
    assert sizes(parts) == [18, 1, 1]
    assert {rows[row].stratum for row in parts.train} == {row.stratum for row in rows}


def test_a_large_group_does_not_fill_the_test_part() -> None:
    rows = [SplitRow(b"%d" % number, ("many" if number < 60 else number,)) for number in range(100)]
    for seed in range(5):
        assert sizes(split_rows(rows, EIGHT_ONE_ONE, seed)) == [80, 10, 10]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (alone(2), "2 distinct usable row(s), but the split needs at least 3"),
        ([SplitRow(b"%d" % i, (i // 5,)) for i in range(10)], "in 2 group(s) that stay together"),
    ],
)
def test_too_few_rows_are_said(rows: list[SplitRow], message: str) -> None:
    with pytest.raises(InvalidData) as caught:
        split_rows(rows, EIGHT_ONE_ONE, 0)
    assert message in str(caught.value)
    assert "add rows" in str(caught.value)
