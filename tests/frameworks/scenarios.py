"""What is played with each framework: which conversations, and what is asked in each."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["ABANDONED", "BARE", "FAILING", "STREAM", "TALK", "TASKS", "THREADS", "Scenario"]


class Scenario(NamedTuple):
    """Conversations, and the questions that are asked in each of them."""

    conversations: tuple[str, ...]
    questions: tuple[str, ...]


BARE = "bare"
"""One turn with nothing of ours around it, whatever the framework shows of the conversation's id."""
TALK = Scenario(("talk",), ("What is the weather in Paris?", "And what do I wear?", "Tell me more."))
FAILING = Scenario(("failing",), ("Hello?", "Please fail."))
THREADS = Scenario(("thread-1", "thread-2"), ("Let us think together.", "And once more together."))
TASKS = Scenario(("task-1", "task-2"), THREADS.questions)
STREAM = Scenario(("stream",), ("What is the weather in Paris?",))
ABANDONED = Scenario(("abandoned",), ("Tell me a long story.",))
