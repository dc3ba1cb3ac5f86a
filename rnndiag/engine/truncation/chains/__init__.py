"""What is truncated: one layer, a stack of layers cut at the same time step, or chunks joined across a seam."""
