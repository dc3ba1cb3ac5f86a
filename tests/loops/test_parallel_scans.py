"""Parallel scans have no step to be followed: they are refused by name, or measured from chunk to chunk."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import fits
import lightning.pytorch as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import rnndiag
from rnndiag.cli import main
from rnndiag.errors import CaptureFault, NotSupported

B, T, N, H = 3, 12, 2, 4
functional = nn.functional
CHUNK = 3


class MinGRU(nn.Module):
    """minGRU in log space: all steps at once by cumsum and logcumsumexp."""

    def __init__(self) -> None:
        super().__init__()
        self.z, self.h = nn.Linear(N, H), nn.Linear(N, H)

    def forward(self, x: Tensor, before: Tensor | None = None) -> Tensor:
        gate = self.z(x)
        log_z, log_kept = -functional.softplus(-gate), -functional.softplus(gate)
        log_new = log_z + functional.logsigmoid(self.h(x))
        first = torch.full_like(log_new[:, :1], -1.0) if before is None else before[:, None].log()
        total = functional.pad(log_kept.cumsum(1), (0, 0, 1, 0))
        log_h = total + (torch.cat([first, log_new], 1) - total).logcumsumexp(1)
        return log_h.exp()[:, 1:]


class Associative(nn.Module):
    """A gated sum by doubling strides, as an associative scan computes it; no operation gives it away."""

    def __init__(self) -> None:
        super().__init__()
        self.z, self.h = nn.Linear(N, H), nn.Linear(N, H)

    def forward(self, x: Tensor) -> Tensor:
        kept = self.z(x).sigmoid()
        total, stride = (1 - kept) * self.h(x), 1
        while stride < x.shape[1]:
            pads = (0, 0, stride, 0)
            total = total + kept * functional.pad(total, pads)[:, :-stride]
            kept = kept * functional.pad(kept, pads, value=1.0)[:, :-stride]
            stride *= 2
        return total


class Net(L.LightningModule):
    """A scan and a head."""

    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.mixer, self.head = kind(), nn.Linear(H, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.head(self.mixer(batch[0])).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 1e-2)


def probed(net: Net, **options: Any) -> rnndiag.Probe:
    with rnndiag.probe(net, **options) as probe:
        net.training_step([torch.randn(B, T, N)], 0).backward()
    return probe


def test_a_scan_under_the_probe_is_refused_by_name() -> None:
    with pytest.raises(
        NotSupported, match=r"through logcumsumexp in or behind mixer\.\w: a parallel"
    ):
        probed(Net(MinGRU)).recording
    with pytest.raises(NotSupported, match="no module that it went through is a known recurrence"):
        probed(Net(Associative)).recording


@pytest.mark.parametrize("kind", [MinGRU, Associative])
def test_a_scan_that_is_named_as_a_step_is_refused(kind: type[nn.Module]) -> None:
    with pytest.raises((NotSupported, CaptureFault), match="mixer: "):
        probed(Net(kind), steps=["mixer"]).recording


def test_a_scan_beside_a_layer_does_not_change_what_is_said_of_the_layer() -> None:
    net, rnn = Net(MinGRU), nn.GRU(N, N, batch_first=True)
    both = nn.ModuleList([net, rnn])
    with rnndiag.probe(both, steps=["0.mixer"]) as probe:
        net.training_step([rnn(torch.randn(B, T, N))[0]], 0).backward()
    assert probe.recording.layers == ("1.l0",)
    assert "no step to be followed" in probe.recording.notes["not_measured"]["0.mixer"]


@pytest.mark.parametrize("steps", [(), ("mixer",)])
@pytest.mark.parametrize("kind", [MinGRU, Associative])
def test_a_fit_of_a_scan_says_that_nothing_was_recorded(
    kind: type[nn.Module], steps: tuple[str, ...], tmp_path: Path
) -> None:
    callback = rnndiag.GradientDiagnostics(
        tmp_path / "run", every_n_steps=1, strict=True, report=False, steps=steps
    )
    trainer = L.Trainer(**fits.QUIET, max_steps=2, callbacks=[callback])
    data = DataLoader(TensorDataset(torch.randn(2 * B, T, N)), batch_size=B)
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        trainer.fit(Net(kind), data)
    run = rnndiag.open_run(tmp_path / "run")
    said = run.recordings[-1].notes["nothing_recorded"]
    assert all(r.get("window_bias", "mixer") is None for r in run.recordings)
    expected = "mixer: " if steps else "a parallel scan" if kind is MinGRU else "known recurrence"
    assert expected in said
    assert main(["check", str(tmp_path / "run")]) == 3


def test_chunks_of_a_scan_match_detaching_at_their_boundaries(double: None) -> None:
    scan, head, x = MinGRU(), nn.Linear(H, 1), torch.randn(B, T, N)
    chunks = T // CHUNK

    def loss_of(last: int | None = None, width: int = 0, carry: Any = None) -> Tensor:
        """The loss of all chunks, or of one, whose gradient reaches `width` chunks back."""
        h, total = torch.full((B, H), 0.5), torch.zeros(())
        for k, part in enumerate(x.split(CHUNK, 1)):
            if last is not None and k == last - width + 1:
                h = h.detach()
            if carry is not None:
                h = carry(h, name="chunks")
            states = scan(part, h)
            h = states[:, -1]
            if last is None or k == last:
                total = total + head(states).square().mean()
            if k == last:
                break
        return total

    with rnndiag.probe(scan) as probe:
        loss_of(carry=rnndiag.carry).backward()
    found = torch.as_tensor(probe.recording["window_bias", "chunks"].values)
    parameters = list(scan.parameters())

    def gradient(losses: list[Tensor]) -> Tensor:
        parts = torch.autograd.grad(sum(losses), parameters)
        return torch.cat([part.flatten() for part in parts])

    whole = gradient([loss_of()])
    for width in range(1, chunks):
        window = gradient([loss_of(k, width) for k in range(chunks)])
        off = float((window - whole).norm() / whole.norm())
        assert float(found[width]) == pytest.approx(off, abs=1e-9), width


def test_carry_called_once_is_told_apart_from_a_loop() -> None:
    scan = MinGRU()
    with rnndiag.probe(scan) as probe:
        rnndiag.carry(scan(torch.randn(B, T, N)), name="scan").sum().backward()
    with pytest.raises(NotSupported, match="carry 'scan': it was called once"):
        probe.recording
