"""Figures computed from a run and its findings, and the HTML page that shows them. numpy only."""
