"""Need, use and reach over lag, of a trained model: `rnndiag.memory_need` stands in `entry`."""
