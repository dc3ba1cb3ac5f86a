"""A run, read: many recordings, one file per rank and start, seen as one."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from rnndiag.errors import RunUnreadable
from rnndiag.run import ledger, problem
from rnndiag.run.collect import Collector
from rnndiag.run.headline import run_reach, run_window
from rnndiag.run.in_notebooks import InNotebooks
from rnndiag.run.judged import AT_LEAST, DEFAULT_WINDOW, judged_steps
from rnndiag.run.layer_names import layers_among
from rnndiag.run.measurement import Series
from rnndiag.run.problem import Problem
from rnndiag.run.ranks import pooled_recording
from rnndiag.run.reach import Reach
from rnndiag.run.recording import Recording
from rnndiag.run.recordings import Recordings
from rnndiag.run.scan import Scan
from rnndiag.run.segment import Place
from rnndiag.run.select import Steps, layers_for, listed, no_recordings, refuse_unknown, select
from rnndiag.run.status import Status, status_of
from rnndiag.run.window import Recommendation

if TYPE_CHECKING:
    import pandas
    import xarray


class Run(InNotebooks):
    """A run directory as `open_run` gives it. Cheap to open; arrays are read when asked for.

    Ranks are pooled into one recording per step and phase unless `rank=` names one.
    """

    def __init__(self, path: str | os.PathLike[str], salvage: bool = False) -> None:
        self.path = path if isinstance(path, str) and "://" in path else Path(path)
        self.scan = Scan(path, salvage)
        self._settle()

    def _settle(self) -> None:
        self._ledger = ledger.ledger(self.scan.segments)
        self.collector = Collector(self._ledger.groups)

    def refresh(self) -> int:
        """Read what was appended since, new bytes only; the number of new recordings."""
        before = sum(len(segment.places) for segment in self.scan.segments)
        self.scan.advance()
        now = sum(len(segment.places) for segment in self.scan.segments)
        found = self.collector
        self._settle()
        self.collector.inherit(found)
        return now - before

    @property
    def name(self) -> str:
        """The last part of the path."""
        return str(self.path).rstrip("/").rpartition("/")[2] or str(self.path)

    @property
    def provenance(self) -> dict[str, Any]:
        """Where the run comes from, as its newest start says: versions, host, git, model, config, trainer."""
        facts = self.scan.newest_facts.get("provenance")
        return facts if isinstance(facts, dict) else {}

    @property
    def facts(self) -> dict[str, Any]:
        """The newest open.json, with format, start, world size and registry."""
        return self.scan.newest_facts

    @property
    def starts(self) -> tuple[dict[str, Any], ...]:
        """open.json of the lowest rank of each start, in order, without the registry."""
        return self.scan.starts

    @property
    def status(self) -> Status:
        """`finished`, `running`, or `not closed, last recording 3 h ago`."""
        count = len(self.recordings)
        return status_of(self.scan.segments, count, self._interval())

    def _interval(self) -> float:
        if len(self.recordings) < 2:
            return 0.0
        times = [self.collector.facts(group[0])["time"] for group in self._ledger.groups[-2:]]
        return float(np.nan_to_num(times[1] - times[0]))

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What is wrong with the run, one sentence each: what opening it showed, and what reading showed since."""
        found = [*self.scan.problems, *self._ledger.problems, *self.collector.problems]
        cut = [segment for segment in self.scan.segments if segment.missing]
        if cut and self.status.word == "running":
            newest = max(segment.name.start for segment in self.scan.segments)
            cut = [segment for segment in cut if segment.name.start < newest]
        found += [problem.cut_off(s.label, s.missing, len(s.places), s.missing_step) for s in cut]
        return tuple(dict.fromkeys(found))

    @property
    def superseded(self) -> int:
        """How many recordings do not count, because the step was recorded again or a resume undid it."""
        return len(self._ledger.superseded)

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(segment.file.size() for segment in self.scan.segments)

    @property
    def ranks(self) -> tuple[int, ...]:
        """All ranks that recorded something that counts."""
        return tuple(
            sorted({place.segment.name.rank for group in self._ledger.groups for place in group})
        )

    @property
    def phases(self) -> tuple[str, ...]:
        """All phases recorded, `train` first."""
        found = {group[0].phase for group in self._ledger.groups}
        return tuple(sorted(found, key=lambda phase: (phase != "train", phase)))

    @property
    def steps(self) -> np.ndarray:
        """Steps of the recordings of the main phase (`train` if there is one), rising."""
        return self.steps_of(self.phases[0]) if self._ledger.groups else np.zeros(0, np.int64)

    def steps_of(self, phase: str) -> np.ndarray:
        """Steps of the recordings of one phase, rising."""
        steps = [group[0].step for group in self._ledger.groups if group[0].phase == phase]
        return np.asarray(steps, np.int64)

    @property
    def layers(self) -> tuple[str, ...]:
        """All layer runs with a measurement, in the order of their first; neither the model nor stacks."""
        return layers_among(of for _, of in self.collector.keys)

    @property
    def quantities(self) -> tuple[str, ...]:
        """All quantities with a measurement, in the order of their first."""
        return tuple(dict.fromkeys(quantity for quantity, _ in self.collector.keys))

    def layers_of(self, quantity: str) -> tuple[str, ...]:
        """The layers (or the whole model, `model`) for which a quantity was measured."""
        return tuple(layer for name, layer in self.collector.keys if name == quantity)

    @property
    def groups(self) -> tuple[tuple[Place, ...], ...]:
        """Where the recordings that count lie: per step and phase, one place per rank."""
        return self._ledger.groups

    def __contains__(self, key: object) -> bool:
        return key in self.collector.keys if isinstance(key, tuple) else key in self.quantities

    def __len__(self) -> int:
        return len(self._ledger.groups)

    def __repr__(self) -> str:
        return (
            f"<run {self.name}: {len(self)} recordings, {len(self.layers)} layers, {self.status}>"
        )

    def __iter__(self) -> Iterator[Recording]:
        """All recordings that can be read, in order of step."""
        return iter(self.recordings)

    @property
    def recordings(self) -> Recordings:
        """All recordings in order of step, read one at a time when asked for; ranks are pooled."""
        return Recordings(self.collector, self._ledger.groups)

    @property
    def first(self) -> Recording:
        """The first recording of the main phase."""
        return self.at(int(self._some_steps()[0]))

    @property
    def last(self) -> Recording:
        """The last recording of the main phase."""
        return self.at(int(self._some_steps()[-1]))

    def _some_steps(self) -> np.ndarray:
        steps = self.steps
        if not steps.size:
            raise no_recordings(self)
        return steps

    def at(self, step: int, phase: str | None = None, rank: int | None = None) -> Recording:
        """The recording of one step; ranks are pooled unless one is named."""
        refuse_unknown(self, rank, phase)
        wanted = phase or (self.phases[0] if self.phases else "train")
        for group in self._ledger.groups:
            if group[0].step == step and group[0].phase == wanted:
                return self._read(group, rank)
        raise RunUnreadable(
            f"{self.name} has no recording of step {step} in phase {wanted!r}.",
            f"It has steps {listed(self.steps_of(wanted))}.",
        )

    def _read(self, group: Sequence[Place], rank: int | None = None) -> Recording:
        return pooled_recording(self.collector.recordings(group, rank))

    @property
    def outlines(self) -> tuple[Recording, ...]:
        """All recordings without their measurements: steps, times, verdicts and notes of the lowest rank. Fast."""
        return self.collector.outlines

    @overload
    def __getitem__(self, key: tuple[str, str]) -> Series: ...
    @overload
    def __getitem__(self, key: str) -> Series: ...
    def __getitem__(self, key: tuple[str, str] | str) -> Series:
        """`run["credit_profile", "rnn.l0"]` over all recordings, or `run["loss"]`: see `select`."""
        quantity, layer = key if isinstance(key, tuple) else (key, None)
        return self.select(quantity, layer=layer)

    def select(
        self,
        quantity: str,
        layer: str | None = None,
        steps: Steps = None,
        rank: int | None = None,
        phase: str | None = None,
    ) -> Series:
        """One quantity over recordings: dims `step` and the quantity's own, shorter recordings padded with NaN.

        Without a layer: the whole model's or the only layer's, and of several layers all, with a first dim `layer`.
        `steps` is a slice of steps (both ends count), several steps or one; `rank` keeps to one rank instead of
        pooling all. Without a `phase`: the main one, or for what it lacks the next one that has it.
        """
        return select(self, quantity, layer, steps, rank, phase)

    def find(
        self, quantity: str, layer: str, steps: Iterable[int] | slice | None = None
    ) -> Series | None:
        """Like `select` for one layer, but None where there is nothing."""
        found = (
            self.collector.series(quantity, layer, steps, None, phase) for phase in self.phases
        )
        return next((series for series in found if series is not None), None)

    def layers_for(
        self, quantity: str, layer: str | None, steps: Iterable[int] | slice | None = None
    ) -> tuple[str, ...]:
        """The layers that a choice stands for: the one named, or all that have the quantity (at these steps)."""
        return layers_for(self, quantity, layer, steps)

    def judged(
        self, window: str = DEFAULT_WINDOW, at_least: int = AT_LEAST, phase: str | None = None
    ) -> np.ndarray:
        """Steps of the recordings by which the run is judged: the last 20 %, at least 5 (all where there are fewer)."""
        return judged_steps(self.steps if phase is None else self.steps_of(phase), window, at_least)

    def reach(
        self, share: float = 0.9, layer: str | None = None, window: str = DEFAULT_WINDOW
    ) -> Reach:
        """How many steps back `share` of the credit lies: median of the judged recordings; None: shortest layer.

        It is a float; inf says 'not reached within D', nan that there is nothing to measure (`.text` says which).
        `.error` is its standard error where losses or sequences were sampled; nan: not known, or not of 90 %.
        """
        return run_reach(self, share, layer, window)

    def window(
        self, epsilon: float = 0.1, layer: str | None = None, window: str = DEFAULT_WINDOW
    ) -> Recommendation:
        """The recommended truncation window over the judged recordings; None: the layer that needs the longest one."""
        return run_window(self, epsilon, layer, window)

    def verify(self) -> tuple[Problem, ...]:
        """Read every byte and check every CRC, superseded recordings too; all problems found."""
        everything = [place for segment in self.scan.segments for place in segment]
        for place in everything:
            self.collector.recordings((place,), None, lenient=True)
        return self.problems

    def to_frame(self, quantity: str | None = None, layer: str | None = None) -> pandas.DataFrame:
        """A long pandas table: step, phase, quantity, layer, the dims, value."""
        from rnndiag.run.frames import to_frame

        return to_frame(self, quantity, layer)

    def to_xarray(self, quantity: str | None = None, layer: str | None = None) -> xarray.Dataset:
        """An xarray Dataset: one variable per quantity, over layer, step and the quantity's dims."""
        from rnndiag.run.frames import to_xarray

        return to_xarray(self, quantity, layer)


def open_run(path: str | os.PathLike[str], salvage: bool = False) -> Run:
    """Open a run directory, or a URL where fsspec is installed.

    `salvage` also reads recordings whose open.json is damaged, without their provenance.
    """
    return Run(path, salvage)
