"""Gradient check of a recurrent kernel: every path of its backward pass, at every lag and every seam."""
