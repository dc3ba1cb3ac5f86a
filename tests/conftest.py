"""What every test gets: one thread, repeatable draws, and skips that are counted and explained."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest

# Tests run side by side; set before torch is imported by any of them.
os.environ.setdefault("OMP_NUM_THREADS", "1")

hypothesis.settings.register_profile(
    "rnndiag",
    deadline=None,  # a shared machine is slow at times, and that is no failure
    derandomize=True,  # the same examples in every run: a red CI can be repeated
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("rnndiag")

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def browser() -> str | None:
    """Path of a Chromium, or None."""
    return next((path for path in map(shutil.which, BROWSERS) if path), None)


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every problem count as large, so that lag sweeps are sampled."""
    monkeypatch.setattr("rnndiag.engine.truncation.sweep.sampling.SMALL_SECONDS", 0.0)
    monkeypatch.setattr(
        "rnndiag.engine.truncation.sweep.sampling.exact_cost", lambda *given: float("inf")
    )


@pytest.fixture
def diagnostics(tmp_path: Path) -> Callable[..., Any]:
    """Makes a callback: records every step, raises its own faults, prints and reports nothing."""
    import rnndiag

    def make(name: str = "run", **options: Any) -> Any:
        chosen = {
            "every_n_steps": None if {"budget", "schedule"} & options.keys() else 1,
            "strict": True,
            "report": False,
            **options,
        }
        return rnndiag.GradientDiagnostics(tmp_path / name, **chosen)

    return make


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of a headless Chromium. Without one a test fails in CI, and is skipped elsewhere."""
    path = browser()
    if path is None:
        missing = "no Chromium on the PATH: run scripts/install-browser"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    return path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `browser` ask for the browser first, whether they use its path or not."""
    for item in items:
        if isinstance(item, pytest.Function) and item.get_closest_marker("browser"):
            item.fixturenames.insert(0, "chromium")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not has_gpu():
        pytest.skip("no CUDA device here")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how many tests were skipped, summed by reason."""
    reasons: Counter[str] = Counter()
    for report in terminalreporter.stats.get("skipped", []):
        longrepr = report.longrepr
        text = longrepr[2] if isinstance(longrepr, tuple) else str(longrepr)
        reasons[text.removeprefix("Skipped: ")] += 1
    if reasons:
        terminalreporter.section(f"{sum(reasons.values())} tests were skipped, because")
        for reason, count in reasons.most_common():
            terminalreporter.write_line(f"{count:5d}  {reason}")
