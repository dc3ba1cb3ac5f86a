"""The recurrence to be truncated: one layer, a stack of layers cut at one time step, or chunks joined across a seam."""
