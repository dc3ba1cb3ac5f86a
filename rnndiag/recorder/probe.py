"""`with rnndiag.probe(model) as probe:` records the forward and backward passes inside, in any torch code."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from html import escape
from weakref import WeakKeyDictionary

import torch
from torch import nn

from rnndiag.engine.adjoints import adjoints
from rnndiag.engine.contributions import contribution_norms
from rnndiag.engine.layer_run import LayerRun
from rnndiag.engine.proof import Proof, prove
from rnndiag.errors import BadArgument, CaptureFault, NotSupported
from rnndiag.recorder.capture import BackwardPass, Capture
from rnndiag.recorder.pass_subject import record_passes
from rnndiag.recorder.replay.unrolled import UnrolledCalls
from rnndiag.store.recording import Recording

_out_of_inference = torch.inference_mode(False)
"""Leaves `torch.inference_mode`, in which the derivatives needed by the proofs could not be computed."""


class Probe:
    """The result of `probe`. Everything is computed at first access, after the backward pass, and then cached."""

    def __init__(
        self, capture: Capture, step: int = 0, loss_scale: Callable[[], float] | None = None
    ) -> None:
        self._capture, self.step = capture, step
        self._unrolled = UnrolledCalls(capture)
        self._scale = loss_scale
        self._passes: list[BackwardPass] = []
        self._unseen: dict[str, str] = {}
        self._proofs: list[Proof] = []
        self._recording: Recording | None = None
        self._recorded = 0
        """Number of passes in the recording."""

    def __repr__(self) -> str:
        """Summary that does not compute anything."""
        model = type(self._capture.model).__name__
        if self._recording is not None:
            return f"<probe of {model}: {self._recording!r}>"
        if self._capture.armed:
            return f"<probe of {model}, step {self.step}: watching>"
        runs = [run.name for seen in self._passes for run in seen.layer_runs]
        seen = f"{len(runs)} layer runs ({', '.join(runs)})" if runs else "nothing looked at yet"
        return f"<probe of {model}, step {self.step}: {seen}>"

    def _repr_html_(self) -> str:
        """HTML for notebooks: the recording, if it was computed."""
        return escape(repr(self)) if self._recording is None else self._recording._repr_html_()

    def __enter__(self) -> Probe:
        if self._capture.armed:
            raise BadArgument(
                "This probe is watching already.", "Make a second one: `rnndiag.probe(model)`."
            )
        self._take()
        self._capture.arm()
        self._unrolled.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._capture.disarm()
        self._unrolled.stop()

    def _take(self) -> None:
        seen = self._capture.take()
        self._unseen |= self._capture.unseen
        own = self._unrolled.take(1.0 if self._scale is None else self._scale())
        self._passes += self._unrolled.with_note([*seen, *own])

    @property
    @_out_of_inference
    def backward_passes(self) -> list[BackwardPass]:
        """All backward passes, in order. Later passes are added at the next access."""
        self._take()
        if not self._capture.armed:
            self._capture.forget()  # no further pass is possible: release the tensors kept for the replay
        return self._passes

    @property
    def layer_runs(self) -> list[LayerRun]:
        """The layer runs of all backward passes."""
        passes = self.backward_passes
        runs = [run for seen in passes for run in seen.layer_runs]
        missed = {name: why for seen in passes for name, why in seen.missed.items()}
        if missed and not runs and not any(seen.loops.tells for seen in passes):
            raise NotSupported(
                f"None of the recurrent calls could be captured ({'; '.join(_by_reason(missed))}).",
                "Make the forward pass inside of the probe too, and call the recurrent modules themselves, not their "
                "forward.",
            )
        return runs

    @property
    @_out_of_inference
    def proofs(self) -> list[Proof]:
        """One proof per backward pass: whether the capture is correct and complete."""
        passes = self.backward_passes
        self._proofs += [_proof(seen) for seen in passes[len(self._proofs) :]]
        return self._proofs

    @property
    @_out_of_inference
    def recording(self) -> Recording:
        """The measurements of all backward passes, in the form that the callback stores."""
        passes = self.backward_passes
        if self._recording is None or self._recorded < len(passes):
            if not self.layer_runs and not any(seen.loops.tells for seen in passes):
                if self._unseen:
                    raise NotSupported(
                        f"No recurrence was recorded ({'; '.join(_by_reason(self._unseen))}).",
                        "Name the module that does one step with steps=[...], or mark the state of the loop with "
                        "rnndiag.carry.",
                    )
                raise CaptureFault(
                    "No backward pass through a recurrent layer was seen inside of the probe.",
                    "Run the forward pass and `loss.backward()` inside of the `with`, and look afterwards.",
                )
            self._recording, self._recorded = record_passes(passes, step=self.step), len(passes)
        return self._recording


def _proof(seen: BackwardPass) -> Proof:
    made = [seen.adjoints.get(run.name) or adjoints(run) for run in seen.layer_runs]
    proof = prove(
        seen.layer_runs, [(adj, contribution_norms(adj)) for adj in made], dtype=seen.dtype
    )
    if seen.cut:
        proof = replace(proof, reasons=(*proof.reasons, *_by_reason(seen.cut)))
    if not seen.missed:
        return proof
    missed = _by_reason(seen.missed)
    verdict = "inexact" if proof.verdict == "exact" else proof.verdict
    return replace(proof, verdict=verdict, reasons=(*proof.reasons, *missed))


def _by_reason(missed: Mapping[str, str]) -> tuple[str, ...]:
    """Texts 'NAME, NAME: REASON', one per distinct reason."""
    names: dict[str, list[str]] = {}
    for name, why in missed.items():
        names.setdefault(why, []).append(name or "the model")
    return tuple(f"{', '.join(found)}: {why}" for why, found in names.items())


def probe(
    model: nn.Module,
    *,
    steps: Iterable[str | type] = (),
    loss_scale: Callable[[], float] | None = None,
    step: int | None = None,
) -> Probe:
    """Watch the forward and backward passes of a model, in any torch code.

    Args:
        model: The module that is trained.
        steps: Names or classes of modules that do one step of a recurrence in Python, where neither a registered cell
            nor the name of their second argument (h, state, hidden, ...) says so.
        loss_scale: Returns the factor of a scaled loss (of a GradScaler: `scaler.get_scale`), which is divided out.
        step: The training step that `probe.recording` is labelled with. None: probes of a model are counted from 0.

    Returns:
        A context manager whose `layer_runs`, `proofs` and `recording` are complete after the backward pass.

    Raises:
        BadArgument: `model` is no module, or `loss_scale` cannot be called.
        NotSupported: The model was scripted or traced by torch.jit.

    Example:
        >>> with rnndiag.probe(model) as probe:
        ...     loss_of(model, batch).backward()
        >>> [run.name for run in probe.layer_runs]
        ['rnn.l0']
    """
    require_model("probe", model, loss_scale)
    scripted = [
        name for name, part in model.named_modules() if isinstance(part, torch.jit.ScriptModule)
    ]
    if scripted:
        raise NotSupported(
            f"{scripted[0] or 'The model'} was scripted or traced by torch.jit, where no step can be watched.",
            "Probe the module that it was made from.",
        )
    if loss_scale is None:
        capture = Capture(model, steps=steps)
    else:
        capture = Capture(model, steps=steps, loss_scale=loss_scale)
    if step is None:
        # without a number of their own, recordings of one model would replace one another in a run
        step = _made[model] = _made.get(model, -1) + 1
    return Probe(capture, step, loss_scale)


def require_model(who: str, model: object, loss_scale: object) -> None:
    """Refuse what is no module, and a loss scale that is no function."""
    if not isinstance(model, nn.Module):
        raise BadArgument(
            f"`{who}` was given a {type(model).__name__}.", "Pass the torch module that is trained."
        )
    if loss_scale is not None and not callable(loss_scale):
        raise BadArgument(
            f"`loss_scale` is {loss_scale!r}.",
            "Pass a function that gives the factor while a backward pass runs, as `scaler.get_scale` does.",
        )


_made: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
"""Model -> the step number of its last probe."""
