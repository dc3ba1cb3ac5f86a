"""Statistics of a run: reach, window, chunk, systematic bias, advice, headline. numpy only."""
