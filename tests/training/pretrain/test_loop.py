"""The loop: an interrupted run is the uninterrupted run, and it learns."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from tokenizers import Tokenizer

from training.pretrain import loop
from training.pretrain.__main__ import make_stream
from training.pretrain.model import build_model
from training.pretrain.recipe import Recipe, load_recipe
from training.pretrain.stream import Position

from .paths import CONFIG, EMBEDDED

STEPS = 6


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """The shipped recipe, shrunk to seconds."""
    shipped = load_recipe(CONFIG)
    shape = shipped.shape.model_copy(
        update={"hidden_size": 128, "intermediate_size": 128, "num_layers": 1, "num_heads": 2}
    )
    changes = {"shape": shape, "work": tmp_path, "cycles": (3, STEPS), "warmup_steps": 2}
    return shipped.model_copy(update={**changes, "pool_size": 12, "batch_tokens": 512})


def run_to(recipe: Recipe, last_step: int) -> loop.Run:
    """Start or resume in the recipe's folder and train until a step."""
    tokenizer = Tokenizer.from_file(str(EMBEDDED / "tokenizer.json"))
    run = loop.start_run(recipe, build_model(recipe.shape, recipe.seed))
    run.restore()
    stream = make_stream(recipe, tokenizer, recipe.seed)
    for batch in stream.batches(run.progress.position):
        if run.progress.step == last_step:
            break
        loop.advance(run, batch)
    run.save()
    return run


def test_resumed_equals_uninterrupted(recipe: Recipe, tmp_path: Path) -> None:
    straight = run_to(recipe.model_copy(update={"work": tmp_path / "straight"}), STEPS)
    run_to(recipe, 2)
    resumed = run_to(recipe, STEPS)
    assert resumed.progress.curve == straight.progress.curve
    assert resumed.progress.position == straight.progress.position
    for left, right in zip(resumed.model.parameters(), straight.model.parameters(), strict=True):
        assert torch.equal(left, right)


def test_the_stream_starts_anywhere(recipe: Recipe) -> None:
    tokenizer = Tokenizer.from_file(str(EMBEDDED / "tokenizer.json"))
    stream = make_stream(recipe, tokenizer, recipe.seed)
    batches = stream.batches(Position(1, 0))
    first, second = next(batches), next(batches)
    again = next(stream.batches(first.following))
    assert torch.equal(again.tokens, second.tokens)
    assert torch.equal(again.columns, second.columns)


def test_training_stops_at_its_last_step_and_learns(recipe: Recipe) -> None:
    tokenizer = Tokenizer.from_file(str(EMBEDDED / "tokenizer.json"))
    recipe = recipe.model_copy(update={"cycles": (12,), "learning_rate": 1e-2})
    run = loop.start_run(recipe, build_model(recipe.shape, recipe.seed))
    seen: list[float] = []
    stream = make_stream(recipe, tokenizer, recipe.seed)
    assert loop.train(run, stream, lambda _, loss: seen.append(loss))
    assert run.progress.step == len(seen) == 12
    assert seen[-1] < seen[0] - 0.5


def test_the_time_limit_ends_a_run_unfinished_but_saved(recipe: Recipe) -> None:
    tokenizer = Tokenizer.from_file(str(EMBEDDED / "tokenizer.json"))
    recipe = recipe.model_copy(update={"max_minutes": 1e-9, "cycles": (50,)})
    run = loop.start_run(recipe, build_model(recipe.shape, recipe.seed))
    assert not loop.train(run, make_stream(recipe, tokenizer, recipe.seed), lambda *_: None)
    assert (recipe.work / "checkpoint.pt").exists()


def test_an_unknown_recipe_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(CONFIG.read_text(encoding="utf-8") + "\nlearning_rat: 1\n", encoding="utf-8")
    with pytest.raises(ValidationError, match="learning_rat"):
        load_recipe(path)


def test_a_further_cycle_leaves_the_first_as_it_was(recipe: Recipe) -> None:
    one = recipe.model_copy(update={"cycles": (40,), "warmup_steps": 4})
    two = one.model_copy(update={"cycles": (40, 60)})
    assert [loop.learning_rate(one, i) for i in range(40)] == [
        loop.learning_rate(two, i) for i in range(40)
    ]
    assert loop.learning_rate(two, 39) < 0.1 * loop.learning_rate(two, 44)
