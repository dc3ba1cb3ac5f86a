"""Benchmarks: each is a script that asks one question; `python -m benchmarks.run_all` runs them all."""
