"""Truncation measured on the user's own autograd graph, cut at the carried state of every step."""
