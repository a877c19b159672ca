"""The clients: chats of every kind, some that leave, some that read slowly, some that ask wrongly.

Each function is one client that goes on until the soak is over; what it does is drawn from the
world's seeded random source.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any

from loadtests.soak.asks import CHAT, COMPLETION, NOT_NOW, Ask, Call
from loadtests.soak.client import Client
from loadtests.soak.world import TRIAL, World

JSON = dict[str, Any]
PAUSE_S = (0.0, 0.4)  # between two requests of one client
BURST_SIZE = 100  # more than run and wait together, see `loadtests.soak.server`
STALL_S = 4.0  # after which the server drops a client that does not read
NUM_USERS = 200  # of the experiment
QUESTIONS = (
    "Where is my order 1001?",
    "我想退货",
    "Do you have jasmine tea?",
    "发票怎么开?",
    "Hello, who are you?",
    "How long do refunds take?",
    "你好",
    "Tell me about your opening hours, please.",
)
# Two that share most of a long beginning, and one that shares nothing.
_STORY = "The parcel left the shop on Monday and came to the depot on Tuesday. " * 30
LONG = (
    _STORY + "Where is it now?",
    _STORY + "Who has it now?",
    "请记住：茶叶要放在干燥的地方。" * 40 + "为什么？",
)
GREEDY = {"temperature": 0}
# Many are greedy or seeded: the same question must then get the same answer at any time.
SETTINGS: tuple[JSON, ...] = (
    {**GREEDY, "max_tokens": 24, "ignore_eos": True},
    {**GREEDY, "max_tokens": 48},
    {**GREEDY, "max_tokens": 16, "n": 2},
    {**GREEDY, "max_tokens": 120, "ignore_eos": True},
    {"temperature": 0.8, "seed": 7, "max_tokens": 32},
    {"temperature": 0.9, "top_p": 0.8, "seed": 11, "max_tokens": 20, "n": 3},
    {"temperature": 1.0, "max_tokens": 40},
    {"temperature": 0.7, "presence_penalty": 0.5, "max_tokens": 24, "seed": 3},
    {**GREEDY, "max_tokens": 40, "stop": ["。", "?"]},
)


def draw_body(world: World, model: str) -> JSON:
    """A chat request; early questions and settings are drawn more often, so that many repeat."""
    source = world.random
    question = source.choice(LONG) if source.random() < 0.08 else _early(source, QUESTIONS)
    body: JSON = {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        **_early(source, SETTINGS),
    }
    return body | _delivery(source)


def draw_model(world: World) -> str:
    """A version, an id that moves, or the base."""
    source, place = world.random, world.random.random()
    if place < 0.15:
        return world.base_id
    if place < 0.35:
        return source.choice(world.moving())
    return str(_early(source, [version.id for version in world.standing()]))


async def chat(client: Client) -> None:
    """Asks, waits for the answer, asks again."""
    world = client.world
    while await world.may_go_on():
        if world.random.random() < 0.1:
            await client.ask(_plain(world))
        else:
            await client.ask(Ask("chat", draw_body(world, draw_model(world))))
        await asyncio.sleep(world.random.uniform(*PAUSE_S))


async def take_part(client: Client) -> None:
    """A user of the experiment, who sometimes scores the answer."""
    world = client.world
    while await world.may_go_on():
        user = f"user-{world.random.randrange(NUM_USERS)}"
        body = draw_body(world, TRIAL) | {"user": user}
        answer = await client.ask(Ask("experiment", body))
        if answer is not None and world.random.random() < 0.3:
            score = {"id": answer.head["id"], "score": round(world.random.random(), 2)}
            found = await client.call(Call("feedback", "POST", "/v1/feedback", score))
            assert found is None or found["model"] == answer.head["model"], found
        await asyncio.sleep(world.random.uniform(*PAUSE_S))


async def leave(client: Client) -> None:
    """Goes away: before the first byte, in the middle of a stream, during a whole answer."""
    world = client.world
    while await world.may_go_on():
        source = world.random
        body = draw_body(world, draw_model(world)) | {"max_tokens": 200, "ignore_eos": True}
        manner: JSON = {"is_abrupt": source.random() < 0.3}
        if source.random() < 0.5:
            manner["leave_after_s"] = source.choice((0.002, 0.02, 0.2, 0.5))
        else:
            body["stream"] = True
            manner["leave_after_events"] = source.choice((1, 2, 5, 20))
        await client.ask(Ask("leave", body, **manner))
        await asyncio.sleep(source.uniform(*PAUSE_S))


async def read_slowly(client: Client) -> None:
    """Reads a long stream more slowly than it comes, over a small buffer, and must get it all."""
    world = client.world
    while await world.may_go_on():
        body = draw_body(world, draw_model(world)) | {"stream": True, "max_tokens": 250}
        bytes_per_s = world.random.choice((40_000, 100_000))
        await client.ask(Ask("slow", body, bytes_per_s=bytes_per_s))


async def stall(client: Client) -> None:
    """Reads the beginning of a long stream and then nothing: the server may drop it."""
    world = client.world
    while await world.may_go_on():
        body = draw_body(world, world.base_id) | {"stream": True, "n": 3, "max_tokens": 400}
        await client.ask(Ask("stall", body | {"ignore_eos": True}, stall_s=2 * STALL_S))
        await world.is_over_within(STALL_S)


async def hurry(client: Client) -> None:
    """Allows the server a fraction of a second: an answer in time, or 408."""
    world = client.world
    while await world.may_go_on():
        body = draw_body(world, draw_model(world)) | {"max_tokens": 200, "ignore_eos": True}
        deadline_s = world.random.choice((0.01, 0.1, 0.5, 5.0))
        await client.ask(Ask("hurry", body, deadline_s=deadline_s))
        await asyncio.sleep(world.random.uniform(*PAUSE_S))


async def burst(client: Client, every_s: float) -> None:
    """More requests at once than run and wait: some are answered, the rest get a 429."""
    world = client.world
    while await world.may_go_on():
        asks = [Ask("burst", _short(world)) for _ in range(BURST_SIZE)]
        await asyncio.gather(*(client.ask(ask) for ask in asks))
        await world.is_over_within(every_s)


async def ask_wrongly(client: Client) -> None:
    """Requests that must be refused, each with its own status."""
    world = client.world
    while await world.may_go_on():
        await client.call(world.random.choice(wrong_calls(world.base_id)))
        await asyncio.sleep(world.random.uniform(0.1, 0.5))


async def look_around(client: Client) -> None:
    """An operator's dashboard: lists, statistics, metrics, readiness. Always answered."""
    paths = ("/v1/models", "/admin/stats", "/metrics", "/admin/adapters", "/health/ready")
    while await client.world.may_go_on():
        path = client.world.random.choice((*paths, "/admin/audit?limit=5", "/admin/experiments"))
        await client.call(Call("look", "GET", path))
        await asyncio.sleep(client.world.random.uniform(0.2, 1.0))


def wrong_calls(base_id: str) -> list[Call]:
    """What must be refused, and how."""
    hello = {"model": base_id, "messages": [{"role": "user", "content": "Hello"}]}
    plain = {"model": base_id, "prompt": "Hello"}
    bodies: tuple[tuple[str, JSON | bytes, int], ...] = (
        (CHAT, hello | {"model": "nobody@1"}, 404),
        (CHAT, hello | {"n": 10_000}, 400),
        (CHAT, hello | {"n": 0}, 400),
        (CHAT, hello | {"max_tokens": 10**6}, 400),
        (CHAT, hello | {"temperature": 9}, 400),
        (CHAT, hello | {"messages": []}, 400),
        (CHAT, hello | {"colour": "blue"}, 400),
        (CHAT, hello | {"tools": [{"type": "function"}]}, 400),
        (CHAT, hello | {"messages": [{"role": "user", "content": "long " * 20_000}]}, 400),
        (CHAT, b'{"model": ', 400),
        (CHAT, b"\xff\xfe", 400),
        (CHAT, b'{"messages": "' + b"x" * (5 << 20) + b'"}', 413),
        (COMPLETION, plain | {"prompt": []}, 400),
        (COMPLETION, plain | {"prompt": [[10**9]]}, 400),
        (COMPLETION, plain | {"logprobs": 1000}, 400),
        ("/v1/feedback", {"id": "chatcmpl-nothing", "score": 1}, 404),
        ("/v1/feedback", {"id": "chatcmpl-nothing", "score": 7}, 400),
        ("/admin/adapters/load", {"id": "nobody@7"}, 404),
        ("/admin/adapters/load", {"name": "bad", "path": "/etc"}, 400),
        ("/admin/adapters/load", {"name": "Bad Name", "path": "x"}, 400),
        ("/admin/adapters/unload", {"id": "nobody@7"}, 404),
        ("/admin/adapters/unload", {"id": base_id}, 400),
        ("/v1/fine_tuning/jobs", {"model": base_id, "training_file": "file-nothing"}, 400),
    )
    # A server that is full says so before it looks closely.
    full = {CHAT: NOT_NOW, COMPLETION: NOT_NOW}
    return [
        Call("wrong", "POST", path, body, full.get(path, frozenset()) | {status}, is_wrong=True)
        for path, body, status in bodies
    ]


def _plain(world: World) -> Ask:
    """A plain completion of one prompt."""
    settings = _early(world.random, SETTINGS)
    prompt = "Once upon a time " + _early(world.random, QUESTIONS)
    body = {"model": draw_model(world), "prompt": prompt, **settings}
    return Ask("completion", body | _delivery(world.random), COMPLETION)


def _short(world: World) -> JSON:
    question = {"role": "user", "content": _early(world.random, QUESTIONS)}
    body = {"model": draw_model(world), "messages": [question], **GREEDY, "max_tokens": 16}
    return body | _delivery(world.random)


def _delivery(source: random.Random) -> JSON:
    if source.random() < 0.3:
        return {}
    stream: JSON = {"stream": True}
    return stream | ({"stream_options": {"include_usage": True}} if source.random() < 0.7 else {})


def _early(source: random.Random, choices: Any) -> Any:
    """One of ``choices``; the first ones are drawn more often, none never."""
    return choices[int(len(choices) * source.random() ** 2)]
