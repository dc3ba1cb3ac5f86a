"""The frozen gate: a model's weights and one batch, stored without pickle and rerun whenever the code changes."""
