"""Runs as pandas tables and xarray datasets. pandas and xarray are imported only here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from rnndiag.errors import NotInstalled, RunUnreadable
from rnndiag.store.measurement import Series
from rnndiag.store.quantities import MODEL
from rnndiag.store.text import meant

if TYPE_CHECKING:
    import pandas
    import xarray

    from rnndiag.store.reader import StoredRun


_FIXED = frozenset(("run", "step", "phase", "quantity", "layer", "value"))


def _pandas() -> Any:
    try:
        import pandas
    except ImportError:
        raise NotInstalled(
            "to_frame() needs pandas, which is not installed.",
            "Run: pip install pandas. `rnndiag export` writes csv and json without it.",
        ) from None
    return pandas


def _xarray() -> Any:
    try:
        import xarray
    except ImportError:
        raise NotInstalled(
            "to_xarray() needs xarray, which is not installed.", "Run: pip install xarray"
        ) from None
    return xarray


def chosen(run: StoredRun, quantity: str | None, layer: str | None) -> list[tuple[str, str]]:
    """Every (quantity, layer) that is selected, in the order of the run."""
    if quantity is not None:
        return [(quantity, name) for name in run.layers_for(quantity, layer)]
    layers = dict.fromkeys(of for _, of in run.collector.keys)
    if layer is not None and layer not in layers:
        raise RunUnreadable(
            f"{run.name} has nothing of layer {layer!r}.",
            f"{meant(layer, layers)}It has {', '.join(layers) or 'no layers'}.",
        )
    return [
        (name, of)
        for name in run.quantities
        for of in run.layers_of(name)
        if layer is None or of == layer
    ]


def column_of(dim: str, taken: frozenset[str] = frozenset()) -> str:
    """The column of a dim: its name, or `unit_dim` where a column has that name already."""
    return f"{dim}_dim" if dim in _FIXED | taken else dim


def columns(series: Series, taken: frozenset[str] = frozenset()) -> dict[str, np.ndarray]:
    """A series as columns of a long table, without its padding: step, phase, quantity, layer, the dims, value."""
    shape = series.values.shape
    grid = np.indices(shape).reshape(len(shape), -1)
    kept = _unpadded(series, grid)
    grid = grid[:, kept]
    table: dict[str, np.ndarray] = {"step": series.steps[grid[0]]}
    for name in ("phase", "name", "layer"):
        table["quantity" if name == "name" else name] = np.full(
            grid.shape[1], getattr(series, name), object
        )
    for dim, places in zip(series.dims[1:], grid[1:], strict=True):
        labels = series.coordinates.get(dim)
        table[column_of(dim, taken)] = (
            places if labels is None else np.asarray(labels, object)[places]
        )
    table["value"] = series.values.reshape(-1)[kept]
    return table


def _unpadded(series: Series, grid: np.ndarray) -> np.ndarray:
    kept = np.ones(grid.shape[1], bool)
    for dim, places in zip(series.dims[1:], grid[1:], strict=True):
        if dim not in series.coordinates:
            kept &= places < series.lengths[dim][grid[0]]
    return kept


def to_frame(run: StoredRun, quantity: str | None, layer: str | None) -> pandas.DataFrame:
    """The long table of `Run.to_frame`."""
    pandas = _pandas()
    tables = [pandas.DataFrame(columns(series)) for series in _readable(run, quantity, layer)]
    if not tables:
        return pandas.DataFrame(columns=["step", "phase", "quantity", "layer", "value"])
    table = pandas.concat(tables, ignore_index=True)
    return table[[name for name in table.columns if name != "value"] + ["value"]]


def _readable(run: StoredRun, quantity: str | None, layer: str | None) -> list[Series]:
    found = []
    for name, of in chosen(run, quantity, layer):
        for phase in run.phases:
            series = run.collector.series(name, of, None, None, phase)
            if series is not None:
                found.append(series)
    return found


def joined(
    runs: Mapping[str, StoredRun], quantity: str | None, layer: str | None
) -> pandas.DataFrame:
    """Long tables of several runs, with a first column `run`; runs without the quantity or the layer are left out."""
    pandas = _pandas()
    tables = []
    for name, run in runs.items():
        if any(quantity in (None, q) and layer in (None, of) for q, of in run.collector.keys):
            table = to_frame(run, quantity, layer)
            table.insert(0, "run", name)
            tables.append(table)
    if not tables:
        return pandas.DataFrame(columns=["run", "step", "phase", "quantity", "layer", "value"])
    return pandas.concat(tables, ignore_index=True)


def data_array(series: Series) -> Any:
    """One series as a DataArray, with unit and scale as attributes, and a dim `layer`."""
    xarray = _xarray()
    places: dict[str, Any] = {dim: list(given) for dim, given in series.coordinates.items()}
    places["step"] = series.steps
    for dim, size in series.sizes.items():
        places.setdefault(dim, np.arange(size))
    facts = {"unit": series.unit, "scale": series.scale, "phase": series.phase}
    array = xarray.DataArray(series.values, places, series.dims, series.name, facts)
    return array.expand_dims(layer=[series.layer])


def to_xarray(run: StoredRun, quantity: str | None, layer: str | None) -> xarray.Dataset:
    """The dataset of `Run.to_xarray`: of the main phase; dims are joined by their labels and padded with NaN."""
    module = _xarray()
    groups: dict[str, list[Any]] = {}
    for name, of in chosen(run, quantity, layer):
        series = run.collector.series(name, of, None, None, run.phases[0])
        if series is not None:
            groups.setdefault(name, []).append(data_array(series))
    variables = [
        arrays[0].isel(layer=0, drop=True)
        if [array.layer.item() for array in arrays] == [MODEL]
        else arrays[0]
        if len(arrays) == 1
        else module.concat(arrays, "layer", join="outer", combine_attrs="override")
        for arrays in groups.values()
    ]
    merged: xarray.Dataset = module.merge(variables, join="outer", combine_attrs="override")
    merged.attrs = {"run": run.name, "format": "rnndiag"}
    return merged
