"""``loraloop eval`` on a tiny base: against references, twice the same bytes, and its mistakes."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from artifacts.base import load_transformers_model, open_base
from artifacts.chat import ChatRenderer
from artifacts.errors import AdapterRejected, InvalidData, LoraloopError, NotFound
from artifacts.home import Home
from loraloop import app
from tests.training.evaluate.conftest import World, write_suite
from training.errors import GateFailed, InvalidConfig
from training.evaluate.ask import _batches, ask
from training.evaluate.questions import Preparation
from training.evaluate.run import EvalOptions, evaluate
from training.evaluate.suite import load_suite
from training.evaluation import held_out_loss


def run(world: World, tmp_path: Path, **options: Any) -> dict[str, Any]:
    """The results of the suite of ``write_suite``, or of ``options['suite']``."""
    suite = options.pop("suite", None) or write_suite(tmp_path, world.data)
    chosen: dict[str, Any] = {"adapter": "colours@1", "output": tmp_path / "out"} | options
    asked = EvalOptions(suite=suite, base=str(world.base), home=world.home, **chosen)
    folder = evaluate(asked, Console(file=io.StringIO()))
    found: dict[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return found


def test_twice_the_same_command_gives_the_same_bytes(world: World, tmp_path: Path) -> None:
    for output in ("one", "two"):
        run(world, tmp_path, output=tmp_path / output, seed=3)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == [
        "answers.jsonl",
        "differences.png",
        "report.md",
        "results.json",
        "robustness-say.png",
        "tasks.png",
    ]
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    run(world, tmp_path, output=tmp_path / "other", seed=4)
    other = (tmp_path / "other" / "results.json").read_bytes()
    assert other != (tmp_path / "one" / "results.json").read_bytes()


def test_the_command_finds_what_training_found(world: World, tmp_path: Path) -> None:
    """The registered file, read by PEFT, gives the figures of the model that was trained."""
    found = run(world, tmp_path)
    (version,) = world.registry.list()
    kept = version.manifest.evaluation
    assert kept is not None
    assert found["suite_hash"] == kept.suite_hash
    for ours, theirs in zip(found["tasks"], kept.tasks, strict=True):
        for who in ("base", "adapter"):
            assert ours["figures"][who] == pytest.approx(theirs.figures[who], rel=1e-4)
    assert found["subjects"]["adapter"] == {"id": "colours@1", "hash": version.content_hash}
    strict = {gate["name"]: gate["passed"] for gate in found["strict_gates"]}
    assert strict["task_metric:say"] is True
    assert strict["bleu4:chat"] is False
    report = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "| accuracy | 0.0000 | 1.0000 | +1.0000 [+1.0000, +1.0000] |" in report
    assert "| bleu4:chat | **failed** |" in report
    lines = (tmp_path / "out" / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    first = json.loads(lines[0])
    assert first["adapter"] == first["reference"] == first["question"].split()[0]


def test_answers_and_losses_are_transformers_own(world: World, tmp_path: Path) -> None:
    """Left-padded batches of unlike lengths answer as each prompt does alone."""
    rows = [{"instruction": "x" * n, "output": f"reply {n} 好"} for n in (1, 40, 7, 90, 23)]
    data = tmp_path / "rows.json"
    data.write_text(json.dumps(rows), encoding="utf-8")
    tasks: list[dict[str, Any]] = [
        {"name": "g", "kind": "generation", "data": str(data), "max_new_tokens": 9},
        {"name": "p", "kind": "perplexity", "data": str(data)},
    ]
    base = open_base(world.base)
    suite = load_suite(write_suite(tmp_path, data, tasks=tasks))
    prepared = Preparation(base, 0).prepare(suite)
    model = load_transformers_model(base)
    answers = ask(model, base, prepared, 3)
    renderer = ChatRenderer(base.tokenizer)
    for row, said in zip(rows, answers.texts["g"]["clean"], strict=True):
        ids = renderer.render_prompt([{"role": "user", "content": row["instruction"]}])
        out = model.generate(
            torch.tensor([ids]), max_new_tokens=9, do_sample=False, pad_token_id=257
        )
        assert said == base.tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True).strip()
    task = prepared.tasks[1]
    assert sum(answers.losses["p"]) / sum(e.num_targets for e in task.examples) == pytest.approx(
        held_out_loss(model, task.examples, 2).loss
    )
    alone = [held_out_loss(model, [e], 1) for e in task.examples]
    assert answers.losses["p"] == pytest.approx([e.loss * e.num_tokens for e in alone], rel=1e-5)


def test_an_answer_ends_at_the_bases_eos_even_if_the_tokenizer_calls_it_text(
    world: World, tmp_path: Path
) -> None:
    from peft import PeftModel

    tasks = [{"name": "g", "kind": "generation", "data": str(world.data), "max_new_tokens": 9}]
    suite = load_suite(write_suite(tmp_path, world.data, tasks=tasks, general=None))
    base = open_base(world.base)
    (version,) = world.registry.list()
    model = PeftModel.from_pretrained(load_transformers_model(base), version.path)
    prepared = Preparation(base, 0, limit=1).prepare(suite)
    assert ask(model, base, prepared, 1).texts["g"]["clean"] == ["red"]
    (end,) = base.tokenizer.encode("d", add_special_tokens=False)
    ending = replace(base, eos_token_ids=frozenset({end}))
    assert ask(model, ending, prepared, 1).texts["g"]["clean"] == ["re"]


def test_a_loss_that_is_not_a_number_is_told(world: World, tmp_path: Path) -> None:
    base = open_base(world.base)
    prepared = Preparation(base, 0).prepare(load_suite(write_suite(tmp_path, world.data)))
    model = load_transformers_model(base)
    with torch.no_grad():
        model.model.norm.weight.fill_(torch.nan)
    with pytest.raises(GateFailed, match="task 'rows' is nan"):
        ask(model, base, prepared, 8)


def test_long_rows_come_in_smaller_batches_and_every_row_once() -> None:
    rows: list[Sequence[int]] = [range(n) for n in (5, 20_000, 7, 15_000, 900, 17_000)]
    batches = list(_batches(rows, 3, num_new=100))
    assert batches == [[1], [5], [3, 4], [2, 0]]
    assert list(_batches([range(10**6)], 8)) == [[0]]  # one row is always asked


def test_a_lack_of_memory_halves_the_batch(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = open_base(world.base)
    prepared = Preparation(base, 0).prepare(load_suite(write_suite(tmp_path, world.data)))
    model = load_transformers_model(base)
    whole = ask(model, base, prepared, 8)
    generate = model.generate
    sizes: list[int] = []

    def small(input_ids: torch.Tensor, **rest: Any) -> Any:
        sizes.append(len(input_ids))
        if len(input_ids) > limit:
            raise torch.OutOfMemoryError("too many rows")
        return generate(input_ids=input_ids, **rest)

    monkeypatch.setattr(model, "generate", small)
    limit = 2
    assert ask(model, base, prepared, 8).texts == whole.texts
    assert max(sizes) == 8
    limit = 0
    with pytest.raises(torch.OutOfMemoryError):
        ask(model, base, prepared, 8)


def test_each_of_two_adapters_answers_for_itself(world: World, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    (version,) = world.registry.list()
    other = shutil.copytree(version.path, tmp_path / "other")
    (other / "manifest.json").unlink()
    weights = other / "adapter_model.safetensors"
    negated = {key: -t if "lora_B" in key else t for key, t in load_file(weights).items()}
    save_file(negated, weights)
    for adapter, against in (("colours@1", str(other)), (str(other), "colours@1")):
        say = run(world, tmp_path, adapter=adapter, against=against, limit=4)["tasks"][0]
        accuracies = {who: figures["accuracy"] for who, figures in say["figures"].items()}
        theirs = "adapter" if adapter == "colours@1" else "against"
        assert accuracies.pop(theirs) == 1.0
        assert set(accuracies.values()) == {0.0}


def test_the_hash_of_a_suite_is_of_its_settings_and_bytes_wherever_they_lie(
    world: World, tmp_path: Path
) -> None:
    base = open_base(world.base)

    def hash_of(data: Path, **changes: Any) -> str:
        return Preparation(base, 0).prepare(load_suite(write_suite(tmp_path, data, **changes))).hash

    first = hash_of(world.data)
    assert hash_of(Path(shutil.copy(world.data, tmp_path / "moved.json"))) == first
    assert hash_of(world.data, general=None) != first
    changed = tmp_path / "changed.json"
    changed.write_text(world.data.read_text().replace("red 0", "red 99"))
    assert hash_of(changed) != first


def test_another_version_or_folder_can_be_compared_with(world: World, tmp_path: Path) -> None:
    (version,) = world.registry.list()
    copy = shutil.copytree(version.path, tmp_path / "copy")
    found = run(world, tmp_path, adapter=f"{copy}/", against="colours@1", limit=3)
    say = found["tasks"][0]
    assert say["num_rows"] == 3
    assert say["figures"]["adapter"] == say["figures"]["against"]
    by_other = {(d["to"], d["metric"]): d for d in say["differences"]}
    assert by_other["against", "accuracy"]["high"] == 0
    assert by_other["base", "accuracy"]["low"] == 1


def test_the_base_and_a_whole_model_can_be_asked(world: World, tmp_path: Path) -> None:
    alone = run(world, tmp_path, adapter="base", limit=2)
    assert list(alone["subjects"]) == ["base"]
    assert alone["strict_gates"] == []
    assert alone["forgetting"] is None
    whole = shutil.copytree(world.base, tmp_path / "whole")
    found = run(world, tmp_path, adapter=str(whole), limit=2)
    say = found["tasks"][0]
    assert say["figures"]["adapter"] == say["figures"]["base"]  # the same weights
    assert found["forgetting"] == 0
    models = Home.open(world.home).models
    models.mkdir(exist_ok=True)
    whole.rename(models / "whole@1")  # as a run publishes it
    again = run(world, tmp_path, adapter="whole@1", limit=2)
    assert again["tasks"] == found["tasks"]


def test_a_system_prompt_lists_the_labels_and_long_rows_are_counted(
    world: World, tmp_path: Path
) -> None:
    rows = [{"instruction": q, "output": "red"} for q in ("short", "l" * 250, "fine")]
    data = tmp_path / "rows.json"
    data.write_text(json.dumps(rows), encoding="utf-8")
    task = {
        "name": "t",
        "kind": "classification",
        "data": str(data),
        "labels": ["red", "dark blue"],
        "system": "One of: {labels}.",
        "max_new_tokens": 4,
    }
    base = open_base(world.base)
    suite = load_suite(write_suite(tmp_path, data, tasks=[task], general=None))
    (prepared,) = Preparation(base, 0).prepare(suite).tasks
    assert (prepared.num_rows, prepared.num_left_out) == (2, 1)
    assert "One of: red, dark blue." in base.tokenizer.decode(prepared.prompts["clean"][0])


def test_a_sample_is_of_the_seed(world: World, tmp_path: Path) -> None:
    base = open_base(world.base)
    suite = load_suite(write_suite(tmp_path, world.data))
    drawn = [Preparation(base, seed).prepare(suite).tasks[0].questions for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    noisy = Preparation(base, 0).prepare(suite).tasks[0].noisy
    assert len(noisy) == 6
    assert noisy == sorted(set(noisy))
    assert noisy != list(range(6))  # of all of them: files are often sorted by label


def classify(data: list[Any], **more: Any) -> dict[str, Any]:
    return {"rows": data, "task": {"name": "t", "kind": "classification"} | more}


KTO = {
    "messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "bad"}],
    "kto_tag": False,
}
BAD_DATA: list[tuple[dict[str, Any], type[LoraloopError], str]] = [
    (classify([{"instruction": "x"}]), InvalidData, r"rows.json:1"),
    (classify([{"text": "only text"}]), InvalidData, "question and a reply"),
    (classify([KTO]), InvalidData, "called undesirable"),
    (
        classify([{"instruction": "x", "output": "c"}], labels=["a", "b"]),
        InvalidConfig,
        "label 'c' is not in labels",
    ),
    (
        classify([{"instruction": "x", "output": "a_b"}, {"instruction": "y", "output": "A b"}]),
        InvalidConfig,
        "labels 'A b' and 'a_b' read the same",
    ),
    (
        classify([{"instruction": c * 300, "output": c} for c in "ab"]),
        InvalidConfig,
        "no question of task 't' leaves room",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("what", "error", "says"), BAD_DATA)
def test_data_that_cannot_be_asked_is_named_before_a_model_is_loaded(
    world: World, tmp_path: Path, what: dict[str, Any], error: type[LoraloopError], says: str
) -> None:
    data = tmp_path / "rows.json"
    data.write_text(json.dumps(what["rows"]), encoding="utf-8")
    suite = load_suite(write_suite(tmp_path, data, tasks=[what["task"] | {"data": str(data)}]))
    with pytest.raises(error, match=says):
        Preparation(open_base(world.base), 0).prepare(suite)


@pytest.mark.parametrize(
    ("adapter", "error", "says"),
    [
        ("colours@9", NotFound, "colours has @1"),
        ("nobody", NotFound, "registered: colours"),
        ("./nowhere", NotFound, "neither a PEFT adapter nor a whole model"),
        ("Bad Name", NotFound, "not an adapter name"),
    ],
)
def test_who_cannot_be_found_is_named(
    world: World, tmp_path: Path, adapter: str, error: type[LoraloopError], says: str
) -> None:
    with pytest.raises(error, match=says):
        run(world, tmp_path, adapter=adapter)
    assert not (tmp_path / "out").exists()


def test_an_adapter_of_another_base_is_refused(world: World, tmp_path: Path) -> None:
    result = CliRunner().invoke(
        app,
        [
            "eval",
            "colours@1",
            "--suite",
            str(write_suite(tmp_path, world.data)),
            "--home",
            str(world.home),
        ],
    )  # on the embedded base
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert "base" in result.stderr


def test_an_adapter_of_another_template_is_refused(world: World, tmp_path: Path) -> None:
    other = shutil.copytree(world.base, tmp_path / "other")
    template = other / "chat_template.jinja"
    template.write_text(template.read_text() + "{# another #}")
    suite = write_suite(tmp_path, world.data)
    options = EvalOptions("colours@1", suite, base=str(other), home=world.home)
    with pytest.raises(AdapterRejected, match="trained with chat template"):
        evaluate(options, Console(file=io.StringIO()))
    options = EvalOptions(str(world.base), suite, base=str(other), home=world.home)
    with pytest.raises(InvalidConfig, match="another chat template"):
        evaluate(options, Console(file=io.StringIO()))


def test_the_base_cannot_be_compared_with_another(world: World, tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="name an adapter to compare"):
        run(world, tmp_path, adapter="base", against="colours@1")
