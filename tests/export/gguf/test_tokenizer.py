"""Tokenizers in GGUF: the same ids where llama.cpp knows the splits, else the nearest rule."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from artifacts.base import EMBEDDED_BASE
from export.cli import export_and_tell
from export.gguf import pretokenizer
from export.gguf.pretokenizer import find_rule
from export.gguf.tokenizer import vocabulary
from export.run import Asked
from tests.export.families import random_adapter
from tests.export.gguf.conftest import FAMILIES, make_source, write

RULES = {rule.name: rule for rule in pretokenizer._RULES}


def trained(name: str, folder: Path) -> Any:
    """A byte-level BPE of one of llama.cpp's rules, on the probes; specials inside and behind."""
    rule = RULES[name]
    tokenizer = Tokenizer(models.BPE(ignore_merges=rule.ignores_merges))
    splits = [pre_tokenizers.Split(Regex(split), "isolated") for split in rule.splits]
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, plain])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|bos|>", "<|end|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator([*pretokenizer._PROBES] * 3, trainer)
    tokenizer.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|bos|>", eos_token="<|end|>"
    )
    fast.save_pretrained(folder)
    return fast


@pytest.mark.parametrize("name", ["llama-bpe", "qwen2", "tekken"])
def test_transformers_reads_the_same_tokenizer_from_the_file(name: str, tmp_path: Path) -> None:
    wanted = trained(name, tmp_path)
    writer = gguf.GGUFWriter(tmp_path / "alone" / "model.gguf", "llama")
    (tmp_path / "alone").mkdir()
    found = vocabulary(json.loads(wanted.backend_tokenizer.to_str()), len(wanted))
    writer.add_tokenizer_model("gpt2")
    rule, certainty = find_rule(json.loads(wanted.backend_tokenizer.to_str()))
    assert (rule, certainty) == (name, f"the same rule{RULES[name].but}")
    writer.add_tokenizer_pre(rule)
    writer.add_token_list(found.tokens)
    writer.add_token_types(found.kinds)
    writer.add_token_merges(found.merges)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    again = AutoTokenizer.from_pretrained(tmp_path / "alone", gguf_file="model.gguf")
    for text in (*pretokenizer._PROBES, "<|bos|>Hi<|end|> <think>so", "x<|end|>y"):
        ids = wanted(text, add_special_tokens=False)["input_ids"]
        assert again(text, add_special_tokens=False)["input_ids"] == ids, text


@pytest.mark.parametrize("name", RULES)
def test_every_rule_is_known_again(name: str, tmp_path: Path) -> None:
    spec = json.loads(trained(name, tmp_path).backend_tokenizer.to_str())
    assert find_rule(spec) == (name, f"the same rule{RULES[name].but}")


def test_gpt2s_rule_inside_of_byte_level_is_known() -> None:
    spec = {
        "model": {"ignore_merges": False},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Digits", "individual_digits": True},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
            ],
        },
    }
    assert find_rule(spec) == ("smollm", "the same rule")


def test_an_unknown_rule_is_named_with_how_near_it_is() -> None:
    spec = json.loads((EMBEDDED_BASE / "tokenizer.json").read_text(encoding="utf-8"))
    name, certainty = find_rule(spec)
    assert name == "gpt-2"
    assert certainty.startswith("the nearest: the same tokens for 1")


def test_ids_without_a_token_are_unused_and_added_ones_keep_their_kind(tmp_path: Path) -> None:
    spec = json.loads(trained("gpt-2", tmp_path).backend_tokenizer.to_str())
    found = vocabulary(spec, 503)
    kinds = dict(zip(found.tokens, found.kinds, strict=True))
    assert kinds["<|bos|>"] == gguf.TokenType.CONTROL
    assert kinds["<think>"] == gguf.TokenType.USER_DEFINED
    assert found.tokens[501:] == ["[PAD501]", "[PAD502]"]
    assert kinds["[PAD502]"] == gguf.TokenType.UNUSED
    assert kinds["Ġthe"] == gguf.TokenType.NORMAL


def test_special_ids_template_and_bos_are_in_the_file(tmp_path: Path) -> None:
    from export.forms.gguf import F16

    source = make_source(FAMILIES["mistral"], tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    folder, settings = write(F16, source, out)
    fields = gguf.GGUFReader(folder / "model.gguf").fields
    said = {key.removeprefix("tokenizer."): f.contents() for key, f in fields.items()}
    assert said["chat_template"] == source.base.tokenizer.chat_template
    assert said["ggml.bos_token_id"] == 256
    assert said["ggml.eos_token_id"] == 257
    assert said["ggml.padding_token_id"] == 257
    assert said["ggml.add_bos_token"] is False  # the template says it; plain text gets none
    assert len(said["ggml.tokens"]) == 267
    assert settings == {"pre_tokenizer": "gpt-2", "pre_tokenizer_is": "the same rule"}


def test_the_command_warns_of_what_llama_cpp_splits_otherwise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = random_adapter(EMBEDDED_BASE, tmp_path / "adapter")
    export_and_tell(Asked(str(adapter), tmp_path / "out", ("gguf",), is_verified=False))
    said = capsys.readouterr()
    assert "gguf: written, not verified" in said.out
    assert "warning: gguf: llama.cpp knows no rule" in said.err
    assert "gpt-2 is the nearest: the same tokens for 1" in said.err
