"""One parse point: what a configuration may say, and how its mistakes are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.config import TrainingConfig, load_config
from training.errors import InvalidConfig
from training.keys.data import DataSource

EXAMPLE = Path(__file__).parents[2] / "training" / "configs" / "lora.yaml"


def load(folder: Path, text: str, *overrides: str) -> TrainingConfig:
    path = folder / "c.yaml"
    path.write_text(text, encoding="utf-8")
    return load_config(path, list(overrides))


def test_overrides_win_and_are_typed_like_yaml(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        "name: a\ndata: x.json\nlearning_rate: 1e-3",
        "rank=8",
        "target_modules=[q_proj, v_proj]",
        "resume=true",
        "early_stopping_patience=null",
    )
    assert (config.rank, config.target_modules, config.resume) == (8, ("q_proj", "v_proj"), True)
    assert (config.learning_rate, config.early_stopping_patience) == (0.001, None)
    assert (config.data, config.scaled_alpha) == ((DataSource(path="x.json"),), 16.0)


def test_the_example_states_the_defaults(tmp_path: Path) -> None:
    example = load_config(EXAMPLE, [])
    assert example == TrainingConfig(name="demo", data=(DataSource(path="train.json"),))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lerning_rate: 1", "unknown configuration key 'lerning_rate'; did you mean 'learning_r"),
        ("zzz: 1", "known keys: "),
        ("rank: 1\nrank: 2", "'rank' appears twice (line 4)"),
        ("rank: many", "rank='many'"),
        ("rank: 0", "rank=0"),
        ("split: [0.5, 0.1, 0.1]", "adds up to 0.7"),
        ("split: [0.9, 0.1, 0.0]", "needs a train and a test part"),
        ("target_modules: []", "target_modules is empty"),
        ("epochs: .nan", "epochs=nan"),
        ("a: [", "not valid YAML"),
    ],
)
def test_a_mistake_names_key_value_and_remedy(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        load(tmp_path, f"name: a\ndata: x.json\n{text}")
    assert message in str(caught.value)


def test_missing_keys_bad_names_and_stray_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="data is missing"):
        load(tmp_path, "name: a")
    with pytest.raises(InvalidConfig, match=r"name='A B'.*a-z0-9"):
        load(tmp_path, "name: A B\ndata: x")
    with pytest.raises(InvalidConfig, match="key=value"):
        load(tmp_path, "name: a\ndata: x", "rank")
    with pytest.raises(InvalidConfig, match="No such file"):
        load_config(tmp_path / "absent.yaml", [])
