"""An existing Lightning project with three lines added: they are marked."""

from __future__ import annotations

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import rnndiag  # added


class FirstSymbol(LightningModule):
    """Say at the end of a sequence which symbol came first."""

    def __init__(self, symbols: int = 4, hidden: int = 24) -> None:
        super().__init__()
        self.rnn = nn.LSTM(symbols, hidden, batch_first=True)
        self.head = nn.Linear(hidden, symbols)

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        inputs, answer = batch
        states, _ = self.rnn(inputs)
        loss = nn.functional.cross_entropy(self.head(states[:, -1]), answer)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-2)


def sequences(count: int = 512, length: int = 20, symbols: int = 4) -> TensorDataset:
    """Random symbols; the answer is the first one."""
    drawn = torch.randint(symbols, (count, length))
    return TensorDataset(nn.functional.one_hot(drawn, symbols).float(), drawn[:, 0])


if __name__ == "__main__":
    seed_everything(0, verbose=False)
    diagnostics = rnndiag.GradientDiagnostics(dirpath="runs/first-symbol", every_n_steps=8)  # added
    trainer = Trainer(
        max_epochs=4,
        accelerator="cpu",
        callbacks=[diagnostics],  # added
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(FirstSymbol(), DataLoader(sequences(), batch_size=32, shuffle=True))
    print("reach:", rnndiag.open_run(diagnostics.run_dir).reach(0.9).text)
