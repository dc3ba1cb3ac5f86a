"""Refuses models with parameters sharded over processes (FSDP): no rank holds a whole recurrent weight."""

from __future__ import annotations

from torch import Tensor, nn

from rnndiag.errors import NotSupported


def refuse_sharded(model: nn.Module) -> None:
    """Raise `NotSupported` if a parameter is a shard: a DTensor of `fully_shard`, or FSDP's flat parameter.

    A recording proves contributions against the gradient of the whole weight on one rank. Of a sharded weight each
    rank holds a part of a gradient that is already averaged over all ranks, with which nothing can be proved.
    """
    for name, parameter in model.named_parameters():
        how = _sharded(parameter)
        if how:
            raise NotSupported(
                f"{name} is sharded over processes ({how}), and a recording needs the whole recurrent weights and this "
                "rank's own gradient.",
                "Record a run of the same model under DistributedDataParallel or on one process, or probe it there.",
            )


def _sharded(parameter: Tensor) -> str:
    """The kind of sharding of a parameter; empty: it is whole."""
    if hasattr(parameter, "full_tensor") and hasattr(parameter, "placements"):
        return "" if all(one.is_replicate() for one in parameter.placements) else "fully_shard"
    return "FSDP" if hasattr(parameter, "_is_flat_param") else ""
