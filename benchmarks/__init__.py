"""What it costs and what it can do, in ratios to what people know: ``python -m benchmarks``."""
