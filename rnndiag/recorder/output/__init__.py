"""The recorder's output: pending recording, run on disk, screen, logger scalars, report."""
