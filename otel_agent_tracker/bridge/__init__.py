"""OTLP in, the tracker's requests out: what `otel-agent-tracker bridge` runs."""
