"""A chat over HTTP with asyncio: each request is a turn of its session, and the answer is streamed.

`POST /chat/{session_id}` with a text answers word by word; a session needs no start, and is over when it has
been idle for half an hour. Run it with `uvicorn examples.chat_server:app` and AGENT_TRACKER_URL set.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

from otel_agent_tracker import AsyncAgentPerformanceTracker

tracker = AsyncAgentPerformanceTracker()


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Close the tracker with the application: it delivers for a moment, and keeps the rest on disk."""
    async with tracker:
        yield


app = FastAPI(lifespan=lifespan)


async def answer(question: str) -> AsyncIterator[str]:
    """Stands for your agent."""
    for word in f"You asked: {question}".split():
        await asyncio.sleep(0.01)
        yield f"{word} "


@app.post("/chat/{session_id}")
async def chat(session_id: str, request: Request) -> StreamingResponse:
    """One turn; it lasts until the stream has ended, though the block is left before."""
    question = (await request.body()).decode()
    async with tracker.turn(session_id, agent_id="chat-bot") as turn:
        return StreamingResponse(turn.stream(answer(question)), media_type="text/plain")
