"""FastAPI, a streamed answer, and a framework whose spans carry no conversation id: one line says whose they are.

`POST /chat/{conversation}` with a text answers word by word. `session(conversation)(answer)` is `answer`, run inside
the session from its first word to its last, whichever task reads them. Run it with
`uvicorn examples.session_in_fastapi:app` and AGENT_TRACKER_URL set. With Starlette alone it is the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from opentelemetry.sdk.trace import TracerProvider

from otel_agent_tracker import install, session

provider = TracerProvider()
install(provider)
framework = provider.get_tracer("framework")
app = FastAPI()


async def answer(question: str) -> AsyncIterator[str]:
    """Stands for your agent's framework, which makes such spans and knows of no conversation."""
    with framework.start_as_current_span("invoke_agent chat-bot") as span:
        span.set_attributes({"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "chat-bot"})
        for word in f"You asked: {question}".split():
            await asyncio.sleep(0.01)
            yield f"{word} "


@app.post("/chat/{conversation}")
async def chat(conversation: str, request: Request) -> StreamingResponse:
    """One turn, as long as its stream."""
    question = (await request.body()).decode()
    return StreamingResponse(session(conversation)(answer)(question), media_type="text/plain")
