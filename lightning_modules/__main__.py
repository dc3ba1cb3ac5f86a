"""`python -m lightning_modules fit --config lightning_modules/configs/adding_lstm.yaml`."""

from __future__ import annotations

import sys

from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from lightning_modules.catalogue import listing
from lightning_modules.data import TaskData
from lightning_modules.program import Program
from rnndiag.errors import RnndiagError

TRAINER = {
    "devices": 1,
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 50,
    "logger": False,
    "enable_checkpointing": False,
    "enable_model_summary": False,
}
"""The trainer's settings unless a configuration says otherwise: nothing is written but the run of the callback."""


class ProgramCLI(LightningCLI):
    """Program and data agree on the task and the seed."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The data's task and seed are the program's."""
        parser.link_arguments("model.task", "data.task")
        parser.link_arguments("seed_everything", "data.seed", compute_fn=_seed)


def _seed(value: bool | int) -> int:
    return int(value)


def run(arguments: list[str]) -> ProgramCLI:
    """LightningCLI with these arguments, as if they stood on the command line."""
    command_line = sys.argv
    sys.argv = [command_line[0], *arguments]
    try:
        return ProgramCLI(
            Program,
            TaskData,
            seed_everything_default=0,
            save_config_callback=None,
            trainer_defaults=TRAINER,
        )
    finally:
        sys.argv = command_line


def main(arguments: list[str] | None = None) -> int:
    """Run LightningCLI, or print what there is to choose from."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["list"]:
        print(listing())
        return 0
    try:
        run(arguments)
    except RnndiagError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
