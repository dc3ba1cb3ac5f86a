"""Tasks: one file each, generated from a seed, nothing downloaded."""

from lightning_modules.tasks.task import TASKS, Task, Tokens, Vectors

__all__ = ["TASKS", "Task", "Tokens", "Vectors"]
