"""Gradient diagnostics for recurrent nets: how far back a gradient reaches, and what cutting costs.

`import rnndiag` loads nothing but this file: each public name is imported at its first use, so a
report can be read, and a run checked, where there is no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what type checkers and editors see; a test holds it against the tables below
    from rnndiag import errors as errors
    from rnndiag import plot as plot
    from rnndiag import train as train
    from rnndiag.engine.adjoints import Adjoints as Adjoints
    from rnndiag.engine.adjoints import adjoints as adjoints
    from rnndiag.engine.cells.cell import Cell as Cell
    from rnndiag.engine.cells.registry import register_cell as register_cell
    from rnndiag.engine.contributions import contribution_norms as contribution_norms
    from rnndiag.engine.contributions import contributions as contributions
    from rnndiag.engine.gradcheck.check import gradcheck_recurrence as gradcheck_recurrence
    from rnndiag.engine.layer_run import LayerRun as LayerRun
    from rnndiag.engine.proof import Proof as Proof
    from rnndiag.engine.proof import prove as prove
    from rnndiag.engine.spectra.gate_statistics import gate_statistics as gate_statistics
    from rnndiag.engine.spectra.jacobians import jacobians as jacobians
    from rnndiag.engine.spectra.lyapunov import lyapunov as lyapunov
    from rnndiag.engine.spectra.map_exponents import lyapunov_of_map as lyapunov_of_map
    from rnndiag.engine.spectra.products import jacobian_products as jacobian_products
    from rnndiag.engine.spectra.products import singular_spectrum as singular_spectrum
    from rnndiag.engine.spectra.radius import spectral_radius as spectral_radius
    from rnndiag.engine.truncation import estimators as estimators
    from rnndiag.engine.truncation.chains.seam_memory import SeamMemory as SeamMemory
    from rnndiag.engine.truncation.estimators.estimate import Score as Score
    from rnndiag.engine.truncation.estimators.estimate import (
        compare_estimators as compare_estimators,
    )
    from rnndiag.engine.truncation.estimators.estimate import estimate as estimate
    from rnndiag.engine.truncation.gradient_scale import cell_only as cell_only
    from rnndiag.engine.truncation.gradient_scale import scale_gradient as scale_gradient
    from rnndiag.engine.truncation.sweep.credit import credit_matrix as credit_matrix
    from rnndiag.engine.truncation.sweep.lag_sweep import lag_sweep as lag_sweep
    from rnndiag.engine.truncation.sweep.lag_sweep_result import LagSweep as LagSweep
    from rnndiag.engine.truncation.sweep.loss_terms import loss_terms as loss_terms
    from rnndiag.engine.truncation.sweep.seam_sweep import seam_sweep as seam_sweep
    from rnndiag.health.diagnosis import Cause as Cause
    from rnndiag.health.diagnosis import Diagnosis as Diagnosis
    from rnndiag.health.diagnosis import Remedy as Remedy
    from rnndiag.health.diagnosis import diagnose as diagnose
    from rnndiag.health.finding import Finding as Finding
    from rnndiag.health.gate import check as check
    from rnndiag.recorder.callback import GradientDiagnostics as GradientDiagnostics
    from rnndiag.recorder.carry import carry as carry
    from rnndiag.recorder.need.entry import memory_need as memory_need
    from rnndiag.recorder.preflight import preflight as preflight
    from rnndiag.recorder.probe import probe as probe
    from rnndiag.recorder.recorder import Recorder as Recorder
    from rnndiag.report.notebook import verdict_strip as verdict_strip
    from rnndiag.report.write_report import write_report as write_report
    from rnndiag.run.run import Run as Run
    from rnndiag.run.run import open_run as open_run
    from rnndiag.run.runs import open_runs as open_runs
    from rnndiag.stats.advice import advice as advice
    from rnndiag.stats.need import MemoryNeed as MemoryNeed
    from rnndiag.stats.reach import reach as reach
    from rnndiag.stats.reach import reach_error as reach_error
    from rnndiag.store.measurement import Measurement as Measurement
    from rnndiag.store.recording import Recording as Recording
    from rnndiag.store.writer import RunWriter as RunWriter
    from rnndiag.train.unroll import truncated_unroll as truncated_unroll

__version__ = "0.1.0"

# public name -> the module that defines it
_PUBLIC: dict[str, str] = {
    "LagSweep": "rnndiag.engine.truncation.sweep.lag_sweep_result",
    "Score": "rnndiag.engine.truncation.estimators.estimate",
    "SeamMemory": "rnndiag.engine.truncation.chains.seam_memory",
    "cell_only": "rnndiag.engine.truncation.gradient_scale",
    "compare_estimators": "rnndiag.engine.truncation.estimators.estimate",
    "estimate": "rnndiag.engine.truncation.estimators.estimate",
    "scale_gradient": "rnndiag.engine.truncation.gradient_scale",
    "seam_sweep": "rnndiag.engine.truncation.sweep.seam_sweep",
    "truncated_unroll": "rnndiag.train.unroll",
    "credit_matrix": "rnndiag.engine.truncation.sweep.credit",
    "lag_sweep": "rnndiag.engine.truncation.sweep.lag_sweep",
    "loss_terms": "rnndiag.engine.truncation.sweep.loss_terms",
    "Adjoints": "rnndiag.engine.adjoints",
    "Cell": "rnndiag.engine.cells.cell",
    "Cause": "rnndiag.health.diagnosis",
    "Diagnosis": "rnndiag.health.diagnosis",
    "Remedy": "rnndiag.health.diagnosis",
    "diagnose": "rnndiag.health.diagnosis",
    "Finding": "rnndiag.health.finding",
    "GradientDiagnostics": "rnndiag.recorder.callback",
    "LayerRun": "rnndiag.engine.layer_run",
    "MemoryNeed": "rnndiag.stats.need",
    "Measurement": "rnndiag.store.measurement",
    "Proof": "rnndiag.engine.proof",
    "Recorder": "rnndiag.recorder.recorder",
    "Recording": "rnndiag.store.recording",
    "Run": "rnndiag.run.run",
    "RunWriter": "rnndiag.store.writer",
    "adjoints": "rnndiag.engine.adjoints",
    "advice": "rnndiag.stats.advice",
    "carry": "rnndiag.recorder.carry",
    "check": "rnndiag.health.gate",
    "contribution_norms": "rnndiag.engine.contributions",
    "contributions": "rnndiag.engine.contributions",
    "gate_statistics": "rnndiag.engine.spectra.gate_statistics",
    "gradcheck_recurrence": "rnndiag.engine.gradcheck.check",
    "jacobian_products": "rnndiag.engine.spectra.products",
    "jacobians": "rnndiag.engine.spectra.jacobians",
    "lyapunov": "rnndiag.engine.spectra.lyapunov",
    "lyapunov_of_map": "rnndiag.engine.spectra.map_exponents",
    "memory_need": "rnndiag.recorder.need.entry",
    "open_run": "rnndiag.run.run",
    "open_runs": "rnndiag.run.runs",
    "probe": "rnndiag.recorder.probe",
    "preflight": "rnndiag.recorder.preflight",
    "prove": "rnndiag.engine.proof",
    "reach": "rnndiag.stats.reach",
    "reach_error": "rnndiag.stats.reach",
    "register_cell": "rnndiag.engine.cells.registry",
    "singular_spectrum": "rnndiag.engine.spectra.products",
    "spectral_radius": "rnndiag.engine.spectra.radius",
    "verdict_strip": "rnndiag.report.notebook",
    "write_report": "rnndiag.report.write_report",
}

# public module -> its full name
_PUBLIC_MODULES = {
    "plot": "rnndiag.plot",
    "estimators": "rnndiag.engine.truncation.estimators",
    "errors": "rnndiag.errors",
    "train": "rnndiag.train",
}

__all__ = ["__version__", *_PUBLIC, *_PUBLIC_MODULES]


def __getattr__(name: str) -> object:
    """Import a public name at its first use, and cache it."""
    if name in _PUBLIC:
        value = getattr(import_module(_PUBLIC[name]), name)
    elif name in _PUBLIC_MODULES:
        value = import_module(_PUBLIC_MODULES[name])
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
