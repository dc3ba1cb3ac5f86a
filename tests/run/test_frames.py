"""Tables and datasets: every number once, no padding, clear words where a package is missing."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from sample_run import LAYER, Write

from rnndiag.errors import NotInstalled, RunUnreadable
from rnndiag.run.run import open_run
from rnndiag.store.measurement import Measurement
from rnndiag.store.recording import Recording
from rnndiag.store.writer import RunWriter


@pytest.fixture
def ragged(tmp_path: Path) -> Path:
    """Two layers, lengths 3 and 5, one NaN that is no padding."""
    with RunWriter(tmp_path / "ragged") as writer:
        for step, lags in ((0, 3), (10, 5)):
            values = np.arange(lags) + 0.5
            values[0] = np.nan
            made = [
                Measurement.of("window_bias", values + n, layer) for n, layer in enumerate("ab")
            ]
            made.append(Measurement.of("gradient_norm", [1.0, 2.0], "a", {"parameter": ("w", "v")}))
            writer.append(
                Recording(step, measurements=(*made, Measurement.of("loss", float(step))))
            )
    return tmp_path / "ragged"


def test_a_table_holds_each_number_once_and_no_padding(ragged: Path) -> None:
    frame = open_run(ragged).to_frame("window_bias")
    assert list(frame.columns) == ["step", "phase", "quantity", "layer", "lag", "value"]
    assert len(frame) == 2 * (3 + 5)
    row = frame[(frame.step == 10) & (frame.layer == "b") & (frame.lag == 4)]
    assert row.value.tolist() == [5.5]
    assert frame.value.isna().sum() == 4
    assert set(open_run(ragged).to_frame("window_bias", "a").layer) == {"a"}


def test_a_table_of_everything(ragged: Path) -> None:
    frame = open_run(ragged).to_frame()
    assert set(frame.quantity) == {"window_bias", "gradient_norm", "loss"}
    assert len(frame) == 16 + 4 + 2
    assert set(frame.parameter.dropna()) == {"w", "v"}
    with pytest.raises(RunUnreadable, match="no quantity"):
        open_run(ragged).to_frame("reach")


def test_a_dataset_has_named_dims(ragged: Path) -> None:
    data = open_run(ragged).to_xarray()
    assert data.window_bias.dims == ("layer", "step", "lag")
    assert data.window_bias.sel(layer="b", step=10, lag=4) == 5.5
    assert np.isnan(data.window_bias.sel(step=0, lag=4)).all()
    assert data.gradient_norm.sel(layer="a", step=0, parameter="v") == 2
    assert data.loss.dims == ("step",)
    assert data.loss.attrs["unit"] == "loss"
    assert data.attrs == {"run": "ragged", "format": "rnndiag"}
    assert list(open_run(ragged).to_xarray("loss").data_vars) == ["loss"]


def test_an_empty_run_has_empty_tables(tmp_path: Path) -> None:
    RunWriter(tmp_path / "run").close()
    run = open_run(tmp_path / "run")
    assert run.to_frame().empty
    assert not run.to_xarray().data_vars


@pytest.mark.parametrize(("package", "call"), [("pandas", "to_frame"), ("xarray", "to_xarray")])
def test_a_missing_package_is_named(
    write: Write, monkeypatch: pytest.MonkeyPatch, package: str, call: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    run = open_run(write([0]))
    with pytest.raises(NotInstalled, match=rf"{call}\(\) needs {package}.*pip install {package}"):
        getattr(run, call)()
    assert run[("loss", "model")].values.size
    assert run.layers == (LAYER,)


def test_a_quantity_of_the_model_and_of_a_layer(tmp_path: Path) -> None:
    pytest.importorskip("xarray")
    with RunWriter(tmp_path / "run") as writer:
        made = (Measurement.of("loss", 1.0), Measurement.of("loss", 2.0, LAYER))
        writer.append(Recording(0, measurements=made))
    dataset = open_run(tmp_path / "run").to_xarray()
    assert dataset.loss.sel(step=0).to_series().to_dict() == {"model": 1.0, LAYER: 2.0}
