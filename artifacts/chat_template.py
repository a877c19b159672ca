"""A base's Jinja chat template: text, where replies lie in it, and what it would leave out.

Works on normalised messages (artifacts.chat_messages). Knows no tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from jinja2 import TemplateError

from artifacts.chat_messages import Message, check_text, strings_of
from artifacts.errors import InvalidChat

Spans = list[tuple[int, int]]  # [start, end) characters
ToolList = list[dict[str, Any]] | None
Variables = Mapping[str, Any]

GENERATION_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")
# Whatever a template's own expressions may raise on messages that it was not written for.
TEMPLATE_ERRORS = (
    TemplateError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)
MAX_REMEMBERED = 512
NO_VARIABLES: Variables = {}
# What a request says in fields of its own, or what belongs to the renderer.
RESERVED = {"messages", "conversations", "tools", "documents", "chat_template"}
RESERVED |= {"add_generation_prompt", "continue_final_message", "return_assistant_tokens_mask"}
RESERVED |= {"custom_tools", "builtin_tools"}  # Llama's other names for tools


@dataclass
class _Probe:
    """Stand-in messages of the same structure; each value is a word found nowhere else."""

    messages: list[Message] = field(default_factory=list)
    required: dict[str, tuple[int, str]] = field(default_factory=dict)  # word → message, what
    count: int = 0

    def word(self) -> str:
        self.count += 1
        return f"qzx{self.count}qzx"


class ChatTemplate:
    """Renders messages with the tokenizer's template, and refuses what the template would drop."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._eos = tokenizer.eos_token
        self._checked: dict[object, bool] = {}  # structure → tool arguments must be text

    def render(
        self,
        messages: Sequence[Message],
        tools: ToolList,
        variables: Variables = NO_VARIABLES,
        *,
        add_generation_prompt: bool,
    ) -> str:
        """The text of checked messages. Raises InvalidChat with the template's own complaint."""
        messages = self._with_arguments(messages, tools, variables)
        return self._render(messages, tools, add_generation_prompt, variables)[0]

    def render_with_spans(self, messages: Sequence[Message], tools: ToolList) -> tuple[str, Spans]:
        """The text without generation prompt, and each assistant reply in it, EOS included.

        Each span begins exactly where the prompt of its reply ends. Raises InvalidChat where the
        template renders a reply otherwise than after its generation prompt.
        """
        replies = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        if not replies:
            raise InvalidChat("there is no assistant message to learn from", param="messages")
        text_messages = self._with_arguments(messages, tools)
        text, spans = self._render(text_messages, tools, False)
        starts = [self._reply_start(text, text_messages[:i], tools) for i in replies]
        if not spans:
            return text, self._spans_to_eos(text, starts, messages, tools)
        if [start for start, _ in spans] != starts:
            raise InvalidChat(
                "the chat template's {% generation %} marks do not begin where its generation "
                "prompt ends; repair the template",
                param="messages",
            )
        return text, [(start, self._with_eos(text, end)) for start, end in spans]

    def check(
        self, messages: Sequence[Message], tools: ToolList, variables: Variables = NO_VARIABLES
    ) -> None:
        """Refuse what this template would leave out of the text unseen, and variables that it never
        reads. Raises InvalidChat."""
        if variables:
            self._check_variables(tools, variables)
        structure = _structure(messages, tools, variables)
        if structure in self._checked:
            return
        if len(self._checked) >= MAX_REMEMBERED:
            self._checked.clear()
        self._checked[structure] = self._probe_arguments(messages, tools, variables)

    @cached_property
    def shows_reasoning(self) -> bool:
        """Whether ``reasoning_content`` of a last message is in the text."""
        reasoning = {"role": "assistant", "content": "a", "reasoning_content": "qzx0qzx"}
        text, _ = self._render([{"role": "user", "content": "u"}, reasoning], None, False)
        return "qzx0qzx" in text

    # --- probing ---

    def _check_variables(self, tools: ToolList, variables: Variables) -> None:
        from transformers.utils.chat_template_utils import _get_template_variables

        reserved = RESERVED | set(self._tokenizer.special_tokens_map)
        known = _get_template_variables(self._template_text(tools)) - reserved
        for text in strings_of(variables):
            check_text(text, "chat_template_kwargs")
        for name in variables:
            place = f"chat_template_kwargs.{name}"
            if name in reserved:
                raise InvalidChat(f"{place} is not the request's to set; leave it out", param=place)
            if name not in known:
                what = f"it reads {', '.join(sorted(known))}" if known else "it reads none"
                raise InvalidChat(
                    f"{place}: the chat template of this base never reads it ({what})", param=place
                )

    def _probe_arguments(
        self, messages: Sequence[Message], tools: ToolList, variables: Variables
    ) -> bool:
        """Whether tool-call arguments must be JSON text; InvalidChat if anything is left out."""
        if any("reasoning_content" in message for message in messages):
            self._check_reasoning()
        if any("tool_calls" in message for message in messages):
            try:
                self._probe(messages, tools, variables, arguments_as_text=False)
            except InvalidChat:
                self._probe(messages, tools, variables, arguments_as_text=True)
                return True
        else:
            self._probe(messages, tools, variables, arguments_as_text=False)
        return False

    def _probe(
        self,
        messages: Sequence[Message],
        tools: ToolList,
        variables: Variables,
        *,
        arguments_as_text: bool,
    ) -> None:
        probe = _probe_for(messages)
        probe_tools = None
        if tools:
            word = probe.word()
            probe.required[word] = (-1, "tools")
            parameters = {"type": "object", "properties": {}}
            function = {"name": word, "description": word, "parameters": parameters}
            probe_tools = [{"type": "function", "function": function}]
        stand_ins = _arguments_as_text(probe.messages) if arguments_as_text else probe.messages
        text, _ = self._render(stand_ins, probe_tools, False, variables)
        for word, (index, what) in probe.required.items():
            if word not in text:
                raise _left_out(messages, index, what)

    def _check_reasoning(self) -> None:
        if not self.shows_reasoning:
            raise InvalidChat(
                "the chat template of this base leaves out reasoning_content; leave it out of "
                "the messages",
                param="messages",
            )

    # --- spans ---

    def _reply_start(self, text: str, before: Sequence[Message], tools: ToolList) -> int:
        prompt, _ = self._render(before, tools, True)
        if not text.startswith(prompt):
            raise InvalidChat(
                f"messages[{len(before)}]: the chat template renders this reply otherwise than "
                "after its prompt, so it cannot be learned as it will be generated; train on "
                "single-turn rows, or use a template that keeps earlier turns unchanged",
                param=f"messages[{len(before)}]",
            )
        return len(prompt)

    def _spans_to_eos(
        self, text: str, starts: list[int], messages: Sequence[Message], tools: ToolList
    ) -> Spans:
        """For templates without marks, DeepSeek-LLM's among them: each reply ends with its EOS."""
        if self._eos is None or not self._ends_replies(messages, tools):
            raise InvalidChat(
                f"the chat template does not end every reply with the tokenizer's EOS "
                f"{self._eos!r}, so an adapter would not learn to stop; set the tokenizer's "
                "eos_token to what ends a reply",
                param="messages",
            )
        return [(start, text.index(self._eos, start) + len(self._eos)) for start in starts]

    def _ends_replies(self, messages: Sequence[Message], tools: ToolList) -> bool:
        """Whether an EOS stands behind each reply and before what follows it."""
        probe = _probe_for([_with_content(message) for message in messages])
        as_text = self._needs_text_arguments(messages, tools)
        stand_ins = _arguments_as_text(probe.messages) if as_text else probe.messages
        text, _ = self._render(stand_ins, tools, False)
        ends = [-1] * len(messages)
        for word, (index, _) in probe.required.items():
            ends[index] = max(ends[index], text.find(word))
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            following = [end for end in ends[index + 1 :] if end > ends[index]]
            if self._eos not in text[ends[index] : min(following, default=len(text))]:
                return False
        return True

    def _with_eos(self, text: str, end: int) -> int:
        """Some templates close the mark just before the EOS, which must be learned all the same."""
        eos = self._eos
        if eos is None or text[:end].endswith(eos) or not text.startswith(eos, end):
            return end
        return end + len(eos)

    # --- rendering ---

    def _needs_text_arguments(
        self, messages: Sequence[Message], tools: ToolList, variables: Variables = NO_VARIABLES
    ) -> bool:
        return self._checked.get(_structure(messages, tools, variables), False)

    def _with_arguments(
        self, messages: Sequence[Message], tools: ToolList, variables: Variables = NO_VARIABLES
    ) -> list[Message]:
        if self._needs_text_arguments(messages, tools, variables):
            return _arguments_as_text(messages)
        return list(messages)

    def _render(
        self,
        messages: Sequence[Message],
        tools: ToolList,
        add_generation_prompt: bool,
        variables: Variables = NO_VARIABLES,
    ) -> tuple[str, Spans]:
        from transformers.utils.chat_template_utils import render_jinja_template

        template = self._template_text(tools)
        has_marks = GENERATION_MARK.search(template) is not None and not add_generation_prompt
        try:
            texts, spans = render_jinja_template(
                conversations=[list(messages)],
                tools=tools,
                chat_template=template,
                return_assistant_tokens_mask=has_marks,
                add_generation_prompt=add_generation_prompt,
                **variables,
                **self._tokenizer.special_tokens_map,
            )
        except TEMPLATE_ERRORS as error:
            raise InvalidChat(
                f"the chat template of this base refuses these messages: {error}", param="messages"
            ) from error
        return texts[0], [(start, end) for start, end in spans[0]] if has_marks else []

    def _template_text(self, tools: ToolList) -> str:
        if self._tokenizer.chat_template is None:
            raise InvalidChat(
                "this base has no chat template, so it cannot chat: use /v1/completions, or put "
                "a chat_template.jinja into its folder",
                param="messages",
            )
        try:
            return str(self._tokenizer.get_chat_template(tools=tools))
        except ValueError as error:  # several named templates, none of them the default
            raise InvalidChat(f"this base has no default chat template: {error}") from error


def _structure(messages: Sequence[Message], tools: ToolList, variables: Variables) -> object:
    """What decides whether a template shows everything: roles and filled fields, not the text."""
    fields = tuple(
        (
            message["role"],
            bool(message["content"].strip()),
            "name" in message,
            "reasoning_content" in message,
            len(message.get("tool_calls", ())),
        )
        for message in messages
    )
    said = hash(json.dumps(variables, sort_keys=True)) if variables else 0
    return fields, bool(tools), said


def _probe_for(messages: Sequence[Message]) -> _Probe:
    probe = _Probe()
    last_user = max((i for i, m in enumerate(messages) if m["role"] == "user"), default=-1)
    for index, message in enumerate(messages):
        stand_in = dict(message)
        for key, what in _required_fields(message, is_current=index > last_user):
            stand_in[key] = probe.word()
            probe.required[stand_in[key]] = (index, what)
        if "tool_calls" in message:
            stand_in["tool_calls"] = list(_probe_calls(probe, message, index))
        probe.messages.append(stand_in)
    return probe


def _with_content(message: Message) -> Message:
    """The message with something to look for, where it says nothing at all."""
    is_silent = not message["content"].strip() and "tool_calls" not in message
    return message | {"content": "x"} if is_silent else message


def _required_fields(message: Message, *, is_current: bool) -> Iterator[tuple[str, str]]:
    if message["content"].strip():
        yield "content", "the content"
    if "name" in message and message["role"] != "tool":  # a result's call says the name already
        yield "name", "the name"
    if "reasoning_content" in message and is_current:  # many drop that of earlier turns by design
        yield "reasoning_content", "reasoning_content"


def _probe_calls(probe: _Probe, message: Message, index: int) -> Iterator[dict[str, Any]]:
    for call in message["tool_calls"]:
        name, value = probe.word(), probe.word()
        probe.required |= {name: (index, "tool_calls"), value: (index, "tool_calls")}
        yield {**call, "function": {"name": name, "arguments": {"value": value}}}


def _arguments_as_text(messages: Sequence[Message]) -> list[Message]:
    """The same messages with tool-call arguments as JSON text, which some templates concatenate."""
    result = []
    for message in messages:
        changed = dict(message)
        if "tool_calls" in message:
            changed["tool_calls"] = [
                {**call, "function": {**call["function"], "arguments": _json(call)}}
                for call in message["tool_calls"]
            ]
        result.append(changed)
    return result


def _json(call: dict[str, Any]) -> str:
    return json.dumps(call["function"]["arguments"], ensure_ascii=False)


def _left_out(messages: Sequence[Message], index: int, what: str) -> InvalidChat:
    if index < 0:
        return InvalidChat(
            "the chat template of this base does not show tools to the model; leave tools out",
            param="tools",
        )
    role = messages[index]["role"]
    return InvalidChat(
        f"messages[{index}]: the chat template of this base leaves out {what} of role {role!r}; "
        "say it in a user message instead",
        param=f"messages[{index}]",
    )
