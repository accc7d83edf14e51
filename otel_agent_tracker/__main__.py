"""`python -m otel_agent_tracker`: the command line."""

from otel_agent_tracker.cli import main

__all__: list[str] = []

if __name__ == "__main__":
    main(prog_name="otel-agent-tracker")
