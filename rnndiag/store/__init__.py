"""The run directory as a format: quantities, writer, reader. numpy and the standard library only."""
