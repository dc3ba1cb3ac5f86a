"""How a run shows itself in a notebook: through the package's door, as reading a run must not need the report."""

from __future__ import annotations


class InNotebooks:
    """Gives a run `_repr_html_`."""

    def _repr_html_(self) -> str:
        """The verdict strip of the report."""
        import rnndiag

        shown: str = rnndiag.verdict_strip(self)  # type: ignore[arg-type]
        return shown
