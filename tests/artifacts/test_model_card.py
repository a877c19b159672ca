"""The card: what a hub reads in it, and what people do."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from artifacts.manifest import CARD_MARK, AdapterManifest, GateResult
from artifacts.model_card import model_card
from artifacts.results import Difference, Noise, Results, TaskResult
from tests.artifacts.drafts import DRAFT

TASK = TaskResult(
    name="intents",
    kind="classification",
    main="accuracy",
    num_rows=40,
    num_left_out=2,
    figures={
        "base": {"accuracy": 0.1, "macro_f1": 0.05},
        "adapter": {"accuracy": 0.9, "macro_f1": 0.8},
    },
    differences=(
        Difference(to="base", metric="accuracy", difference=0.8, low=0.7, high=0.875),
        Difference(to="base", metric="macro_f1", difference=0.75, low=0.6, high=0.8),
    ),
    robustness={
        "adapter": {
            "typos": Noise(clean=0.9, noisy=0.81, score=0.9, num_changed=39, num_questions=40),
            "case": Noise(clean=0.9, noisy=0.9, score=None, num_changed=0, num_questions=40),
        }
    },
)
SUITE = Results(suite="bank", suite_hash="5" * 64, seed=3, tasks=(TASK,))
GATES = (
    GateResult(name="effect", value=0.5, threshold=0.0, passed=True),
    GateResult(name="bleu4:chat", value=0.2, threshold=0.45, passed=False),
    GateResult(name="forgetting", value=None, threshold=0.05, passed=None, detail="no set"),
)
SETTINGS: dict[str, Any] = {
    "data": [{"file": "rows|1.json", "sha256": "a" * 64}],
    "data_report": {
        "num_rows": 100,
        "num_duplicates": 3,
        "languages": {"zh": 60, "en": 37, "other": 3},
    },
    "license": "CC-BY-4.0",
    "limits": "Speaks of\ntea only.",
    "rank": 8,
    "target_modules": ["q_proj"],
}


def manifest(**changes: Any) -> AdapterManifest:
    facts = {"settings": SETTINGS, "evaluation": SUITE, "gates": GATES} | changes
    facts.setdefault("metrics", {"base_perplexity": 9.0, "adapter_perplexity": 3.0})
    draft = DRAFT.model_copy(update=facts)
    return AdapterManifest(
        **draft.model_dump(), name="support", version=3, created_at="2026-01-02T03:04:05+00:00"
    )


def front_matter(card: str) -> dict[str, Any]:
    """As a hub reads it: YAML between two lines of dashes at the very beginning."""
    begin, text, _ = card.split("---\n", 2)
    assert begin == ""
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def test_the_front_matter_is_what_the_hub_documents() -> None:
    card = model_card(manifest())
    assert front_matter(card) == {
        "library_name": "peft",
        "base_model": "tiny",
        "pipeline_tag": "text-generation",
        "tags": ["lora", "loraloop", "base_model:adapter:tiny"],
        "license": "cc-by-4.0",
        "language": ["zh", "en"],
        "metrics": ["perplexity", "accuracy", "f1"],
    }
    parsed: Any = ModelCard(card).data  # the hub's own parser
    assert parsed.to_dict() == front_matter(card)
    assert parsed.library_name == "peft"


def test_what_is_not_known_is_left_out_of_it() -> None:
    bare = model_card(manifest(settings={}, evaluation=None, gates=(), metrics={}))
    assert set(front_matter(bare)) == {"library_name", "base_model", "pipeline_tag", "tags"}
    assert "Nobody has stated one." in bare
    assert "Nobody has stated what it is not meant for." in bare
    assert "how well it does any task is not known" in bare
    assert "## Gates" not in bare


@pytest.mark.parametrize(
    ("license", "expected"),
    [
        ("apache-2.0", {"license": "apache-2.0"}),
        ("Our own", {"license": "other", "license_name": "Our own"}),
        ("  ", {}),
    ],
)
def test_a_licence_that_the_hub_does_not_know_is_other(
    license: str, expected: dict[str, str]
) -> None:
    found = front_matter(model_card(manifest(settings={"license": license})))
    assert {key: found[key] for key in found if key.startswith("license")} == expected


@pytest.mark.parametrize(
    ("languages", "codes"),
    [
        ({"zh": 98, "en": 2}, ["zh"]),
        ({"mixed": 50, "en": 50}, ["en", "zh"]),
        ({"other": 9}, None),
        ({}, None),
        ("zh", None),
    ],
)
def test_a_language_counts_from_a_share_on(languages: Any, codes: list[str] | None) -> None:
    card = model_card(manifest(settings={"data_report": {"languages": languages}}))
    assert front_matter(card).get("language") == codes


def test_people_read_figures_with_intervals_gates_data_licence_and_limits() -> None:
    lines = model_card(manifest()).splitlines()
    for line in (
        CARD_MARK,
        "# support@3",
        r"| rows\|1.json | `" + "a" * 64 + "` |",
        "| num duplicates | 3 |",
        "| adapter_perplexity | 3 |",
        "### intents: classification, 40 rows, 2 left out as too long",
        "| accuracy | 0.1000 | 0.9000 | +0.8000 [+0.7000, +0.8750] |",
        "| typos | adapter | 0.9000 | 0.8100 | 90.0% | 39 of 40 |",
        "| case | adapter | 0.9000 | 0.9000 | says nothing | 0 of 40 |",
        "**Failed.** It answers as `support@3` only; an alias or an arm of an experiment points to "
        "it where somebody forced it to.",
        "| bleu4:chat | **failed** | 0.2 | 0.45 |  |",
        "| forgetting | not measured |  | 0.05 | no set |",
        '| target_modules | `["q_proj"]` |',
        "CC-BY-4.0",
        "Speaks of tea only.",
        "Not measured: forgetting.",
    ):
        assert line in lines, line


def test_odd_settings_of_an_imported_manifest_do_not_break_it() -> None:
    odd = {"data": "somewhere", "data_report": 7, "license": 3, "limits": None, "x": {"y": [1]}}
    assert '`{"y": [1]}`' in model_card(manifest(settings=odd))
