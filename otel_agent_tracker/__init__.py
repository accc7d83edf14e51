"""Conversations of AI agents on OpenTelemetry."""
