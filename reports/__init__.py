"""The gallery: recorded runs and their pages."""
