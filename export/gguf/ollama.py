"""An Ollama Modelfile: its Go template is read off what the chat template renders, then checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from artifacts.base import Base

Message = dict[str, str]

# By a template that does not want such messages, and by texts that are not where they should be.
_RAISED = (TemplateError, ValueError, TypeError, LookupError, AttributeError)

_LEFT_OUT = """\
# TEMPLATE is left out: what the chat template of this model does is more than roles with a text
# before and after each message. Programs that read the template in the GGUF file (llama.cpp's
# server does) need none; for Ollama write one by hand.
"""


@dataclass(frozen=True, slots=True)
class Turns:
    """A conversation as text: what stands around each role's messages."""

    bos: str
    no_system: str  # where no system message is first: a default one, or nothing
    around: dict[str, tuple[str, str]]  # role → before, after
    reply: str  # what asks for the next answer

    def render(self, messages: Sequence[Message]) -> str:
        """As `go_template` does, for conversations that end with a user's message."""
        has_system = any(message["role"] == "system" for message in messages)
        parts = [self.bos, "" if has_system else self.no_system]
        for message in messages:
            before, after = self.around[message["role"]]
            parts += [before, message["content"], after]
        return "".join([*parts, self.reply])

    @property
    def go_template(self) -> str:
        (system, system_end), (user, user_end), (reply, reply_end) = (
            self.around[role] for role in ("system", "user", "assistant")
        )
        start = f"{{{{ if not .System }}}}{self.no_system}{{{{ end }}}}" if self.no_system else ""
        return (
            f"{start}{{{{ range $i, $_ := .Messages }}}}"
            "{{ $last := eq (len (slice $.Messages $i)) 1 }}"
            f'{{{{ if eq .Role "system" }}}}{system}{{{{ .Content }}}}{system_end}'
            f'{{{{ else if eq .Role "user" }}}}{user}{{{{ .Content }}}}{user_end}'
            f'{{{{ else if eq .Role "assistant" }}}}{reply}{{{{ .Content }}}}'
            f"{{{{ if not $last }}}}{reply_end}{{{{ end }}}}{{{{ end }}}}"
            f'{{{{ if and $last (ne .Role "assistant") }}}}{self.reply}{{{{ end }}}}{{{{ end }}}}'
        )


def modelfile(base: Base, adapter_id: str) -> str:
    turns = read_turns(base.tokenizer)
    lines = [f"# {adapter_id}, merged. Run: ollama create NAME -f Modelfile", "FROM ./model.gguf"]
    if turns is None:
        lines.append(_LEFT_OUT.rstrip())
    else:
        bos = "" if _adds_bos(base.tokenizer) else turns.bos
        lines.append(f'TEMPLATE """{bos}{turns.go_template}"""')
    stops = [base.tokenizer.convert_ids_to_tokens(i) for i in sorted(base.eos_token_ids)]
    lines += [f'PARAMETER stop "{stop}"' for stop in stops if '"' not in stop]
    lines += [
        "# The adapter beside its base instead: write the base once, for all of its adapters, with",
        "#   python -m export.gguf base.gguf --model BASE",
        "# and replace the line FROM above by these two.",
        "# FROM ./base.gguf",
        "# ADAPTER ./adapter.gguf",
    ]
    return "\n".join(lines) + "\n"


def read_turns(tokenizer: Any) -> Turns | None:
    """None where a conversation is more than texts around its messages."""
    try:
        turns = _read_turns(tokenizer)
        return turns if turns is not None and _is_right(turns, tokenizer) else None
    except _RAISED:
        return None


def _read_turns(tokenizer: Any) -> Turns | None:
    """From four renderings; `_is_right` finds where they did not say all."""
    user, system, reply, more = _MARKS
    first = {"role": "user", "content": user}
    asked = _render(tokenizer, [first])
    told = _render(tokenizer, [first], is_asked=False)
    answered = _render(tokenizer, [first, {"role": "assistant", "content": reply}], is_asked=False)
    both = _render(tokenizer, [{"role": "system", "content": system}, first], is_asked=False)
    twice = _render(
        tokenizer,
        [first, {"role": "assistant", "content": reply}, {"role": "user", "content": more}],
        is_asked=False,
    )
    start, user_end = told.split(user)
    reply_before = answered.split(user)[1].split(reply)[0].removeprefix(user_end)
    reply_end = answered.split(reply)[1]
    between = twice.split(reply)[1].split(more)[0]
    if not asked.startswith(told) or not between.startswith(reply_end):
        return None
    user_before = between.removeprefix(reply_end)
    bos = tokenizer.bos_token or ""
    bos = bos if bos and start.startswith(bos) else ""
    head, rest = both.split(system)
    system_end = rest.split(user)[0].removesuffix(user_before)
    around = {
        "system": (head.removeprefix(bos), system_end),
        "user": (user_before, user_end),
        "assistant": (reply_before, reply_end),
    }
    no_system = start.removeprefix(bos).removesuffix(user_before)
    return Turns(bos, no_system, around, asked.removeprefix(told))


_MARKS = ("Uqx1", "Sqx2", "Aqx3", "Uqx4")


def _is_right(turns: Turns, tokenizer: Any) -> bool:
    texts = [text for around in turns.around.values() for text in around]
    texts += [turns.bos, turns.no_system, turns.reply]
    if any("{{" in text or '"""' in text for text in texts):
        return False
    roles = (
        ("user",),
        ("system", "user"),
        ("user", "assistant", "user"),
        ("system", "user", "assistant", "user", "assistant", "user"),
    )
    for each in roles:
        messages = [{"role": role, "content": f"text {i}"} for i, role in enumerate(each)]
        if turns.render(messages) != _render(tokenizer, messages):
            return False
    return True


def _render(tokenizer: Any, messages: Sequence[Message], is_asked: bool = True) -> str:
    text: str = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=is_asked
    )
    return text


def _adds_bos(tokenizer: Any) -> bool:
    return bool(tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id)
