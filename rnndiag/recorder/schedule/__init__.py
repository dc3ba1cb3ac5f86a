"""When to record, and what the diagnostics cost."""
