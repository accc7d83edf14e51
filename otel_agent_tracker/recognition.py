"""What a span of another library shows, told from plain values; pure, and every rule is a row of a table.

A new convention is a row in `_CLASSES`, and where it brings names of its own one in `_CONVERSATION_IDS`,
`_USER_IDS`, `_AGENT_NAMES` or the tokens. Nothing here looks at what was said: ids, names, counts and how it ended.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any, NamedTuple

from otel_agent_tracker import arguments, semconv
from otel_agent_tracker.semconv import TurnStatus

__all__ = [
    "NO_IDS",
    "Ids",
    "Outcome",
    "Reader",
    "Recognised",
    "Recogniser",
    "Seen",
    "SpanClass",
    "classify",
    "is_foreign",
    "is_foreign_scope",
    "is_left_to_sampler",
    "is_likely_scope",
    "response_id",
    "tokens",
    "usable_id",
]


class SpanClass(StrEnum):
    """What a span shows."""

    AGENT = "agent"
    """An agent, a crew, a workflow of agents."""
    CHAIN = "chain"
    """A step that may hold agents and model calls; with nothing above it, it is the turn."""
    LLM = "llm"
    """One call of a model."""
    TOOL = "tool"
    """A tool that an agent uses; whoever calls it copes with its failures."""
    STEP = "step"
    """Something else in an agent's work, which is never a turn: a loop, a handoff, a retrieval."""
    OTHER = "other"
    """Nothing of an agent's."""


class Ids(NamedTuple):
    """Whose a span is, as far as it says."""

    conversation: str | None = None
    user: str | None = None
    agent: str | None = None
    """Only where somebody said it in code: what spans say is a name, which may be a framework's own."""


class Outcome(NamedTuple):
    """How something ended that did not end well."""

    status: TurnStatus
    error_type: str | None = None
    error_message: str | None = None


@dataclass(frozen=True, slots=True)
class Recognised:
    """What a rule of your own says of a span; what is None is told by the rules that come with the library."""

    span_class: SpanClass | None = None
    conversation_id: str | None = None
    user_id: str | None = None
    agent_id: str | None = None


Recogniser = Callable[[str, Mapping[str, Any]], Recognised | None]
"""A rule of your own: the name and the attributes of a span that has ended, and what it is, or None."""


class Seen(NamedTuple):
    """All that is kept of a span that has ended."""

    span_class: SpanClass
    ids: Ids = Ids()
    agent: str | None = None
    tokens: tuple[int | None, int | None] = (None, None)
    outcome: Outcome | None = None
    is_ours: bool = False
    """Whether it is the span of a `Turn`, which reports itself."""
    refused_id: bool = False
    """Whether it carries a conversation id that cannot be used."""
    response_id: str | None = None
    """The id of the model's response that it shows."""


class Reader:
    """Reads spans by the rules of this module, in the order and with the additions that a user asked for.

    `precedence` names attributes that are looked at for a conversation id before all others, in its order.
    """

    def __init__(self, precedence: Sequence[str] = (), recognisers: Iterable[Recogniser] = ()) -> None:
        self._conversation_ids = tuple(dict.fromkeys((*precedence, *_CONVERSATION_IDS)))
        self._recognisers = tuple(recognisers)
        self._conversation_keys = frozenset(self._conversation_ids)
        self._id_keys = frozenset((*self._conversation_ids, *_USER_IDS))

    def ids(self, attributes: Mapping[str, Any]) -> Ids:
        """The first usable conversation id and user id."""
        if self._id_keys.isdisjoint(attributes):
            return NO_IDS
        return Ids(
            _first_usable(attributes, self._conversation_ids, usable_id),
            _first_usable(attributes, _USER_IDS, usable_name),
        )

    def carried(self, attributes: Mapping[str, Any]) -> set[str]:
        """Every usable conversation id among the attributes."""
        if self._conversation_keys.isdisjoint(attributes):
            return _NOTHING
        found = self._conversation_keys.intersection(attributes)
        return {each for key in found if (each := usable_id(attributes[key])) is not None}

    def ids_in_context(self, values: Mapping[str, Any]) -> Ids:
        """The ids that libraries keep in the Context, whose values by key these are."""
        found = {name: value for key, value in values.items() if (name := _context_name(key)) is not None}
        associated = values.get("association_properties")
        if isinstance(associated, Mapping):
            found |= {f"{_TRACELOOP}{key}": value for key, value in associated.items()}
        return self.ids(found) if found else NO_IDS

    def ids_in_baggage(self, baggage: Mapping[str, Any]) -> Ids:
        """The ids in baggage, which may have come from another process."""
        return self.ids({_BAGGAGE.get(key, key): value for key, value in baggage.items()})

    def plain_class(self, name: str, attributes: Mapping[str, Any]) -> SpanClass | None:
        """The class of a span for which that is all there is to ask; None if a rule, or our own mark, may say more."""
        if self._recognisers or semconv.TURN_ID in attributes:
            return None
        return classify(name, attributes)

    def other(self, attributes: Mapping[str, Any]) -> Seen:
        """All that such a span shows."""
        ids = self.ids(attributes)
        return _NOTHING_SEEN if ids is NO_IDS else Seen(SpanClass.OTHER, ids)

    def read(
        self,
        name: str,
        attributes: Mapping[str, Any],
        *,
        failed: bool = False,
        description: str | None = None,
        events: Sequence[tuple[str, Mapping[str, Any]]] = (),
    ) -> Seen:
        """What a span that has ended shows; `failed` and `description` are its status."""
        said = self._asked(name, attributes) if self._recognisers else _SAYS_NOTHING
        span_class = said.span_class or classify(name, attributes)
        ids = self.ids(attributes)
        if said is not _SAYS_NOTHING:
            ids = Ids(
                usable_id(said.conversation_id) or ids.conversation, usable_name(said.user_id) or ids.user
            )
        is_ours = semconv.TURN_ID in attributes
        if span_class is SpanClass.OTHER:
            return Seen(SpanClass.AGENT, ids, is_ours=True) if is_ours else Seen(span_class, ids)
        return Seen(
            span_class,
            ids,
            usable_name(said.agent_id) or _agent(name if span_class in _NAMED else "", attributes),
            tokens(attributes),
            _outcome(failed, description, attributes, events),
            is_ours,
            ids.conversation is None and not self._conversation_keys.isdisjoint(attributes),
            response_id(attributes),
        )

    def _asked(self, name: str, attributes: Mapping[str, Any]) -> Recognised:
        for recogniser in self._recognisers:
            if (said := recogniser(name, attributes)) is not None:
                return said
        return _SAYS_NOTHING


# --- what it is ---------------------------------------------------------------------------------------------


def classify(name: str, attributes: Mapping[str, Any]) -> SpanClass:
    """The class of a span, by the first convention that says anything of it.

    Never by an agent's name alone: model calls and tools carry it too.
    """
    for key, classes, otherwise in _CLASSES:
        value = attributes.get(key)
        if not isinstance(value, str):
            continue
        found = classes.get(value.lower(), otherwise)
        if found is SpanClass.LLM and name.startswith("invoke_agent"):
            return (
                SpanClass.AGENT
            )  # one instrumentation overwrites the operation of an agent with its model's
        if found is not None:
            return found
    if name == "workflow.run" and "workflow.id" in attributes:
        return SpanClass.AGENT  # agent-framework, which gives its workflows no operation
    return SpanClass.OTHER


def is_foreign_scope(scope: str) -> bool:
    """Whether an instrumentation is known to show no agents: web servers, clients, databases, queues."""
    return (
        scope.startswith(_INSTRUMENTATION) and scope.removeprefix(_INSTRUMENTATION).split(".")[0] in _FOREIGN
    )


def is_left_to_sampler(scope: str) -> bool:
    """Whether what the host's sampler decides about an instrumentation's spans hides no agent.

    Not so for those that show no agents and may yet stand between two, in one process.
    """
    return is_foreign_scope(scope) and scope.removeprefix(_INSTRUMENTATION).split(".")[0] not in _BETWEEN


def is_likely_scope(scope: str) -> bool:
    """Whether an instrumentation is known to show agents, though its spans may say so only at their end."""
    return any(word in scope for word in _LIKELY)


def is_foreign(attributes: Mapping[str, Any]) -> bool:
    """Whether a span shows at its start that it is a request, a query or a message, of whatever scope."""
    return not _FOREIGN_KEYS.isdisjoint(attributes) and semconv.GEN_AI_OPERATION_NAME not in attributes


# --- whose it is --------------------------------------------------------------------------------------------


def usable_id(value: object) -> str | None:
    """A conversation id, or None for what would merge the conversations of different people, or is none at all.

    Not used are: what is no text, or empty; more than 320 characters, or control characters among them, which
    no session id can have; `[Scrubbed …`, which a scrubber puts in place of every id; `resp_…`, which names one
    response and changes with each turn; and words that stand for "none" or repeat the attribute's name.
    """
    return _checked_id(value) if isinstance(value, str) and len(value) <= LONGEST_ID else None


def usable_name(value: object) -> str | None:
    """The id of a user or an agent's name, or None for what cannot be one."""
    return _checked_name(value) if isinstance(value, str) and len(value) <= LONGEST_ID else None


@lru_cache(maxsize=1024)  # the same few at each span
def _checked_id(value: str) -> str | None:
    if not value.strip() or value.startswith(_NO_IDS_BEGIN) or value.strip().lower() in _CONSTANTS:
        return None
    try:
        return arguments.session_identifier("conversation id", value)
    except ValueError:
        return None


@lru_cache(maxsize=1024)
def _checked_name(value: str) -> str | None:
    if not value.strip() or value.startswith(_NO_IDS_BEGIN):
        return None
    try:
        return arguments.identifier("id", value)
    except ValueError:
        return None


def _first_usable(
    attributes: Mapping[str, Any], keys: Iterable[str], usable: Callable[[object], str | None]
) -> str | None:
    for key in keys:
        if key in attributes and (found := usable(attributes[key])) is not None:
            return found
    return None


def _context_name(key: str) -> str | None:
    """The attribute's name for what a library keeps under `key` in the Context; keys may end in a uuid."""
    if key.startswith("opentelemetry.util.genai.conversation_id"):
        return semconv.GEN_AI_CONVERSATION_ID
    return _CONTEXT.get(key)


def _agent(name: str, attributes: Mapping[str, Any]) -> str | None:
    """Who the agent is, or None where only a framework's own default name is known.

    The attribute `gen_ai.agent.id` is not looked at: it was a constant, the id of a run, or of an object.
    """
    for key in _AGENT_NAMES:
        if key in attributes and (found := usable_name(attributes[key])) and not _is_default(found):
            return found
    if not name:
        return None
    named = usable_name(_without_decoration(name))
    return None if named is None or _is_default(named) else named


def _without_decoration(name: str) -> str:
    for prefix in _NAME_PREFIXES:
        name = name.removeprefix(prefix)
    for suffix in _NAME_SUFFIXES:
        name = name.removesuffix(suffix)
    return name.strip().strip("[]")


def _is_default(name: str) -> bool:
    return name.lower() in _DEFAULT_NAMES or _UUID.search(name) is not None


# --- what it cost -------------------------------------------------------------------------------------------


def tokens(attributes: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Input and output tokens that a span shows."""
    found = _first_count(attributes, _INPUT_TOKENS), _first_count(attributes, _OUTPUT_TOKENS)
    if found != (None, None):
        return found
    details = attributes.get("langfuse.observation.usage_details")
    return tokens(_json_object(details)) if isinstance(details, str) else found


def response_id(attributes: Mapping[str, Any]) -> str | None:
    """The id of the model's response that a span or a log record shows."""
    value = attributes.get(semconv.GEN_AI_RESPONSE_ID)
    is_one = isinstance(value, str) and 0 < len(value) <= LONGEST_ID and not value.startswith(_SCRUBBED)
    return value if is_one else None


def _first_count(attributes: Mapping[str, Any], keys: tuple[str, ...]) -> int | None:
    for key in keys:
        value = attributes.get(key)
        if value is None:
            continue
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53:
            return value
    return None


def _json_object(text: str) -> Mapping[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


# --- how it ended -------------------------------------------------------------------------------------------


def _outcome(
    failed: bool,
    description: str | None,
    attributes: Mapping[str, Any],
    events: Sequence[tuple[str, Mapping[str, Any]]],
) -> Outcome | None:
    """Failed, cancelled or waiting; None if the span shows none of them.

    An exception event alone is no failure, unless it says that a human is asked, which some libraries show
    below a status that is fine.
    """
    if not failed and not events and semconv.ERROR_TYPE not in attributes:
        return None
    raised = _raised(attributes, events)
    if any(_last_part(each) in _WAITING for each in raised):
        return Outcome(TurnStatus.WAITING)
    if not failed:
        return None
    first = next(iter(raised), None) or _class_in(description)
    if (description or "").strip().lower() in _ABANDONED or _last_part(first or "") in _CANCELLED:
        return Outcome(TurnStatus.CANCELLED)
    return Outcome(TurnStatus.FAILED, first, _first_line(description))


def _raised(attributes: Mapping[str, Any], events: Iterable[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """Error classes that the span names, the most telling first."""
    found = [attributes.get(semconv.ERROR_TYPE)]
    found += [_type_of(values) for name, values in events if name == "exception"]
    return [each for each in found if isinstance(each, str) and each and each != "_OTHER"]


def _type_of(exception: Mapping[str, Any]) -> object:
    """The error class of an exception event; one library wraps all errors, and the message begins with the class."""
    found, message = exception.get("exception.type"), exception.get("exception.message")
    if found == "Exception" and isinstance(message, str):
        return _class_in(message) or found
    return found


def _class_in(description: str | None) -> str | None:
    """The error class that a text begins with, as in `ValueError: …` or `ValueError('…')`."""
    found = _ERROR_CLASS.match(description or "")
    return found[1] if found else None


def _last_part(error_type: str) -> str:
    return error_type.rpartition(".")[2].lower()


def _first_line(description: str | None) -> str | None:
    """The description without the traceback that some libraries put behind it."""
    if not description:
        return None
    return (
        description.partition("Traceback (most recent call last)")[0].strip().partition("\n")[0][:500] or None
    )


LONGEST_ID = 320  # what is longer is no id, and not worth a look

# --- the tables ---------------------------------------------------------------------------------------------

NO_IDS = Ids()
_NOTHING: set[str] = set()
_SAYS_NOTHING = Recognised()
_NOTHING_SEEN = Seen(SpanClass.OTHER, NO_IDS)
_TRACELOOP = "traceloop.association.properties."

_Classes = Mapping[str, SpanClass | None]
_AGENT, _CHAIN, _LLM, _TOOL, _STEP = (
    SpanClass.AGENT,
    SpanClass.CHAIN,
    SpanClass.LLM,
    SpanClass.TOOL,
    SpanClass.STEP,
)

_CLASSES: tuple[tuple[str, _Classes, SpanClass | None], ...] = (
    (  # GenAI semantic conventions; any other operation is a step
        semconv.GEN_AI_OPERATION_NAME,
        {
            "invoke_agent": _AGENT,
            "invoke_workflow": _AGENT,
            "invoke_graph": _AGENT,
            "invoke_swarm": _AGENT,
            "agent": _AGENT,
            "workflow": _AGENT,
            "chat": _LLM,
            "chat.completions": _LLM,
            "completion": _LLM,
            "completions": _LLM,
            "generate_content": _LLM,
            "responses": _LLM,
            "text_completion": _LLM,
            "text.completions": _LLM,
            "text_generation": _LLM,
            "execute_tool": _TOOL,
            "chain": None,  # says nothing: the next conventions are asked
            "unknown": None,
        },
        _STEP,
    ),
    (
        "openinference.span.kind",
        {"agent": _AGENT, "chain": _CHAIN, "llm": _LLM, "tool": _TOOL, "unknown": None},
        _STEP,
    ),
    ("traceloop.span.kind", {"workflow": _AGENT, "agent": _AGENT, "tool": _TOOL}, None),
    ("llm.request.type", {"chat": _LLM, "completion": _LLM}, _STEP),  # traceloop before operation names
    (
        "langfuse.observation.type",
        {"agent": _AGENT, "chain": _CHAIN, "span": _CHAIN, "generation": _LLM, "tool": _TOOL},
        _STEP,
    ),
    ("langsmith.span.kind", {"chain": _CHAIN, "llm": _LLM, "tool": _TOOL}, _STEP),
)
"""Attribute, classes by its value in lower case, and the class of every other value (None: ask on)."""

_CONVERSATION_IDS = (
    semconv.GEN_AI_CONVERSATION_ID,
    semconv.SESSION_ID,
    "langfuse.session.id",
    f"{_TRACELOOP}conversation_id",
    f"{_TRACELOOP}session_id",
    f"{_TRACELOOP}thread_id",
    f"{_TRACELOOP}chat_id",
    "langsmith.metadata.session_id",
    "langsmith.metadata.conversation_id",
    "langsmith.metadata.thread_id",
    "conversation_id",
    "session_id",
    "thread_id",
)
"""Where a conversation id is looked for, in this order; `langsmith.trace.session_name` is a project."""

_USER_IDS = (
    semconv.USER_ID,
    "enduser.id",
    "enduser.pseudo.id",
    "langfuse.user.id",
    f"{_TRACELOOP}user_id",
    "langsmith.metadata.user_id",
    "user_id",
)

_AGENT_NAMES = (
    semconv.GEN_AI_AGENT_NAME,
    "agent.name",
    "langsmith.metadata.lc_agent_name",
    "gen_ai.workflow.name",
    "traceloop.entity.name",
)

_CONTEXT = {
    "session.id": semconv.SESSION_ID,
    "user.id": semconv.USER_ID,
    "conversation_id": semconv.GEN_AI_CONVERSATION_ID,
    "langfuse.propagated.session_id": "langfuse.session.id",
    "langfuse.propagated.user_id": "langfuse.user.id",
}
"""Keys of the Context (OpenInference, traceloop, langfuse), and the attributes that mean the same."""

_BAGGAGE = {"langfuse_session_id": "langfuse.session.id", "langfuse_user_id": "langfuse.user.id"}

_INPUT_TOKENS = (
    semconv.GEN_AI_INPUT_TOKENS,
    "gen_ai.usage.prompt_tokens",
    "llm.usage.prompt_tokens",
    "llm.token_count.prompt",
    "input",  # within langfuse's details
    "input_tokens",
    "prompt_tokens",
)
_OUTPUT_TOKENS = (
    semconv.GEN_AI_OUTPUT_TOKENS,
    "gen_ai.usage.completion_tokens",
    "llm.usage.completion_tokens",
    "llm.token_count.completion",
    "output",
    "output_tokens",
    "completion_tokens",
)

_SCRUBBED = "[Scrubbed"
_NO_IDS_BEGIN = (_SCRUBBED, "resp_")
_CONSTANTS = frozenset(
    {"none", "null", "nil", "undefined", "nan", "n/a", "unknown", "default", "agent", "session", "session_id"}
    | {"session.id", "conversation", "conversation_id", "thread", "thread_id", "chat", "chat_id", "id", "0"}
    | {"-", "{}", "[]", "true", "false", "00000000-0000-0000-0000-000000000000", "0" * 32, "[redacted]"}
)

_DEFAULT_NAMES = frozenset(
    {"langgraph", "agent workflow", "openai agent", "agentworkflow", "agent", "agents", "workflow", "unknown"}
    | {"runnablesequence", "agentexecutor", "workflow.run", "agent run", "invoke_agent", "invoke_workflow"}
    | {"strands agents", "crew", "agent_run", "invocation", "functionagent", "reactagent", "codeagent"}
    | {"toolcallingagent", "invoke_graph", "invoke_swarm"}
)
"""Names that a framework gives to what its user has not named."""
_NAMED = (_AGENT, _CHAIN)
"""The classes whose spans are named for an agent; a model call's is named for the model or the method."""
_UUID = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|[0-9a-f]{32}", re.IGNORECASE
)
_NAME_PREFIXES = (
    "invoke_agent ",
    "invoke_workflow ",
    "invoke_graph ",
    "invoke_swarm ",
    "agent_run ",
    "invocation ",
)
_NAME_SUFFIXES = (".run", ".workflow", ".agent", ".kickoff", "._execute_core")

_WAITING = frozenset({"graphinterrupt", "nodeinterrupt"})
_CANCELLED = frozenset({"generatorexit", "cancellederror", "cancelled", "canceled"})
_ABANDONED = frozenset({"abandoned stream", "stream abandoned"})
_ERROR_CLASS = re.compile(r"([A-Za-z_][\w.]*(?:Error|Exception|Exit|Interrupt|Timeout|Warning))\s*[:(]")

_INSTRUMENTATION = "opentelemetry.instrumentation."
_FOREIGN = frozenset(
    {
        "asgi",
        "wsgi",
        "fastapi",
        "flask",
        "django",
        "starlette",
        "tornado",
        "falcon",
        "pyramid",
        "aiohttp_server",
    }
    | {"aiohttp_client", "httpx", "requests", "urllib", "urllib3", "grpc", "aws_lambda"}
    | {"sqlalchemy", "dbapi", "psycopg", "psycopg2", "asyncpg", "aiopg", "mysql", "mysqlclient", "pymysql"}
    | {"pymssql", "sqlite3", "redis", "pymongo", "pymemcache", "cassandra", "elasticsearch", "tortoiseorm"}
    | {"celery", "kafka", "confluent_kafka", "aiokafka", "pika", "aio_pika", "remoulade", "boto", "boto3sqs"}
    | {"asyncclick", "click", "jinja2", "logging", "threading", "asyncio", "system_metrics"}
)
"""Instrumentations that show no agents; not botocore's, which shows the models of Bedrock."""
_BETWEEN = frozenset({"asyncio", "asyncclick", "click"})
_FOREIGN_KEYS = frozenset(
    {"http.request.method", "http.method", "http.url", "db.system", "db.system.name", "db.statement"}
    | {"rpc.system", "messaging.system", "faas.trigger"}
)
_LIKELY = (
    *(
        "genai",
        "openinference",
        "traceloop",
        "langfuse",
        "langsmith",
        "pydantic-ai",
        "strands",
        "gcp.vertex.agent",
    ),
    *("agent_framework", "agent-framework", "openai", "anthropic", "langchain", "llama", "agents", "crewai"),
    *("autogen", "semantic_kernel", "haystack", "smolagents", "agno", "otel_agent_tracker"),
)
