r"""Which of llama.cpp's splitting rules a tokenizer follows. llama.cpp knows them by name alone.

Some rules say the same in other words there (``(?i:'s)`` is ``'[sS]``); these are tokenizer.json's.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tokenizers import Regex, Tokenizer, pre_tokenizers

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_END = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LETTERS = (
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ"
    "-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ"
    "-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
)
_CJK = "[一-龥ࠀ-一가-퟿]+"


@dataclass(frozen=True, slots=True)
class _Rule:
    """Splits one after the other; ``ignores_merges``: a word that is a token is taken whole.

    ``but``: where llama.cpp, which has no classes for case, takes the same rule otherwise.
    """

    name: str
    splits: tuple[str, ...]
    ignores_merges: bool = False
    but: str = ""


_RULES = (
    _Rule("gpt-2", (_GPT2,)),
    _Rule("smollm", (r"\p{N}", _GPT2)),
    _Rule("qwen2", (rf"{_WORD}|\p{{N}}{_END}",)),
    _Rule("llama-bpe", (rf"{_WORD}|\p{{N}}{{1,3}}{_END}",), ignores_merges=True),
    _Rule("smaug-bpe", (rf"{_WORD}|\p{{N}}{{1,3}}{_END}",)),
    _Rule(
        "tekken",
        (_CASED,),
        ignores_merges=True,
        but=" but for combining marks and for capitals inside of words beyond ASCII",
    ),
    _Rule(
        "deepseek-llm",
        (
            "[\r\n]",
            rf"\s?[{_LETTERS}]+",
            r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
            r"\s+$",
            _CJK,
            r"\p{N}+",
        ),
    ),
    _Rule("deepseek-coder", ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, r"\p{N}")),
)

# Where rules differ: case, digits, spaces, line ends, marks, scripts.
_PROBES = (
    "The quick brown fox jumps over the lazy dog.",
    "I'm sure they'LL say it's 3 o'clock; we've 12,345.67 reasons (and 2024-01-31).",
    "def camelCase(XMLHttpRequest, snake_case_name):\n    return f'{x!r}' if A else B\n\n\n",
    "  leading, trailing  and   inner spaces \t tabs\t\t ",
    "A B C. U.S.A. iPhone eBay McDonald's HTML5 x86_64 IPv6",
    "中文和English混排，2024年1月31日，价格￥1,234.50元。",
    "今天天气很好！我们去公园吧？“好的”，他说。",
    "Größe, naïve, façade, Œuvre; Привет, мир! Γειά σου Κόσμε",
    "日本語のテスト、ひらがなとカタカナ。 한국어 시험입니다.",
    'https://example.org/a/b?c=d&e=f#g <tag attr="v">text</tag> a@b.co $9.99 50%',
    "one\r\ntwo\r\n\r\nthree\n four\n\n  five",
    "1 12 123 1234 12345 0x1F 3.14e-10 ½ ² Ⅷ ١٢٣",
    "👍🏽 emoji 😀😀 and — dashes – … ellipsis",
    "DON'T SHOUT. e\u0301 combining n\u0303",
)


def find_rule(spec: dict[str, Any]) -> tuple[str, str]:
    """llama.cpp's name for how tokenizer.json splits text, and how sure that is.

    Where no rule is the same the nearest is named: every text still becomes tokens of the
    vocabulary and back, but now and then other ones than the model was trained on.
    """
    splits = _splits(spec["pre_tokenizer"])
    ignores_merges = bool(spec["model"].get("ignore_merges"))
    for rule in _RULES:
        if rule.splits == splits and rule.ignores_merges == ignores_merges:
            return rule.name, f"the same rule{rule.but}"
    shared = {rule.name: _num_shared(spec, rule) for rule in _RULES}
    name = max(shared, key=lambda each: shared[each])
    return name, (
        f"the nearest: the same tokens for {shared[name]} of {len(_PROBES)} texts, others than the "
        "model was trained on for the rest"
    )


def _splits(pre: dict[str, Any] | None) -> tuple[str, ...] | None:
    """The regular expressions that a pre-tokenizer applies; None for what is none of that."""
    if pre is None:
        return None
    kind = pre["type"]
    if kind == "Sequence":
        parts = [_splits(part) for part in pre["pretokenizers"]]
        if any(part is None for part in parts):
            return None
        return tuple(split for part in parts if part is not None for split in part)
    if kind == "Split" and pre["behavior"] == "Isolated" and not pre["invert"]:
        regex = pre["pattern"].get("Regex")
        return None if regex is None else (regex,)
    if kind == "Digits":
        return (r"\p{N}" if pre["individual_digits"] else r"\p{N}+",)
    if kind == "ByteLevel" and not pre["add_prefix_space"]:
        return (_GPT2,) if pre["use_regex"] else ()
    return None


def _num_shared(spec: dict[str, Any], rule: _Rule) -> int:
    original = Tokenizer.from_str(json.dumps(spec))
    model = spec["model"] | {"ignore_merges": rule.ignores_merges}
    other = Tokenizer.from_str(json.dumps(spec | {"model": model}))
    steps = [pre_tokenizers.Split(Regex(split), "isolated") for split in rule.splits]
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    other.pre_tokenizer = pre_tokenizers.Sequence([*steps, plain])
    pairs = zip(original.encode_batch(_PROBES), other.encode_batch(_PROBES), strict=True)
    return sum(mine.ids == theirs.ids for mine, theirs in pairs)
