"""Command-line options that every scenario understands, beside Locust's own."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from locust import events
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment

PROMPTS = (
    "Where is my order 20481?",
    "我的订单 20481 到哪里了？",
    "How can I return a jacket that does not fit?",
    "衣服尺码不合适，怎么退货？",
    "Can I get an invoice for last week's purchase?",
    "上周买的东西可以开发票吗？",
    "Do you have this lamp in green?",
    "优惠券为什么用不了？",
)

# is_secret alone would still send the value to the page, as the field's default
SECRET: dict[str, Any] = {"is_secret": True, "include_in_web_ui": False}


@events.init_command_line_parser.add_listener
def add_options(parser: LocustArgumentParser) -> None:
    """Register ours; Locust shows them in --help and, the non-secret ones, in the web UI."""
    parser.add_argument("--model", default="", help="model id; default: the first of /v1/models")
    parser.add_argument("--models", default="", help="mixed: model ids, comma-separated")
    parser.add_argument("--swap", default="", help="hotswap: two versions of one adapter, a@1,a@2")
    parser.add_argument("--swap-every", type=float, default=2.0, help="hotswap: seconds per swap")
    parser.add_argument("--prompts", default="", help="file with one prompt per line")
    parser.add_argument("--max-tokens", type=int, default=64, help="tokens per answer at most")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--ignore-eos", action="store_true", help="answers of exactly --max-tokens")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds between two requests")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds without a byte")
    parser.add_argument("--api-key", default="", env_var="OPENAI_API_KEY", **SECRET)
    parser.add_argument("--admin-key", default="", env_var="ADMIN_KEY", **SECRET)
    parser.add_argument(
        "--max-errors", type=int, default=0, help="more failed requests: exit code 1"
    )
    parser.add_argument("--max-ttft-p90-ms", type=float, default=0.0, help="above: exit code 1")
    parser.add_argument("--max-itl-p90-ms", type=float, default=0.0, help="above: exit code 1")
    parser.add_argument("--summary", default="", help="write the run's figures to this JSON file")


def options_of(environment: Environment) -> Namespace:
    """The parsed command line; Locust's own command always sets it."""
    options: Namespace | None = environment.parsed_options
    assert options is not None
    return options


def prompts(options: Namespace) -> list[str]:
    """The prompts of the run."""
    if not options.prompts:
        return list(PROMPTS)
    lines = Path(options.prompts).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.strip()]


def bearer(key: str) -> dict[str, str]:
    """The header for a key; none without one."""
    return {"Authorization": f"Bearer {key}"} if key else {}
