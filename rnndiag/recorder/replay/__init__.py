"""Keeps the calls of recurrent layers and runs them again: the black box, the first fault, and earlier chunks."""
