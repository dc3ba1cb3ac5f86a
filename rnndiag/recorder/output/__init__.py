"""What leaves the recorder: the pending recording, the run on disk, the screen, logger scalars, the report."""
