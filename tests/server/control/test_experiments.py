"""Experiments: sticky, explicit, and the same after a restart."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest

from artifacts.database import Database
from artifacts.errors import InvalidInput, NotFound
from artifacts.registry import AdapterRow, VersionRow
from server.comparison.experiments import Arm, Experiments

ARMS = [Arm("shop@1", 70), Arm("shop@2", 30)]
SUBJECTS = [f"user-{number}" for number in range(2_000)]


@pytest.fixture(autouse=True)
def versions(database: Database) -> None:
    """shop@1 and shop@2 are registered."""
    with database.session() as session:
        session.add(AdapterRow(name="shop", next_version=3))
        for number in (1, 2):
            session.add(VersionRow(name="shop", version=number, content_hash="", manifest=""))


def assigned(experiments: Experiments) -> dict[str, str]:
    arms = {subject: experiments.assign("shop", subject) for subject in SUBJECTS}
    assert all(arms.values())
    return {subject: arm.model for subject, arm in arms.items() if arm is not None}


def test_no_experiment_assigns_nothing(database: Database) -> None:
    assert Experiments(database).assign("shop", "anna") is None


def test_subjects_keep_their_arm_across_a_restart(database: Database) -> None:
    experiments = Experiments(database)
    experiments.put("shop", ARMS)
    first = assigned(experiments)
    assert assigned(experiments) == first
    assert assigned(Experiments(database)) == first
    share = Counter(first.values())["shop@1"] / len(SUBJECTS)
    assert abs(share - 0.7) < 4.5 * math.sqrt(0.7 * 0.3 / len(SUBJECTS))


def test_reweighting_only_moves_the_difference(database: Database) -> None:
    experiments = Experiments(database)
    salt = experiments.put("shop", ARMS).salt
    before = assigned(experiments)
    after_put = experiments.put("shop", [Arm("shop@1", 60), Arm("shop@2", 40)])
    assert after_put.salt == salt
    after = assigned(experiments)
    moved = {(before[one], after[one]) for one in SUBJECTS if before[one] != after[one]}
    assert moved == {("shop@1", "shop@2")}
    assert abs(sum(before[one] != after[one] for one in SUBJECTS) / len(SUBJECTS) - 0.1) < 0.04
    assert assigned(Experiments(database)) == after


def test_without_a_subject_every_request_is_random(database: Database) -> None:
    experiments = Experiments(database, rng=random.Random(0))
    experiments.put("shop", ARMS)
    met = Counter(arm.model for _ in range(2_000) if (arm := experiments.assign("shop", None)))
    assert abs(met["shop@1"] / 2_000 - 0.7) < 4.5 * math.sqrt(0.7 * 0.3 / 2_000)


def test_a_new_experiment_of_an_old_name_draws_anew(database: Database) -> None:
    experiments = Experiments(database)
    old = experiments.put("shop", ARMS)
    experiments.delete("shop")
    assert experiments.assign("shop", "anna") is None
    assert Experiments(database).all() == []
    assert experiments.put("shop", ARMS).salt != old.salt
    with pytest.raises(NotFound, match="no-such"):
        experiments.delete("no-such")


@pytest.mark.parametrize(
    ("arms", "says"),
    [
        ([], "2 to 16 arms, got 0"),
        ([Arm("shop@1", 1)], "champion alias"),
        ([Arm("shop@1", 1), Arm("shop@1", 2)], "same model, shop@1"),
        ([Arm("shop@1", 1), Arm("shop@2", 0)], "shop@2 is 0"),
        ([Arm("shop@1", 1), Arm("shop@2", -3)], "shop@2 is -3"),
        ([Arm("shop@1", 1), Arm("shop@2", math.nan)], "nan"),
        ([Arm("shop@1", 1), Arm("shop@2", math.inf)], "inf"),
        ([Arm(f"shop@{n}", 1) for n in range(1, 18)], "got 17"),
    ],
)
def test_bad_arms_are_refused_and_change_nothing(
    database: Database, arms: list[Arm], says: str
) -> None:
    experiments = Experiments(database)
    running = experiments.put("shop", ARMS)
    with pytest.raises(InvalidInput, match=says):
        experiments.put("shop", arms)
    assert experiments.get("shop") == running
    assert Experiments(database).get("shop") == running
