"""A frozen gate: a model's weights and one batch, stored without pickle, run again whenever the code has changed."""
