"""One conversation, from its start to a quality, and what the tracker then knows of it.

Start a tracker with `otel-agent-tracker serve`, then run this with AGENT_TRACKER_URL=http://localhost:8700.
"""

from __future__ import annotations

from otel_agent_tracker import AgentPerformanceTracker


def answer(question: str) -> str:
    """Stands for your agent."""
    return f"You asked: {question}"


def main() -> None:
    """Talk, rate, and ask the tracker."""
    with AgentPerformanceTracker() as tracker:
        with tracker.conversation("support-bot", user_id="u1", metadata={"channel": "web"}) as conversation:
            for question in ("Where is my parcel?", "When does it arrive?"):
                with conversation.turn():
                    print(answer(question))
            conversation.rate(5, feedback="quick")
        tracker.flush()
        known = tracker.get_session_info(conversation.session_id)
    if known is not None:
        print(f"{known['status']} with quality {known['quality_score']:g} after {known['turns']} turns")


if __name__ == "__main__":
    main()
