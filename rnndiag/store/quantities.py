"""The registry of stored quantities, shared by writer, reader, report and docs.

A quantity is data: its dims, unit, scale and one sentence of meaning. `owner` tells whether it belongs to each layer
run or to the whole model (stored under the layer name `model`). Values of scale `log` are natural logarithms; a log of
exact zero is -inf. The rows are in rnndiag/store/quantity_table.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast

from rnndiag.store.quantity_table import TABLE

Scale = Literal["linear", "log"]
Owner = Literal["layer", "model"]
Pool = Literal["mean", "log mean", "sum", "worst", "error", "lowest rank"]
"""How the ranks of one step are pooled: `mean` averages the quantity itself (of a log, the exponentials)."""

MODEL = "model"
"""The layer name under which quantities of the whole model are stored."""

STATS = ("mean", "q05", "q50", "q95")
"""Labels of the dim `stat`: the mean over samples and three quantiles."""

PROFILE_STATS = ("profile", "q05", "q25", "q50", "q75", "q95")
"""Labels of the dim `profile_stat`: the credit profile itself and quantiles over outputs and samples."""

SCORES = (
    "bias",
    "sd",
    "rmse",
    "cosine",
    "draw_cosine",
    "cost",
    "memory",
    "bias_error",
    "sd_error",
    "ranking",
    "rmse_error",
    "cosine_error",
    "draw_cosine_error",
)
"""Labels of the dim `score`: the scores of an estimator. `*_error` is a standard error, 0 where the score is exact."""

NEED_GROUP_STATS = (
    *("low", "high", "gain", "lower", "upper"),
    *("p", "p_over_control", "significant"),
)
NEED_PARTS = ("present", "within", "beyond")
NEED_PART_STATS = ("gain", "lower", "upper", "p", "p_over_control")
NEED_USE_STATS = ("inputs", "rise", "lower", "upper")
NEED_SCREEN_KINDS = ("linear", "product", "bag")
NEED_SCREEN_STATS = ("explained", "deviation")
NEED_FACTS = (
    *("loss", "scale", "floor", "used_memory", "burn_in", "beyond", "limit", "max_lag", "reach"),
    *("sequences", "n_sequences", "rows", "peak_lag", "autocorrelation", "gap", "plain_steps"),
)
"""Labels of the dims of the quantities that store a result of `memory_need`."""

FIXED_COORDINATES: dict[str, tuple[str, ...]] = {
    "stat": STATS,
    "profile_stat": PROFILE_STATS,
    "score": SCORES,
    "component": ("re", "im"),
    "seam": ("own", "kept"),
    "need_group_stat": NEED_GROUP_STATS,
    "need_part": NEED_PARTS,
    "need_part_stat": NEED_PART_STATS,
    "need_use_stat": NEED_USE_STATS,
    "need_fact": NEED_FACTS,
    "need_screen_kind": NEED_SCREEN_KINDS,
    "need_screen_stat": NEED_SCREEN_STATS,
    "part_stat": ("value", "se_sequences", "se_blocks"),
}
"""Labels of the dims whose meaning never changes. All other labels travel with the recording."""


@dataclass(frozen=True)
class Quantity:
    """One stored quantity. Every dim's length is free unless its labels are fixed."""

    name: str
    dims: tuple[str, ...]
    unit: str
    meaning: str
    scale: Scale = "linear"
    owner: Owner = "layer"
    group: str = "contributions"
    since: str = "0.1"
    pool: Pool = "mean"

    def as_json(self) -> dict[str, Any]:
        """The entry as stored in every segment of a run."""
        return {**asdict(self), "dims": list(self.dims)}


def fits_registry(name: str, dims: tuple[str, ...], coordinates: Mapping[str, object]) -> bool:
    """Whether an array has the dims that this version knows of its quantity, with all labels that are fixed.

    A quantity that is not registered fits in any form.
    """
    known = QUANTITIES.get(name)
    if known is None:
        return True
    return dims == known.dims and all(d in coordinates for d in dims if d in FIXED_COORDINATES)


QUANTITIES: dict[str, Quantity] = {}
"""Every registered quantity by its name."""


def register(quantity: Quantity) -> Quantity:
    """Add one quantity; raises if the name is registered already."""
    if quantity.name in QUANTITIES:
        raise ValueError(f"quantity {quantity.name!r} is registered twice")
    QUANTITIES[quantity.name] = quantity
    return quantity


def parse(table: str) -> list[Quantity]:
    """The quantities of a table in the form of rnndiag/store/quantity_table.py."""
    found: list[Quantity] = []
    group, owner = "", "layer"
    lines = table.strip().splitlines()
    while lines:
        line = lines.pop(0)
        if line.startswith("["):
            group, owner = line.strip("[]").split(", ")
            continue
        name, dims, unit, scale, *pool = (part.strip() for part in line.split("|"))
        meaning = []
        while lines and lines[0].startswith(" "):
            meaning.append(lines.pop(0).strip())
        row = Quantity(
            name,
            () if dims == "-" else tuple(dims.split()),
            unit,
            " ".join(meaning),
            cast(Scale, scale),
            cast(Owner, owner),
            group,
            pool=cast(Pool, pool[0] if pool else "mean"),
        )
        found.append(row)
    return found


for _row in parse(TABLE):
    register(_row)
