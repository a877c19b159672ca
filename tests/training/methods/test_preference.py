"""DPO: TRL's loss, serving's prompts, the right reference, and a gate on preferences."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from artifacts.base import load_transformers_model, open_base
from artifacts.chat import ChatRenderer
from artifacts.errors import InvalidChat, InvalidData
from artifacts.heldout import read_heldout
from artifacts.home import Home
from tests.training.methods.runs import (
    adapted_model,
    answer,
    figures,
    losses,
    served,
    train,
    versions,
)
from tests.training.test_run import interrupt
from training.config import TrainingConfig, parse_config
from training.data.examples import IGNORED
from training.data.pairs import PairExample, cut_pair, render_pair
from training.data.records import PreferencePair
from training.data.split import Split
from training.heldout import heldout_row
from training.inputs import load_inputs
from training.objectives.preference import Preference, preference_losses, reply_logs

HISTORY = [
    {"role": "user", "content": "Hi <|end|>"},  # a special token as text
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "What is 3?"},
]


def pair(chosen: str, rejected: str, messages: Any = HISTORY) -> PreferencePair:
    replies = [[{"role": "assistant", "content": text}] for text in (chosen, rejected)]
    return PreferencePair(messages, None, replies[0], replies[1], "f.jsonl", 1)


@pytest.fixture
def renderer(tiny_base: Path) -> ChatRenderer:
    return ChatRenderer(open_base(tiny_base).tokenizer)


@pytest.fixture
def dpo(settings: dict[str, Any]) -> dict[str, Any]:
    """40 pairs in which the reply with the number is the better one."""
    rows = [
        {
            "messages": [{"role": "user", "content": f"What is {i}?"}],
            "chosen": {"role": "assistant", "content": f"It is the number {i}, as you said."},
            "rejected": {"role": "assistant", "content": "No idea, ask someone else."},
        }
        for i in range(40)
    ]
    Path(settings["data"][0]).write_text(json.dumps(rows), encoding="utf-8")
    return settings | {"objective": "dpo", "learning_rate": 5e-3, "max_steps": 8}


def test_both_rows_begin_with_the_prompt_that_serving_renders(renderer: ChatRenderer) -> None:
    """And only the reply that is compared has labels, not the assistant's earlier turn."""
    row = render_pair(pair("Three.", "Four!"), renderer)
    prompt = renderer.render_prompt(HISTORY)
    for side in (row.chosen, row.rejected):
        assert list(side.input_ids[: len(prompt)]) == prompt
        assert set(side.labels[: len(prompt)]) == {IGNORED}
        assert list(side.labels[len(prompt) :]).count(IGNORED) == 0
    whole = renderer.render_training([*HISTORY, {"role": "assistant", "content": "Three."}])
    assert list(row.chosen.input_ids) == whole.input_ids


def test_a_pair_is_cut_on_both_sides_and_left_out_when_a_reply_is_lost(
    renderer: ChatRenderer,
) -> None:
    row = render_pair(pair("Three.", "Four, I think, or five!"), renderer)
    prompt = len(renderer.render_prompt(HISTORY))
    cut = cut_pair(row, prompt + 9)
    assert cut is not None
    assert cut.chosen == row.chosen  # six letters and the end
    assert len(cut.rejected.input_ids) == prompt + 9
    assert cut_pair(row, prompt) is None
    with pytest.raises(InvalidChat, match="are the same"):
        render_pair(pair("Three.", "Three."), renderer)


# --- the loss ---


def trl_loss(base: Path, rows: list[PairExample], folder: Path, **options: Any) -> float:
    """TRL's own loss of these token ids, the base being policy and reference's log-probs given."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    opened = open_base(base)
    text = {"prompt": ["a"], "chosen": ["b"], "rejected": ["c"]}
    trainer = DPOTrainer(
        model=load_transformers_model(opened),
        ref_model=load_transformers_model(opened),
        args=DPOConfig(output_dir=str(folder), report_to=[], use_cpu=True, bf16=False,
                       max_length=None, **options),
        train_dataset=Dataset.from_dict(text),
        processing_class=opened.tokenizer,
    )  # fmt: skip
    prompts = [next(i for i, label in enumerate(row.chosen.labels) if label != IGNORED)
               for row in rows]  # fmt: skip
    batch = trainer.data_collator([
        {
            "prompt_ids": list(row.chosen.input_ids[:start]),
            "chosen_ids": list(row.chosen.input_ids[start:]),
            "rejected_ids": list(row.rejected.input_ids[start:]),
            "ref_chosen_logps": row.reference[0],
            "ref_rejected_logps": row.reference[1],
        }
        for row, start in zip(rows, prompts, strict=True)
    ])  # fmt: skip
    trainer.precompute_ref_logps = True
    trainer.model.train()
    return float(trainer._compute_loss(trainer.model, batch, return_outputs=False))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"dpo_loss": "sigmoid", "dpo_beta": 0.3}, {"loss_type": ["sigmoid"], "beta": 0.3}),
        ({"dpo_loss": "hinge"}, {"loss_type": ["hinge"], "beta": 0.1}),
        ({"dpo_loss": "ipo", "dpo_beta": 0.2}, {"loss_type": ["ipo"], "beta": 0.2}),
        # TRL's only loss with conservative smoothing sorts the batch: the same for a single pair
        ({"dpo_label_smoothing": 0.2}, {"loss_type": ["aot"], "beta": 0.1, "label_smoothing": 0.2}),
        (
            {"dpo_sft_weight": 0.5},
            {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5], "beta": 0.1},
        ),
    ],
    ids=lambda options: next(iter(options)),
)
def test_the_loss_is_trls(
    tiny_base: Path, renderer: ChatRenderer, tmp_path: Path, ours: Any, theirs: Any
) -> None:
    """On token ids of our own, against references far from the policy."""
    config = parse_config({"name": "a", "data": "x", "objective": "dpo", **ours})
    rows = [render_pair(pair("Three.", "Four, I think!"), renderer)]
    if theirs["loss_type"] in (["sigmoid"], ["hinge"], ["ipo"]):
        rows.append(render_pair(pair("It is 3, as you said.", "No."), renderer))
    references = [(-30.0, -80.0), (-110.0, -15.0)]
    rows = [PairExample(r.input_ids, r.labels, rejected_at=r.rejected_at, reference=reference)
            for r, reference in zip(rows, references, strict=False)]  # fmt: skip
    model = load_transformers_model(open_base(tiny_base))
    objective = Preference(config)
    batch = objective.collate(rows)
    loss = objective.summed_loss(model, batch) / objective.num_items([batch])
    assert loss.item() == pytest.approx(trl_loss(tiny_base, rows, tmp_path, **theirs), rel=1e-4)


def test_log_probabilities_are_those_of_each_row_alone(
    tiny_base: Path, renderer: ChatRenderer
) -> None:
    model = load_transformers_model(open_base(tiny_base))
    config = parse_config({"name": "a", "data": "x", "objective": "dpo"})
    rows = [render_pair(pair(f"It is {i}.", "Never" * i), renderer) for i in (1, 2)]
    logs, lengths = reply_logs(model, Preference(config).collate(rows))
    alone = []
    for side in (side for row in rows for side in (row.chosen, row.rejected)):
        ids = torch.tensor([list(side.input_ids)])
        scores = model(ids).logits[0, :-1].log_softmax(-1)
        wanted = torch.tensor(list(side.labels[1:]))
        places = (wanted != IGNORED).nonzero()[:, 0]
        alone.append(scores[places, wanted[places]].sum().item())
    assert logs.tolist() == pytest.approx(alone, rel=1e-5)
    assert lengths.tolist() == [side.num_targets for row in rows
                                for side in (row.chosen, row.rejected)]  # fmt: skip


# --- runs ---


@pytest.mark.parametrize("method", ["lora", "adalora"])
def test_it_learns_to_prefer_and_serves(dpo: dict[str, Any], method: str) -> None:
    rate = 0.06 if method == "adalora" else 0.02
    told = losses(train(dpo, method=method, learning_rate=rate, dpo_sft_weight=1))
    assert told[-1] < 0.9 * told[0]
    (version,) = versions(dpo)
    weights, metrics = served(dpo, version.path), figures(version)
    assert weights.pairs
    assert metrics["reference_preference_loss"] == pytest.approx(math.log(2))
    assert metrics["preference_loss"] < metrics["reference_preference_loss"]
    assert metrics["preference_accuracy"] == 1.0
    assert metrics["preference_margin"] > 0
    assert metrics["merge_difference"] < 1e-4
    (gate,) = [gate for gate in version.manifest.gates if gate.name == "held_out_loss"]
    assert gate.passed
    wanted = metrics["preference_loss"], metrics["reference_preference_loss"]
    assert (gate.value, gate.threshold) == wanted  # not the loss per token
    model = adapted_model(dpo, version.path)
    base = load_transformers_model(open_base(dpo["base"]))
    assert answer(model, dpo["base"], "What is 3?") != answer(base, dpo["base"], "What is 3?")
    home = Home.open(dpo["home"])
    pairs: Any = load_inputs(parse_config(dpo), home).data.split.test
    kept = read_heldout(home, version.content_hash)
    assert kept == [heldout_row(pair.chosen) for pair in pairs] != []


def test_the_loss_begins_where_nothing_is_preferred(dpo: dict[str, Any]) -> None:
    """The first step's margin is zero: the model still is its own reference."""
    first = losses(train(dpo, logging_steps=1, max_steps=2))[0]
    assert first == pytest.approx(math.log(2), rel=1e-4)


def prepared(settings: dict[str, Any], **more: Any) -> tuple[TrainingConfig, Split, Any, Any]:
    from training.methods.method import choose_method
    from training.plan import make_plan

    config = parse_config({**settings, **more})
    inputs = load_inputs(config, Home.open(settings["home"]))
    plan = make_plan(inputs.config, inputs.base.config, 4, "cpu")
    method = choose_method(inputs.config, inputs.base, plan, inputs.start)
    model = method.build()
    return config, Preference(config).prepare(model, inputs.data.split, 5), model, inputs


def test_the_reference_is_the_base_or_the_adapter_that_the_run_starts_from(
    dpo: dict[str, Any],
) -> None:
    _, split, _, inputs = prepared(dpo)
    base = load_transformers_model(inputs.base)
    train(dpo)
    again = {key: value for key, value in dpo.items() if key != "rank"}
    _, started, _, _ = prepared(again, start_from="tiny@1")
    adapted = adapted_model(dpo, versions(dpo)[0].path)
    references: list[list[float]] = []
    for model, rows in ((base, split.test), (adapted, started.test)):
        pairs = [row for row in rows if isinstance(row, PairExample)]
        logs, _ = reply_logs(model, Preference(parse_config(dpo)).collate(pairs))
        given = [value for row in pairs for value in row.reference]
        references.append(given)
        assert logs.tolist() == pytest.approx(given, rel=1e-4)
    assert references[0] != pytest.approx(references[1], rel=1e-2)


def test_a_continued_run_is_judged_against_its_start(dpo: dict[str, Any]) -> None:
    train(dpo)
    again = {key: value for key, value in dpo.items() if key != "rank"}
    train(again, start_from="tiny@1", output_dir=dpo["output_dir"] + "-2")
    metrics = figures(versions(dpo)[1])
    assert metrics["reference_preference_loss"] == pytest.approx(math.log(2))
    assert metrics["preference_loss"] < math.log(2)


def test_a_resumed_run_is_the_uninterrupted_run(dpo: dict[str, Any], tmp_path: Path) -> None:
    more = {"dropout": 0.1, "dpo_sft_weight": 0.2, "gradient_accumulation": 2, "batch_size": 3,
            "logging_steps": 1}  # fmt: skip
    train(dpo, **more, output_dir=str(tmp_path / "whole"))
    interrupt(dpo, 5, **more)
    train(dpo, **more, resume=True)
    one, other = versions(dpo)
    assert one.content_hash == other.content_hash
    assert one.manifest.metrics == other.manifest.metrics


def test_what_is_not_preferred_more_than_before_fails_its_gate(dpo: dict[str, Any]) -> None:
    """In the test part the replies are swapped."""
    rows = json.loads(Path(dpo["data"][0]).read_text(encoding="utf-8"))
    swapped = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows[:8]]
    test = Path(dpo["data"][0]).with_name("test.json")
    test.write_text(json.dumps(swapped), encoding="utf-8")
    Path(dpo["data"][0]).write_text(json.dumps(rows[8:]), encoding="utf-8")
    train(dpo, test_data=[str(test)], split=[0.9, 0.1, 0], near_duplicates="off")
    (version,) = versions(dpo)
    assert version.manifest.gate == "failed"
    assert [gate.name for gate in version.manifest.failed_gates] == ["held_out_loss"]


def test_rows_of_the_other_kind_are_refused_with_their_line(
    dpo: dict[str, Any], settings: dict[str, Any]
) -> None:
    with pytest.raises(InvalidData, match="objective: dpo learns from these, sft does not"):
        train(dpo, objective="sft")
    Path(settings["data"][0]).write_text(
        json.dumps([{"instruction": "a?", "output": "b"}]), encoding="utf-8"
    )
    with pytest.raises(InvalidData, match=r"rows\.json:1: no preference pair"):
        train(dpo)


def test_smoothing_moves_the_loss_towards_the_other_side() -> None:
    """By the formula, at a margin of 2 / 0.1."""
    config = parse_config({"name": "a", "data": "x", "objective": "dpo",
                           "dpo_label_smoothing": 0.25})  # fmt: skip
    ratios, lengths = torch.tensor([12.0, -8.0]), torch.tensor([5, 5])
    right, wrong = -math.log(1 / (1 + math.exp(-2))), -math.log(1 / (1 + math.exp(2)))
    expected = 0.75 * right + 0.25 * wrong
    assert preference_losses(ratios, lengths, config).item() == pytest.approx(expected)
