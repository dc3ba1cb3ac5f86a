"""What the numbers of a run say: reach, window, chunk, systematic part, advice, headline. numpy only."""
