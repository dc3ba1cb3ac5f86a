"""The pytest plugin: a fixture `rnndiag` that records trainings in tests, and keeps the runs of tests that fail.

    def test_credit_reaches_the_delay(rnndiag):
        trainer = L.Trainer(max_steps=300, callbacks=[rnndiag.callback(every_n_steps=50)])
        trainer.fit(model, loader)
        assert 10 <= rnndiag.run().reach(0.9) <= 40
        rnndiag.check()

The fixture has everything that the module `rnndiag` has, so that its name hides nothing: in a test
`rnndiag.probe(model)` is the module's. Its own `run`, `check`, `preflight`, `diagnose` and `gradcheck` concern this
test.

Loading it costs no torch: the callback and the preflight load it where a test uses them.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from rnndiag.engine.gradcheck.result import GradcheckResult
    from rnndiag.health.diagnosis import Diagnosis
    from rnndiag.health.finding import Finding
    from rnndiag.run.run import Run

_FIXTURE = pytest.StashKey["RnndiagFixture"]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the plugin, in a group of their own."""
    group = parser.getgroup("rnndiag", "gradient diagnostics of recurrent nets")
    group.addoption(
        "--rnndiag-dir", metavar="DIR", help="keep the runs of failed tests in this folder"
    )
    group.addoption(
        "--rnndiag-report",
        action="store_true",
        help="write an HTML report into the runs of failed tests",
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, Any, Any]:
    """Add the paths of its runs to the report of a failed test."""
    report: Any = yield
    used = item.stash.get(_FIXTURE, None)
    if used is not None and report.failed and call.when in ("setup", "call"):
        report.sections.append(("rnndiag", used.keep()))
    return report


@pytest.fixture
def rnndiag(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RnndiagFixture]:
    """Records trainings, opens their runs, and checks them with the project's configuration."""
    name = re.sub(r"[^\w.-]+", "-", request.node.name).strip("-.")[:60] or "test"
    kept = request.config.getoption("--rnndiag-dir")
    parent = Path(kept).absolute() if kept else tmp_path_factory.mktemp("rnndiag")
    used = RnndiagFixture(_free(parent, name), request.config)
    request.node.stash[_FIXTURE] = used
    yield used
    used.close()


def _free(parent: Path, name: str) -> Path:
    """The first of `name`, `name-2`, ... that does not exist."""
    taken = name
    number = 1
    while (parent / taken).exists():
        number += 1
        taken = f"{name}-{number}"
    return parent / taken


class RnndiagFixture:
    """The value of the fixture `rnndiag`."""

    def __init__(self, folder: Path, config: pytest.Config) -> None:
        self.folder = folder
        """The folder of this test's runs."""
        self._config = config
        self._callbacks: list[Any] = []
        self._kept = False

    def __getattr__(self, name: str) -> Any:
        """Attributes that the fixture does not have are those of the module `rnndiag`."""
        return getattr(sys.modules["rnndiag"], name)

    def callback(self, **arguments: Any) -> Any:
        """A GradientDiagnostics that writes into this test's folder; its errors are raised (strict=True)."""
        from rnndiag.recorder.callback import GradientDiagnostics

        number = len(self._callbacks) + 1
        own = {
            "dirpath": self.folder / f"run-{number}",
            "strict": True,
            "screen": False,
            "report": False,
        }
        self._callbacks.append(GradientDiagnostics(**{**own, **arguments}))
        return self._callbacks[-1]

    @property
    def run_dirs(self) -> list[Path]:
        """The directories of this test's runs; later fits of one callback follow it."""
        return [Path(callback.run_dir) for callback in self._callbacks]

    def run(self) -> Run:
        """The last run of this test, as `rnndiag.open_run` gives it."""
        from rnndiag.errors import BadArgument
        from rnndiag.run.run import open_run

        if not self._callbacks:
            raise BadArgument(
                "This test has recorded no run.", "Train with callbacks=[rnndiag.callback()] first."
            )
        return open_run(self.run_dirs[-1])

    def diagnose(
        self, run: Run | None = None, chance: float | None = None, needs: int | str | None = None
    ) -> Diagnosis:
        """The diagnosis of a run (None: the last): `.state`, `.headline`, `.causes`."""
        from rnndiag.health.diagnosis import diagnose

        return diagnose(self.run() if run is None else run, chance=chance, needs=needs)

    def check(
        self,
        run: Run | str | Path | Sequence[Run | str | Path] | None = None,
        baseline: str | Path | None = None,
        config: str | Path | Mapping[str, Any] | None = None,
    ) -> list[Finding]:
        """Judge a run (None: the last) by the project's pyproject.toml; raises AssertionError naming what failed."""
        from rnndiag.health.config import nearest_config
        from rnndiag.health.result import evaluate_runs
        from rnndiag.health.writers.console import console_text

        chosen = self.run() if run is None else run
        settings = nearest_config(self._config.rootpath) if config is None else config
        judgement = evaluate_runs(chosen, baseline, settings)
        if judgement.outcome.code:
            raise AssertionError("\n" + console_text(judgement))
        return list(judgement.findings)

    def preflight(self, *arguments: Any, **options: Any) -> list[Finding]:
        """`rnndiag.preflight(model, batch, loss_fn)`; raises AssertionError naming the structural faults."""
        from rnndiag.recorder.preflight import preflight

        found = preflight(*arguments, **options)
        faults = [one for one in found if one.status in ("fail", "warn")]
        if faults:
            lines = [f"{one.check}: {one.message}. {one.remedy}" for one in faults]
            raise AssertionError("\n".join(["", *lines]))
        return found

    def gradcheck(self, *arguments: Any, **options: Any) -> GradcheckResult:
        """`rnndiag.gradcheck_recurrence(kernel, ...)`; raises AssertionError with the table and the faults."""
        from rnndiag.engine.gradcheck.check import gradcheck_recurrence

        result = gradcheck_recurrence(*arguments, **options)
        if not result:
            raise AssertionError(f"\n{result}")
        return result

    def keep(self) -> str:
        """Keep the runs, with reports if requested; returns a line for each run."""
        self._kept = True
        lines = []
        for path in self.run_dirs:
            if not path.exists():
                continue
            lines.append(f"run kept in {path}")
            if self._config.getoption("--rnndiag-report"):
                lines.append(_report(path))
        return "\n".join(lines) or "no run was recorded"

    def close(self) -> None:
        """Remove the runs of a test that passed."""
        if not self._kept:
            shutil.rmtree(self.folder, ignore_errors=True)


def _report(path: Path) -> str:
    """Write the run's page; returns a line that says where, or why not."""
    page = path / "report.html"
    try:
        from rnndiag.report.write_report import write_report

        write_report(path, page)
    except Exception as error:  # noqa: BLE001 - a fault of the report must not hide the test's own failure
        return f"no report: {type(error).__name__}: {error}"
    return f"report in {page}"
