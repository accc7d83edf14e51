"""Flask, a streamed answer, and a framework whose spans carry no conversation id: one line says whose they are.

`POST /chat/{conversation}` with a text answers word by word. `session(conversation)(answer)` is `answer`, run inside
the session from its first word to its last, though Flask reads them when the view has returned. Run it with
`flask --app examples.session_in_flask run` and AGENT_TRACKER_URL set.
"""

from __future__ import annotations

from collections.abc import Iterator

from flask import Flask, Response, request
from opentelemetry.sdk.trace import TracerProvider

from otel_agent_tracker import install, session

provider = TracerProvider()
install(provider)
framework = provider.get_tracer("framework")
app = Flask(__name__)


def answer(question: str) -> Iterator[str]:
    """Stands for your agent's framework, which makes such spans and knows of no conversation."""
    with framework.start_as_current_span("invoke_agent chat-bot") as span:
        span.set_attributes({"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "chat-bot"})
        for word in f"You asked: {question}".split():
            yield f"{word} "


@app.post("/chat/<conversation>")
def chat(conversation: str) -> Response:
    """One turn, as long as its stream."""
    question = request.get_data(as_text=True)
    return Response(session(conversation)(answer)(question), mimetype="text/plain")
