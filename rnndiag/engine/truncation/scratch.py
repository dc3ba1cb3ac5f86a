"""Memory that is used again from one lag to the next: fresh pages cost as much as the arithmetic."""

from __future__ import annotations

from torch import Tensor


class Scratch:
    """Memory that visits reuse: what a visit holds is overwritten by the next one, what it carried by the one after."""

    def __init__(self) -> None:
        self._held: dict[tuple[int, str], Tensor] = {}
        self.turn = 0
        """0 or 1: by turns, so that the cotangent that comes in is not overwritten by what goes out."""

    def room(self, number: int, name: str, like: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Memory of this shape, kept from the first visit on; it may shrink along its first axis."""
        held = self._held.get((number, name))
        if held is None or held.shape[0] < shape[0] or held.shape[1:] != shape[1:]:
            held = self._held[number, name] = like.new_empty(shape)
        return held[: shape[0]]
