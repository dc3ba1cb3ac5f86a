"""Keeps the calls of recurrent layers and reruns them: for the black box, the first fault, and earlier chunks."""
