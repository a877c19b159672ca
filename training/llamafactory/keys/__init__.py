"""Every documented key of LLaMA-Factory and what becomes of it, by the file they document it in.

After src/llamafactory/hparams of https://github.com/hiyouga/LLaMA-Factory (0.9.4) and the fields of
transformers' TrainingArguments that its examples use.
"""

from __future__ import annotations

from training.llamafactory.entries import Entry
from training.llamafactory.keys.data import DATA
from training.llamafactory.keys.export import EXPORT
from training.llamafactory.keys.generation import GENERATION
from training.llamafactory.keys.method import METHOD
from training.llamafactory.keys.model import MODEL
from training.llamafactory.keys.trainer import TRAINER

GROUPS: dict[str, dict[str, Entry]] = {
    "model": MODEL,
    "method": METHOD,
    "data": DATA,
    "training": TRAINER,
    "generation and serving": GENERATION,
    "export": EXPORT,
}
KEYS: dict[str, Entry] = {key: entry for group in GROUPS.values() for key, entry in group.items()}
