"""The report reaches loggers that take files, and no other; a logger that fails does not fail the fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rnndiag.recorder.output.hand_over import hand_over


class Experiment:
    """Remembers how it was called."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **options: self.calls.append((name, args, options))


class WandbLogger:
    def __init__(self) -> None:
        self.experiment = Experiment()


class MyWandbLogger(WandbLogger):
    """One of a person's own."""


class MLFlowLogger:
    run_id = "abc"

    def __init__(self) -> None:
        self.experiment = Experiment()


class CSVLogger:
    def __init__(self) -> None:
        self.experiment = Experiment()


def test_the_report_goes_to_loggers_that_take_files(tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    loggers = [MyWandbLogger(), MLFlowLogger(), CSVLogger()]
    assert hand_over(file, loggers) == ["WandbLogger", "MLFlowLogger"]
    kept = {"base_path": str(tmp_path), "policy": "now"}
    assert loggers[0].experiment.calls == [("save", (str(file),), kept)]
    assert loggers[1].experiment.calls == [("log_artifact", ("abc", str(file)), {})]
    assert loggers[2].experiment.calls == []
