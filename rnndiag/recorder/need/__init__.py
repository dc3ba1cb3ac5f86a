"""Need, use and reach by lag of a trained model; `rnndiag.memory_need` is in `entry`."""
