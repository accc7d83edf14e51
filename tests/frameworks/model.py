"""A model on loopback that speaks OpenAI's chat completions and responses, and Gemini's API; streams too.

What it does is in the last question that it is asked:

- one with "weather" calls the first tool that is offered, once, then answers;
- one with "fail" is refused;
- one with "together" is answered when as many such questions are open as conversations are to meet;
- one with "long" is answered, in a stream, for as long as somebody reads.

Everything else is answered in ten words. Each call costs `INPUT_TOKENS` and `OUTPUT_TOKENS`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Barrier, BrokenBarrierError, Thread
from types import TracebackType
from typing import Any

__all__ = ["INPUT_TOKENS", "OUTPUT_TOKENS", "MEETING", "StubModel"]

Json = dict[str, Any]

INPUT_TOKENS, OUTPUT_TOKENS = 7, 3
MEETING = 2
PATIENCE = 20.0  # seconds, for conversations that are to meet, and for a reader who never leaves
PAUSE = 0.01
ANSWER = "These are ten words of a model that is none."
ARGUMENTS = {"city": "Paris"}
REFUSAL = {"error": {"message": "the stub refuses", "code": 400, "status": "INVALID_ARGUMENT"}}


class StubModel:
    """The model's server; `url` is its root, without the path of either API."""

    def __init__(self) -> None:
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    def __enter__(self) -> StubModel:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    block_on_close = False  # a stream that was abandoned may still be written to

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(address, handler)
        self.meeting = Barrier(MEETING, timeout=PATIENCE)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_POST(self) -> None:
        """Answer one call of the model."""
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        speak = next(speak for path, speak in _APIS.items() if path in self.path)
        question, tool, has_called = speak.asked(body)
        if "fail" in question or ("together" in question and not self._meets()):
            self._reply(400, REFUSAL)
        elif "stream" in self.path or body.get("stream"):
            words = _long() if "long" in question else ANSWER.split()
            self._stream(speak.stream(_called(question, tool, has_called), words))
        else:
            self._reply(200, speak.whole(_called(question, tool, has_called)))

    def log_message(self, *arguments: object) -> None:
        """Say nothing on stderr."""

    def _meets(self) -> bool:
        try:
            self.server.meeting.wait()
        except BrokenBarrierError:
            return False
        return True

    def _reply(self, status: int, value: Json) -> None:
        content = json.dumps(value).encode()
        # A connection that is kept would belong to the event loop of one thread, and others would be given it.
        self.close_connection = True
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.send_header("connection", "close")
        self.end_headers()
        self.wfile.write(content)

    def _stream(self, events: Iterator[Json]) -> None:
        self.close_connection = True
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        try:
            for event in events:
                name = f"event: {event['type']}\n" if "type" in event else ""
                self.wfile.write(f"{name}data: {json.dumps(event)}\n\n".encode())
                self.wfile.flush()
        except OSError:  # the reader left
            return


def _long() -> Iterator[str]:
    for _ in range(int(PATIENCE / PAUSE)):
        yield "and"
        time.sleep(PAUSE)


def _called(question: str, tool: str | None, has_called: bool) -> str | None:
    """The tool that is to be called now."""
    return tool if "weather" in question and not has_called else None


class _Api:
    """How one API is spoken."""

    def asked(self, body: Json) -> tuple[str, str | None, bool]:
        """The last question, the first tool that is offered, and whether it was called since."""
        raise NotImplementedError

    def whole(self, tool: str | None) -> Json:
        """A call of the tool, or an answer."""
        raise NotImplementedError

    def stream(self, tool: str | None, words: Iterable[str]) -> Iterator[Json]:
        """The same in pieces."""
        raise NotImplementedError


class _Chat(_Api):
    def asked(self, body: Json) -> tuple[str, str | None, bool]:
        messages = body["messages"]
        last = max(place for place, each in enumerate(messages) if each["role"] == "user")
        tools = [each["function"]["name"] for each in body.get("tools") or ()]
        return _text(messages[last]["content"]), _first(tools), len(messages) > last + 1

    def whole(self, tool: str | None) -> Json:
        message: Json = {"role": "assistant", "content": None if tool else ANSWER}
        if tool:
            message["tool_calls"] = [_chat_call(tool)]
        choice = {"index": 0, "message": message, "finish_reason": "tool_calls" if tool else "stop"}
        return _CHAT_HEAD | {"object": "chat.completion", "choices": [choice], "usage": _CHAT_USAGE}

    def stream(self, tool: str | None, words: Iterable[str]) -> Iterator[Json]:
        first: Json = {"role": "assistant", "content": None if tool else ""}
        if tool:
            first["tool_calls"] = [{"index": 0, **_chat_call(tool)}]
        yield self._chunk(first)
        for word in () if tool else words:
            yield self._chunk({"content": f"{word} "})
        yield self._chunk({}, "tool_calls" if tool else "stop")
        yield _CHAT_HEAD | {"object": "chat.completion.chunk", "choices": [], "usage": _CHAT_USAGE}

    def _chunk(self, delta: Json, finish: str | None = None) -> Json:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return _CHAT_HEAD | {"object": "chat.completion.chunk", "choices": [choice]}


class _Responses(_Api):
    def asked(self, body: Json) -> tuple[str, str | None, bool]:
        given = body["input"]
        items = [{"role": "user", "content": given}] if isinstance(given, str) else given
        last = max(place for place, each in enumerate(items) if each.get("role") == "user")
        tools = [each["name"] for each in body.get("tools") or ()]
        return _text(items[last]["content"]), _first(tools), len(items) > last + 1

    def whole(self, tool: str | None) -> Json:
        return self._response([self._item(tool)], "completed")

    def stream(self, tool: str | None, words: Iterable[str]) -> Iterator[Json]:
        for number, event in enumerate(self._events(self._item(tool), () if tool else words)):
            yield event | {"sequence_number": number}

    def _events(self, item: Json, words: Iterable[str]) -> Iterator[Json]:
        yield {"type": "response.created", "response": self._response([], "in_progress")}
        yield {
            "type": "response.output_item.added",
            "output_index": 0,
            "item": item | {"status": "in_progress"},
        }
        yield from map(_delta, words)
        yield {"type": "response.output_item.done", "output_index": 0, "item": item}
        yield {"type": "response.completed", "response": self._response([item], "completed")}

    def _item(self, tool: str | None) -> Json:
        if tool:
            call = {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": tool}
            return call | {"arguments": json.dumps(ARGUMENTS), "status": "completed"}
        text = {"type": "output_text", "text": ANSWER, "annotations": [], "logprobs": []}
        message = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed"}
        return message | {"content": [text]}

    def _response(self, output: list[Json], status: str) -> Json:
        usage = {"input_tokens": INPUT_TOKENS, "output_tokens": OUTPUT_TOKENS, "total_tokens": TOTAL_TOKENS}
        details: Json = {
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens_details": {"reasoning_tokens": 0},
        }
        return _RESPONSE_HEAD | {"status": status, "output": output, "usage": usage | details}


class _Gemini(_Api):
    def asked(self, body: Json) -> tuple[str, str | None, bool]:
        said = [
            place
            for place, each in enumerate(body["contents"])
            if each["role"] == "user" and "text" in each["parts"][0]
        ]
        tools = [each["name"] for tool in body.get("tools") or () for each in tool["functionDeclarations"]]
        parts = body["contents"][said[-1]]["parts"]
        return parts[0]["text"], _first(tools), len(body["contents"]) > said[-1] + 1

    def whole(self, tool: str | None) -> Json:
        part: Json = {"functionCall": {"name": tool, "args": ARGUMENTS}} if tool else {"text": ANSWER}
        return self._answer(part) | {"usageMetadata": _GEMINI_USAGE}

    def stream(self, tool: str | None, words: Iterable[str]) -> Iterator[Json]:
        for word in () if tool else words:
            chunk = self._answer({"text": f"{word} "})
            del chunk["candidates"][0]["finishReason"]
            yield chunk
        last: Json = {"functionCall": {"name": tool, "args": ARGUMENTS}} if tool else {"text": ""}
        yield self._answer(last) | {"usageMetadata": _GEMINI_USAGE}

    def _answer(self, part: Json) -> Json:
        content = {"role": "model", "parts": [part]}
        return {"candidates": [{"content": content, "finishReason": "STOP"}], "modelVersion": "stub"}


def _text(content: str | list[Json]) -> str:
    return content if isinstance(content, str) else " ".join(part.get("text", "") for part in content)


def _first(names: list[str]) -> str | None:
    return names[0] if names else None


def _chat_call(tool: str) -> Json:
    function = {"name": tool, "arguments": json.dumps(ARGUMENTS)}
    return {"id": "call_1", "type": "function", "function": function}


def _delta(word: str) -> Json:
    event = {"type": "response.output_text.delta", "item_id": "msg_1", "output_index": 0, "content_index": 0}
    return event | {"delta": f"{word} ", "logprobs": []}


TOTAL_TOKENS = INPUT_TOKENS + OUTPUT_TOKENS
_CHAT_HEAD = {"id": "chatcmpl-1", "created": 1, "model": "gpt-4o-mini"}
_CHAT_USAGE = {
    "prompt_tokens": INPUT_TOKENS,
    "completion_tokens": OUTPUT_TOKENS,
    "total_tokens": TOTAL_TOKENS,
}
_GEMINI_USAGE = {
    "promptTokenCount": INPUT_TOKENS,
    "candidatesTokenCount": OUTPUT_TOKENS,
    "totalTokenCount": TOTAL_TOKENS,
}
_RESPONSE_HEAD: Json = {"id": "resp_1", "object": "response", "created_at": 1, "model": "gpt-4o-mini"} | {
    "parallel_tool_calls": True,
    "tool_choice": "auto",
    "tools": [],
}
_APIS: dict[str, _Api] = {
    "/chat/completions": _Chat(),
    "/responses": _Responses(),
    "enerateContent": _Gemini(),
}
