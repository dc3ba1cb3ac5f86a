"""Either Lightning, both, or one met later; LightningCLI and YAML; libraries that build the Trainer themselves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import fits
import lightning.pytorch as L
import pytest
from fits import Net

import rnndiag

ROOT = Path(__file__).parents[2]

PROGRAM = """
import sys, warnings
warnings.simplefilter("ignore")
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent!r}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import torch
from torch import nn
{before}
import rnndiag
callback = rnndiag.GradientDiagnostics(sys.argv[1], every_n_steps=1, strict=True, report=False,
                                       measures=["contributions"])
{after}
class Net(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(2, 3, batch_first=True)
    def training_step(self, batch, i):
        return self.rnn(batch[0])[0].square().mean()
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)
data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(8, 5, 2)), 4)
trainer = L.Trainer(max_steps=2, callbacks=[callback], logger=False, enable_progress_bar=False,
                    enable_model_summary=False, accelerator="cpu", default_root_dir=sys.argv[2])
trainer.fit(Net(), data)
assert isinstance(callback, L.Callback)
trainer.fit(Net(), data, ckpt_path=trainer.checkpoint_callback.best_model_path)
import pickle, copy
assert isinstance(pickle.loads(pickle.dumps(copy.deepcopy(callback))), L.Callback)
print(",".join(sorted(name for name in ("lightning.pytorch", "pytorch_lightning") if name in sys.modules)))
"""

CASES = {
    "only lightning installed": (
        ["pytorch_lightning"],
        "",
        "import lightning.pytorch as L",
        "lightning.pytorch",
    ),
    "only pytorch_lightning installed": (
        ["lightning"],
        "",
        "import pytorch_lightning as L",
        "pytorch_lightning",
    ),
    "both, the second met after the callback was made": (
        [],
        "import lightning.pytorch",
        "import pytorch_lightning as L",
        "lightning.pytorch,pytorch_lightning",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_every_namespace_takes_the_callback(case: str, tmp_path: Path) -> None:
    absent, before, after, loaded = CASES[case]
    program = PROGRAM.format(absent=absent, before=before, after=after)
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "run"), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip().splitlines()[-1] == loaded
    assert rnndiag.open_run(tmp_path / "run").steps_of("train").tolist() == [0, 1]


def test_importing_rnndiag_loads_no_lightning() -> None:
    program = (
        "import rnndiag, sys; print([m for m in sys.modules if 'lightning' in m or m == 'torch'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


# Lightning's CLI uses what jsonargparse has deprecated since
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_cli_builds_it_from_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning.pytorch.cli import LightningCLI

    config = tmp_path / "config.yaml"
    config.write_text(
        f"""
trainer:
  max_steps: 2
  logger: false
  enable_progress_bar: false
  enable_model_summary: false
  enable_checkpointing: false
  accelerator: cpu
  default_root_dir: {tmp_path}
  callbacks:
    - class_path: rnndiag.GradientDiagnostics
      init_args:
        dirpath: {tmp_path / "run"}
        every_n_steps: 1
        measures: [contributions, gates]
        time_unit: [h, 1]
        report: false
        strict: true
"""
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train", "--config", str(config)])
    cli = LightningCLI(Net, save_config_callback=None, run=False, seed_everything_default=1)
    callback = next(c for c in cli.trainer.callbacks if isinstance(c, rnndiag.GradientDiagnostics))
    assert callback._settings.time_unit == ("h", 1.0)
    assert callback._settings.measures == ("contributions", "gates")
    cli.trainer.fit(cli.model, fits.loader())
    assert rnndiag.open_run(tmp_path / "run").steps_of("train").tolist() == [0, 1]


def test_every_argument_is_typed_and_documented() -> None:
    import inspect

    signature = inspect.signature(rnndiag.GradientDiagnostics.__init__)
    text = inspect.getdoc(rnndiag.GradientDiagnostics) or ""
    for name, parameter in signature.parameters.items():
        if name != "self":
            assert parameter.annotation is not inspect.Parameter.empty
            assert f"\n    {name}: " in text, name
            assert parameter.default is not inspect.Parameter.empty


def test_a_library_that_copies_its_trainer_arguments(diagnostics: Any) -> None:
    import copy

    class Forecaster:
        """Copies what it is given, keeps it in hyperparameters, and builds the Trainer itself."""

        def __init__(self, **trainer_kwargs: Any) -> None:
            self.trainer_kwargs = copy.deepcopy(trainer_kwargs)

        def fit(self) -> None:
            model = Net()
            model.save_hyperparameters({"trainer_kwargs": self.trainer_kwargs})
            for _ in range(3):
                kwargs = copy.deepcopy(self.trainer_kwargs)
            L.Trainer(**fits.QUIET, max_steps=2, **kwargs).fit(model, fits.loader())

    callback = diagnostics(measures=["contributions"])
    Forecaster(callbacks=[callback]).fit()
    assert rnndiag.open_run(callback.run_dir).steps_of("train").tolist() == [0, 1]
