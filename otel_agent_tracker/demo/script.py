"""What happens in the demo: people talk to agents, and the ledger is kept."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

from pydantic_ai import UnexpectedModelBehavior
from pydantic_ai.messages import ModelMessage

from otel_agent_tracker import (
    AgentStatus,
    AsyncAgentOperationsTracker,
    AsyncAgentPerformanceTracker,
    ConversationQuality,
    Turn,
)
from otel_agent_tracker.demo import handover
from otel_agent_tracker.demo.agents import (
    DemoAgent,
    WarehouseError,
    agent_id,
    museum_guide,
    support_bot,
    travel_desk,
)
from otel_agent_tracker.demo.ledger import Held, Ledger, TurnTime
from otel_agent_tracker.demo.stopwatch import Stopwatch
from otel_agent_tracker.semconv import Outcome

__all__ = ["Script"]

Scene = Callable[[], Coroutine[Any, Any, None]]

TTL_SECONDS = 2.0
IDLE_SECONDS = 1.0
PATIENCE_SECONDS = 20.0
SCENES_AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class Visit:
    """A conversation from start to end: who says what, and how good it was."""

    user_id: str
    prompts: Sequence[str]
    quality: int | None = None
    feedback: str | None = None


class Script:
    """Plays everything against the tracker at `url`, with the library's state below `folder`.

    `on_scene` is called at the end of each of the `scenes`.
    """

    def __init__(self, url: str, folder: Path, on_scene: Callable[[], object]) -> None:
        self.ledger = Ledger()
        self._url = url
        self._folder = folder
        self._on_scene = on_scene
        self._support, self._travel, self._museum = support_bot(), travel_desk(), museum_guide()
        self._places = asyncio.Semaphore(SCENES_AT_ONCE)
        self._tracker = AsyncAgentPerformanceTracker(url, state_dir=folder)
        self._operations = AsyncAgentOperationsTracker(url, state_dir=folder)
        self._hasty = AsyncAgentPerformanceTracker(
            url,
            state_dir=folder / "hasty",
            session_ttl_hours=TTL_SECONDS / 3600,
            idle_minutes=IDLE_SECONDS / 60,
        )
        self.scenes = self._all_scenes()

    async def play(self) -> None:
        """Play all scenes, a few at a time; returns when the tracker has heard of everything."""
        async with self._tracker, self._operations, self._hasty:
            await self._open()
            await asyncio.gather(*map(self._in_its_place, self.scenes))
            await self._close()
            await self._wait_for_the_unattended()
            await self._tracker.flush(PATIENCE_SECONDS)

    async def _in_its_place(self, scene: Scene) -> None:
        async with self._places:
            await scene()
        self._on_scene()

    def _all_scenes(self) -> list[Scene]:
        return [
            *(partial(self._visit, self._support, visit) for visit in _SUPPORT_VISITS),
            *(partial(self._visit, self._travel, visit) for visit in _TRAVEL_VISITS),
            partial(self._abandoned, self._support, "ivo", "Where is order 1007?"),
            partial(self._abandoned, self._support, "jana", "Please refund 1008"),
            partial(self._abandoned, self._travel, "kai", "A train to Rome, please"),
            partial(self._fallen_silent, self._travel, "channel-4711", "A train to Oslo, please"),
            self._streamed,
            self._rated_afterwards,
            self._taken_over,
            self._come_back,
            self._still_open,
        ]

    # --- scenes ---------------------------------------------------------------------------------------------

    async def _visit(self, agent: DemoAgent, visit: Visit) -> None:
        """One conversation in one block; what its tools raise makes it fail."""
        conversation = self._tracker.conversation(agent_id(agent), user_id=visit.user_id)
        try:
            async with conversation:
                history: list[ModelMessage] = []
                for prompt in visit.prompts:
                    history = await self._ask(conversation.turn(), agent, prompt, history)
                if visit.quality is not None:
                    conversation.rate(visit.quality, visit.feedback)
                conversation.set_message_count(len(history))
        except (WarehouseError, UnexpectedModelBehavior) as error:
            kind = f"{type(error).__module__}.{type(error).__qualname__}"
            self._note(
                conversation.session_id, agent, Outcome.FAILED, error_type=kind, error_message=str(error)
            )
        else:
            self._note(conversation.session_id, agent, Outcome.COMPLETED, quality=visit.quality)

    async def _abandoned(self, agent: DemoAgent, user_id: str, prompt: str) -> None:
        """Somebody asks and never comes back."""
        session_id = await self._hasty.start_conversation(agent_id(agent), user_id=user_id)
        await self._ask(self._hasty.turn(session_id), agent, prompt)
        self._note(session_id, agent, Outcome.EXPIRED)

    async def _fallen_silent(self, agent: DemoAgent, session_id: str, prompt: str) -> None:
        """A channel that nobody starts or ends: it is over when it has been silent for long enough."""
        await self._ask(self._hasty.turn(session_id, agent_id=agent_id(agent)), agent, prompt)
        self._note(session_id, agent, Outcome.COMPLETED, idle=True)

    async def _streamed(self) -> None:
        """The answer comes word by word; the turn lasts as long as the stream."""
        agent, stopwatch = self._museum, Stopwatch()
        async with self._tracker.conversation(agent_id(agent), user_id="lena") as conversation:
            async with conversation.turn() as turn:
                stopwatch.enter()
                async with agent.run_stream("What is picture 12?") as answer:
                    async for _ in turn.stream(answer.stream_text(delta=True)):
                        stopwatch.lap()
            self.ledger.turns.append(TurnTime(agent_id(agent), stopwatch.stop()))
        self._note(conversation.session_id, agent, Outcome.COMPLETED)

    async def _rated_afterwards(self) -> None:
        """The conversation is over when its user finds the thumb."""
        agent = self._support
        async with self._tracker.conversation(agent_id(agent), user_id="mira") as conversation:
            await self._ask(conversation.turn(), agent, "Please refund 1009")
        await self._tracker.record_feedback(conversation.session_id, thumbs="up")
        best = ConversationQuality.EXCELLENT
        self._note(conversation.session_id, agent, Outcome.COMPLETED, quality=best)

    async def _taken_over(self) -> None:
        """A second process goes on with the conversation and ends it."""
        agent = self._travel
        session_id = await self._tracker.start_conversation(agent_id(agent), user_id="nils")
        await self._ask(self._tracker.turn(session_id), agent, "A train to Lisbon, please")
        report = await handover.take_over(self._url, self._folder, session_id)
        self.ledger.turns.append(TurnTime(agent_id(agent), report.seconds))
        self._note(session_id, agent, Outcome.COMPLETED, quality=report.quality)

    async def _come_back(self) -> None:
        """A session of two conversations: a turn after the end of the first opens the second."""
        agent = self._travel
        session_id = await self._tracker.start_conversation(agent_id(agent), user_id="olga")
        for prompt, quality in (("A train to Bern, please", 3), ("And a train to Turin", 5)):
            await self._ask(self._tracker.turn(session_id), agent, prompt)
            await self._tracker.end_conversation(session_id, quality)
            self._note(session_id, agent, Outcome.COMPLETED, quality=quality)

    async def _still_open(self) -> None:
        """Not everything is over when the demo is."""
        agent = self._museum
        session_id = await self._tracker.start_conversation(agent_id(agent), user_id="paul")
        self._note(session_id, agent, Outcome.ACTIVE)

    # --- agents ---------------------------------------------------------------------------------------------

    async def _open(self) -> None:
        for agent in (self._support, self._travel, self._museum):
            await self._operations.register_agent(agent_id(agent), version("pydantic-ai-slim"))
            await self._say(agent, AgentStatus.ACTIVE)

    async def _close(self) -> None:
        await self._operations.log_activity(agent_id(self._support), "tidied up", {"orders": 3}, duration=0.2)
        self.ledger.activities += 1
        await self._say(self._travel, AgentStatus.IDLE)
        await self._say(self._museum, AgentStatus.BUSY)

    async def _say(self, agent: DemoAgent, status: AgentStatus) -> None:
        before = self.ledger.statuses.get(agent_id(agent))
        await self._operations.update_agent_status(agent_id(agent), status, before)
        self.ledger.statuses[agent_id(agent)] = status

    # --- steps ----------------------------------------------------------------------------------------------

    async def _ask(
        self, turn: Turn, agent: DemoAgent, prompt: str, history: Sequence[ModelMessage] = ()
    ) -> list[ModelMessage]:
        """One turn; returns all messages so far."""
        stopwatch = Stopwatch()
        try:
            async with turn:
                stopwatch.enter()
                try:
                    result = await agent.run(prompt, message_history=list(history))
                finally:
                    stopwatch.lap()
        finally:
            self.ledger.turns.append(TurnTime(agent_id(agent), stopwatch.stop()))
        return result.all_messages()

    def _note(self, session_id: str, agent: DemoAgent, outcome: Outcome, **more: Any) -> None:
        held = Held(session_id=session_id, agent_id=agent_id(agent), outcome=outcome, **more)
        self.ledger.conversations.append(held)

    async def _wait_for_the_unattended(self) -> None:
        """Until the tracker has heard that nobody came back, or patience is at an end."""
        until = perf_counter() + PATIENCE_SECONDS
        unattended = [held for held in self.ledger.conversations if held.unattended]
        while perf_counter() < until:
            await self._hasty.flush(PATIENCE_SECONDS)  # it also looks for sessions that are over
            rates = await self._hasty.get_success_rates()
            if rates["expired"] + rates["idle_ended"] >= len(unattended):
                return
            await asyncio.sleep(0.1)


_SUPPORT_VISITS = (
    Visit("ana", ("Where is order 1001?", "Thank you"), 5),
    Visit("ben", ("Where is order 1002?", "Please refund 1002"), 4, "quick, but I had to ask twice"),
    Visit("cleo", ("Please refund 1003",), 5, "money back within a minute"),
    Visit("dan", ("Where is order 1004?", "Where is order 1005?", "Thanks"), 3),
    Visit("eva", ("Where is order 1006?",)),
    Visit("finn", ("Where is order 9001?",)),
    Visit("gwen", ("Please refund 1010", "And where is order 9002?")),
)
_TRAVEL_VISITS = (
    Visit("hugo", ("A train to Vienna, please",), 4),
    Visit("ida", ("A train to Paris, please", "A train to Nice, please"), 2, "too slow"),
    Visit("joe", ("A train to Copenhagen, please", "Thank you"), 1, "fell asleep waiting"),
    Visit("kim", ("Is there a night train to Rome?",)),
)
