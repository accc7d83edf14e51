"""The documentation says what is there, all of it, and what it shows runs."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

import click
import pytest

from otel_agent_tracker import config, semconv, wire
from otel_agent_tracker.server.app import create_app
from otel_agent_tracker.server.database import Database
from otel_agent_tracker.server.run import Server
from otel_agent_tracker.server.selection import Selection
from otel_agent_tracker.server.store import Store
from tests import reference
from tests.faults.rows import FAULTS, shown
from tests.frameworks.table import PAIRS

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
EXAMPLES = sorted(ROOT.glob("examples/*.py"))
Json = dict[str, Any]
OWN_URL = "http://localhost:8700"


def _text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def _everything() -> str:
    return "\n".join(page.read_text(encoding="utf-8") for page in PAGES)


def _code(text: str) -> set[str]:
    """What stands between single backticks."""
    return set(re.findall(r"`([^`\n]+)`", text))


def _python_blocks() -> dict[str, str]:
    """The blocks of Python in the documentation, by page and number."""
    return {
        f"{page.name}-{number}": block
        for page in PAGES
        for number, block in enumerate(
            re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL), start=1
        )
    }


Run = Callable[..., str]


@pytest.fixture
def run_program(tracker_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs Python in a process of its own against a real tracker; what it prints, and nothing on stderr."""
    monkeypatch.setenv("AGENT_TRACKER_URL", tracker_server.url)
    monkeypatch.setenv("AGENT_TRACKER_STATE_DIR", str(tmp_path / "state"))

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    return run


# --- what is shown runs -------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", _python_blocks().values(), ids=_python_blocks())
def test_code_in_the_documentation_runs(block: str, run_program: Run, tracker_server: Server) -> None:
    """Every Python block runs as it stands, but for the address, and the tracker hears of a conversation."""
    run_program("-c", block.replace(OWN_URL, tracker_server.url))

    assert tracker_server.store.figures.success_rates(1, Selection()).completed == 1


def test_the_first_conversation_is_about_ten_lines() -> None:
    """What a newcomer has to type first is short."""
    lines = [line for line in _python_blocks()["README.md-1"].splitlines() if line.strip()]
    assert len(lines) <= 10


@pytest.mark.parametrize(
    ("example", "told"),
    [
        ("first_conversation.py", "completed with quality 5 after 2 turns"),
        ("agent_operations.py", "librarian: index rebuilt; 1 agent idle"),
    ],
)
def test_examples_run(example: str, told: str, run_program: Run) -> None:
    """An example prints what the tracker knows of what it did."""
    assert told in run_program(str(ROOT / "examples" / example))


def test_the_chat_server_streams_a_turn(run_program: Run, tracker_server: Server) -> None:
    """A request to the example's application is one turn of its session, as long as its stream."""
    told = run_program("-c", _CHAT)

    conversation = tracker_server.store.conversations.get(1, "thread-7")
    assert told.split() == ["You", "asked:", "Hello?"]
    assert conversation is not None
    assert (conversation.agent_id, conversation.turns, conversation.status) == ("chat-bot", 1, "active")


_CHAT = """
import asyncio, httpx
from examples.chat_server import app, lifespan

async def main():
    async with lifespan(app):
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://chat") as client:
            print((await client.post("/chat/thread-7", content="Hello?")).text)

asyncio.run(main())
"""


_USERS = ("ann", "bob")
_AT_ONCE = """
import asyncio, httpx
from examples.session_in_fastapi import app

async def main():
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://chat") as client:
        posts = (client.post(f"/chat/thread-of-{user}", content=user) for user in ("ann", "bob"))
        for answer in await asyncio.gather(*posts):
            print(answer.text)

asyncio.run(main())
"""
_IN_TURNS = """
from examples.session_in_flask import app

client = app.test_client()
streams = [client.post(f"/chat/thread-of-{user}", data=user).response for user in ("ann", "bob")]
for answer in zip(*zip(*streams, strict=True)):  # a word of each, until both have ended
    print(b"".join(answer).decode())
"""


@pytest.mark.parametrize("program", [_AT_ONCE, _IN_TURNS], ids=["FastAPI", "Flask"])
def test_a_session_holds_what_a_framework_streams(
    program: str, run_program: Run, tracker_server: Server
) -> None:
    """Streams of two users, read word by word in turns, are a turn of each, of the session that the view named."""
    told = run_program("-c", program)

    assert [line.split() for line in told.splitlines()] == [["You", "asked:", user] for user in _USERS]
    for user in _USERS:
        conversation = tracker_server.store.conversations.get(1, f"thread-of-{user}")
        assert conversation is not None
        assert (conversation.agent_id, conversation.turns) == ("chat-bot", 1)
    assert tracker_server.store.figures.success_rates(1, Selection()).total == len(_USERS)


def test_every_example_is_tested() -> None:
    """No example rots: each is named in this file, or in the table of the frameworks that are tested live."""
    here = Path(__file__).read_text(encoding="utf-8")
    live = {pair.example for pair in PAIRS}
    assert [each.name for each in EXAMPLES if each.stem not in here and each.stem not in live] == []


# --- what is named is there ---------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link names a file, and a heading of it if it names one."""
    for target in re.findall(r"\]\((?!https?://)([^)\s]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        file = (page.parent / path) if path else page
        assert file.exists(), target
        assert not anchor or anchor in _anchors(file), target


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_every_make_target_that_is_named_exists() -> None:
    """`make …` in the documentation and in what continuous integration runs is a target of the Makefile."""
    targets = set(re.findall(r"^([a-z-]+):", _text("Makefile"), re.MULTILINE))
    named = set(
        re.findall(r"(?:`|^|suite \w+ )make ([a-z-]+)", _everything() + _text(".ci/run"), re.MULTILINE)
    )
    assert named
    assert named <= targets


def test_continuous_integration_runs_the_commands_of_the_readme() -> None:
    """What a contributor is told to run is what decides."""
    for command in ("make test", "make demo"):
        assert command in _text("README.md")
        assert command in _text(".ci/run")


def test_every_command_that_is_named_exists() -> None:
    """`otel-agent-tracker …` in the documentation is a command, with options that it has."""
    known = dict(reference.commands())
    for words in re.findall(r"otel-agent-tracker((?: [a-z]+)+(?: --[a-z-]+)*)", _everything()):
        parts = words.split()
        options = [part for part in parts if part.startswith("--")]
        name = " ".join(["otel-agent-tracker", *(part for part in parts if part not in options)])
        command = next(known[each] for each in _prefixes(name) if each in known)
        assert not isinstance(command, click.Group) or command.name == name.split()[-1], words
        assert set(options) <= {option for each in command.params for option in each.opts}, words


def _prefixes(name: str) -> Iterator[str]:
    words = name.split()
    return (" ".join(words[:length]) for length in range(len(words), 1, -1))


def test_every_variable_that_is_named_exists() -> None:
    """`AGENT_TRACKER_…` and `OTEL_…` in the documentation are read by the configuration, or name our exporter."""
    own = {config.PREFIX + name.upper() for name in reference.settings()}
    sources = _text("otel_agent_tracker/config.py") + _text("otel_agent_tracker/trace_exporter.py")
    read = set(re.findall(r"\bOTEL_[A-Z_]+[A-Z]", sources))
    named = set(re.findall(r"\b(?:AGENT_TRACKER|OTEL)_[A-Z_]*[A-Z]\b", _everything()))
    assert named - own - read == set()
    assert (own | read) - named == set()


# --- what is generated is fresh -----------------------------------------------------------------------------


@pytest.mark.parametrize("page", reference.PAGES, ids=lambda page: page.name)
def test_generated_pages_are_fresh(page: Path) -> None:
    """The pages of settings and commands are as the code says; `make docs` writes them."""
    assert page.read_text(encoding="utf-8") == reference.PAGES[page]()


def test_every_fault_has_a_test_of_its_own() -> None:
    """One that injects it, and says in its docstring what is promised."""
    tests = shown()
    assert tests.keys() == FAULTS.keys()
    assert all(test.promise.endswith(".") for tests_of_one in tests.values() for test in tests_of_one)
    assert [number for number, of_one in tests.items() if all(test.faults > 5 for test in of_one)] == []


def test_every_setting_is_explained() -> None:
    """The table of settings holds each of them."""
    named = set(re.findall(r"^\| `AGENT_TRACKER_(\w+)`", _text("docs/configuration.md"), re.MULTILINE))
    assert named == {name.upper() for name in reference.settings()}


# --- the REST protocol --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> Json:
    """The tracker's API in OpenAPI's words."""
    store = Store(Database(str(tmp_path_factory.mktemp("docs") / "tracker.sqlite3")))
    found = create_app(store).openapi()
    store.close()
    return found


@pytest.fixture(scope="module")
def routes(described: Json) -> dict[str, set[str]]:
    """The tracker's routes, such as ``GET /agents/active``, with the names of their queries."""
    return {
        f"{method.upper()} {path}": {
            each["name"] for each in about.get("parameters", ()) if each["in"] == "query"
        }
        for path, methods in described["paths"].items()
        for method, about in methods.items()
    }


def test_every_route_is_documented_and_no_other(routes: dict[str, set[str]]) -> None:
    """Each method and path of the tracker is named in the protocol's description, and nothing that is not."""
    named = {code for code in _code(_text("docs/rest-api.md")) if re.match(r"(GET|POST|DELETE) /", code)}
    assert named == set(routes)


def test_every_query_is_documented_and_no_other(routes: dict[str, set[str]]) -> None:
    """The row of a question names its queries, no more and no less."""
    rows = re.findall(r"^\| `(GET [^`]+)` \|([^|]*)\|", _text("docs/rest-api.md"), re.MULTILINE)
    assert {route: _code(query) for route, query in rows} == {
        route: routes[route] for route, _ in rows if route in routes
    }
    assert len(rows) >= 15


@pytest.mark.parametrize("path", wire.REQUESTS)
def test_every_field_of_a_request_is_documented_and_no_other(path: str) -> None:
    """The row of a request names its fields in their order, with `?` where they may be absent."""
    (row,) = re.findall(rf"^\| `POST {path}` \| (.*) \|$", _text("docs/rest-api.md"), re.MULTILINE)
    expected = [
        each.name + ("" if each.default is MISSING and each.default_factory is MISSING else "?")
        for each in fields(wire.REQUESTS[path])
    ]
    assert re.findall(r"`([^`]+)`", row) == expected


ANSWERS = {
    "conversation": wire.ConversationAnswer,
    "episode": wire.Episode,
    "conversations": wire.Conversations,
    "agent": wire.AgentAnswer,
    "the agent's status": wire.AgentStatusAnswer,
    "instance": wire.InstanceAnswer,
    "agents": wire.Agents,
    "activity": wire.ActivityAnswer,
    "activities": wire.Activities,
    "operations": wire.OperationsOverview,
    "success rates": wire.SuccessRates,
    "response times": wire.ResponseTimes,
    "quality": wire.Quality,
    "failures": wire.Failures,
    "failure": wire.Failure,
    "performance": wire.PerformanceOverview,
    "result of a post": wire.BatchResult,
    "results of a batch": wire.BatchAnswer,
    "capabilities": wire.Capabilities,
}


def test_every_field_of_an_answer_is_documented_and_no_other() -> None:
    """The row of an answer names its fields, no more and no less, and every answer has its row."""
    _, _, table = _text("docs/rest-api.md").partition("\n### Answers\n")
    rows = re.findall(r"^\| ([a-z' ]+) \| (`.*) \|$", table.partition("\n#")[0], re.MULTILINE)
    documented = {name: sorted(re.findall(r"`(\w+)\??`", text)) for name, text in rows}
    assert documented == {name: sorted(each.name for each in fields(kind)) for name, kind in ANSWERS.items()}

    sent = {*wire.REQUESTS.values(), wire.BatchEvent, wire.BatchRequest}
    exported = [getattr(wire, name) for name in wire.__all__]
    assert {kind for kind in exported if is_dataclass(kind)} - sent == set(ANSWERS.values())


def test_every_question_is_documented_with_its_answer(described: Json) -> None:
    """The row of a question names the kinds of answer that its route gives."""
    rows = re.findall(r"^\| `GET (/[^`]+)` \|[^|]*\| (.*) \|$", _text("docs/rest-api.md"), re.MULTILINE)
    documented = {
        path: {ANSWERS[name].__name__ for name in re.findall(r"\[([^]]+)]\(#answers\)", text)}
        for path, text in rows
    }
    assert documented == {
        path: given
        for path, methods in described["paths"].items()
        if "get" in methods and (given := _schemas(methods["get"]["responses"]["200"]))
    }


def _schemas(answer: Json) -> set[str]:
    """The names of what an answer may hold, in OpenAPI's words."""
    schema = answer["content"]["application/json"]["schema"]
    return {each["$ref"].rpartition("/")[2] for each in schema.get("anyOf", [schema]) if "$ref" in each}


# --- the semantic conventions -------------------------------------------------------------------------------


def _attributes() -> set[str]:
    """Every attribute key that `semconv` spells."""
    return {
        value
        for name, value in vars(semconv).items()
        if name.isupper() and isinstance(value, str) and name != "VERSION"
    }


def test_every_attribute_is_documented() -> None:
    """Each attribute key is named in the semantic conventions."""
    assert _attributes() - _code(_text("docs/semantic-conventions.md")) == set()


def test_every_documented_attribute_exists() -> None:
    """What looks like an attribute, on any page, is one."""
    named = {
        code
        for code in _code(_everything())
        if re.fullmatch(r"(agent_tracker|gen_ai|session|user|error|service|deployment)(\.\w+)+", code)
    }
    assert named - _attributes() == set()


def test_every_event_is_documented_and_no_other() -> None:
    """The table of events has a row for each of them."""
    rows = re.findall(r"^\| `([a-z.]+)` \|.*\| `POST ", _text("docs/semantic-conventions.md"), re.MULTILINE)
    assert rows == [event.value for event in semconv.Event]


def test_every_value_of_a_closed_set_is_documented() -> None:
    """Outcomes, sources and statuses are spelt out."""
    text = _text("docs/semantic-conventions.md")
    sets = (
        semconv.EndedBy,
        semconv.ExpiryReason,
        semconv.TurnStatus,
        semconv.FeedbackSource,
        semconv.AgentStatus,
    )
    assert [member for each in sets for member in each if not re.search(rf"\b{member}\b", text)] == []


# --- how it is built ----------------------------------------------------------------------------------------


def test_every_module_has_its_place_in_the_architecture() -> None:
    """The list of modules names each module and package, and nothing else."""
    package = ROOT / "otel_agent_tracker"
    modules = {path.name for path in package.glob("*.py")} - {"__init__.py"}
    packages = {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    named = set(re.findall(r"^\| `([a-z_]+(?:\.py|/))` \|", _text("docs/architecture.md"), re.MULTILINE))
    assert named == modules | packages
