"""Experiments: several trainings side by side, and the table that they make."""
