"""The run directory: written by training, read by everything else. numpy and the standard library only."""
