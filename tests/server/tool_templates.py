"""Chat templates that write calls in each form, and tokenizers and renderers for them."""

from __future__ import annotations

from typing import Any

from artifacts.base import EMBEDDED_BASE, open_tokenizer
from artifacts.chat import ChatRenderer

START = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
END = "<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
SHOWN = "{% for t in tools or [] %}<|system|>{{ t | tojson }}<|end|>{% endfor %}"
EACH = "{% for c in m.tool_calls or [] %}"

# As Qwen2.5 does it: line breaks around the JSON, one between calls.
HERMES = (
    SHOWN + START + EACH + '{{ "\n<tool_call>\n" }}{"name": "{{ c.function.name }}", "arguments": '
    '{{ c.function.arguments | tojson }}}{{ "\n</tool_call>" }}{% endfor %}' + END
)
# As DeepSeek-R1 and V3 do it: arguments as text in a block of Markdown.
DEEPSEEK = (
    SHOWN + START + "{% if m.tool_calls %}<｜tool▁calls▁begin｜>{% endif %}" + EACH + "{{ '\n' if "
    "not loop.first else '' }}<｜tool▁call▁begin｜>function<｜tool▁sep｜>{{ c.function.name }}"
    "{{ '\n```json\n' + c.function.arguments + '\n```' }}<｜tool▁call▁end｜>{% endfor %}"
    "{% if m.tool_calls %}<｜tool▁calls▁end｜>{% endif %}" + END
)
# As DeepSeek-V3.1 does it.
DEEPSEEK31 = (
    SHOWN
    + START
    + "{% if m.tool_calls %}<｜tool▁calls▁begin｜>{% endif %}"
    + EACH
    + "<｜tool▁call▁begin｜>{{ c.function.name }}<｜tool▁sep｜>{{ c.function.arguments | tojson }}"
    "<｜tool▁call▁end｜>{% endfor %}{% if m.tool_calls %}<｜tool▁calls▁end｜>{% endif %}" + END
)
# As Llama 3.1 does it: one call, and nothing but it.
LLAMA = (
    SHOWN + START + "{% if m.tool_calls and m.tool_calls | length > 1 %}"
    "{{ raise_exception('one call at once') }}{% endif %}" + EACH + '{"name": "{{ c.function.name '
    '}}", "parameters": {{ c.function.arguments | tojson }}}{% endfor %}' + END
)
# As Qwen3-Coder does it, which is not known here.
UNKNOWN = (
    SHOWN + START + EACH + "<tool_call><function={{ c.function.name }}>{{ c.function.arguments | "
    "tojson }}</function></tool_call>{% endfor %}" + END
)
FORMS = {"hermes": HERMES, "deepseek": DEEPSEEK, "deepseek31": DEEPSEEK31, "llama": LLAMA}

# As Qwen3 does it: thoughts unless they are switched off, those of earlier turns left out.
QWEN3 = (
    START[:-15] + "{% if m.reasoning_content and loop.last %}<think>\n{{ m.reasoning_content }}"
    "\n</think>\n\n{% endif %}{{ m.content }}" + END[:-11] + "{% if enable_thinking is defined and"
    " not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
# As the R1 distills do it: the prompt begins the thoughts.
R1 = START + END.replace("<|assistant|>", "<|assistant|><think>\n{# </think> #}")


def tokenizer_with(template: str, *tokens: str) -> Any:
    """The embedded base's, under another template; ``tokens`` become special ones."""
    tokenizer = open_tokenizer(EMBEDDED_BASE)
    tokenizer.chat_template = template
    if tokens:
        tokenizer.add_special_tokens({"extra_special_tokens": list(tokens)})
    return tokenizer


def renderer_with(template: str) -> ChatRenderer:
    return ChatRenderer(tokenizer_with(template))
