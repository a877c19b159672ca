"""Asks questions with the official client, one or two at a time, and shows the streams."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import httpx
from openai import OpenAI, OpenAIError
from rich.columns import Columns
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

VERSION_HEADER = "x-loraloop-adapter"
MAX_TOKENS = 96


@dataclass
class Stream:
    """One streamed answer, growing."""

    model: str
    text: str = ""
    version: str = "…"  # who answers, by the server's header
    error: Exception | None = None


def read(client: OpenAI, stream: Stream, question: str) -> None:
    """Stream one answer into ``stream``; the seed makes it the same answer every time."""
    try:
        with client.chat.completions.with_streaming_response.create(
            model=stream.model,
            messages=[{"role": "user", "content": question}],
            max_tokens=MAX_TOKENS,
            temperature=0.3,
            frequency_penalty=0.3,  # a model this small, asked greedily, likes to go in circles
            seed=1,
            stream=True,
        ) as response:
            stream.version = response.headers.get(VERSION_HEADER, "?")
            for chunk in response.parse():
                for choice in chunk.choices:
                    stream.text += choice.delta.content or ""
    except (OpenAIError, httpx.HTTPError) as error:  # told to the one who joins the thread
        stream.error = error


def ask(client: OpenAI, model: str, question: str) -> Stream:
    """One answer. Raises what the client raised."""
    stream = Stream(model)
    read(client, stream, question)
    if stream.error is not None:
        raise stream.error
    return stream


def ask_side_by_side(
    client: OpenAI, console: Console, models: list[str], question: str
) -> list[Stream]:
    """The same question to several models at once, streamed next to each other."""
    streams = [Stream(model) for model in models]
    threads = [
        threading.Thread(target=read, args=(client, stream, question), daemon=True)
        for stream in streams
    ]
    with Live(console=console, refresh_per_second=12) as live:
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            live.update(side_by_side(streams, question))
            threads[0].join(0.05)
        live.update(side_by_side(streams, question))
    if not console.is_terminal:
        console.print()  # Live leaves its last line open there
    for stream in streams:
        if stream.error is not None:
            raise stream.error
    return streams


def side_by_side(streams: list[Stream], question: str) -> Group:
    """The question above its answers."""
    panels = [
        Panel(
            Text(stream.text or " ", overflow="fold"),
            title=stream.version,
            width=46,
            title_align="left",
        )
        for stream in streams
    ]
    return Group(Text(f"“{question}”", style="italic"), Columns(panels))
