"""`python -m rnndiag.recorder.frozen.need`: the torch side of `rnndiag need --snapshot`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from rnndiag.recorder.frozen.snapshot import restored, write_answer
from rnndiag.recorder.need.entry import memory_need
from rnndiag.stats.need.as_json import need_as_json


def main(argv: list[str] | None = None) -> int:
    """Run `memory_need` on the snapshot's model and batch; writes the result to `--answer FILE` as JSON."""
    parser = argparse.ArgumentParser(prog="python -m rnndiag.recorder.frozen.need")
    parser.add_argument("snapshot", type=Path)
    parser.add_argument("--layer")
    parser.add_argument("--beyond", type=int)
    parser.add_argument("--max-lag", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--answer", type=Path, required=True)
    args = parser.parse_args(argv)

    def measured() -> dict[str, Any]:
        model, loss_fn, batch = restored(args.snapshot)
        need = memory_need(
            model, [batch], loss_fn, args.layer, args.beyond, args.max_lag, args.seed
        )
        return need_as_json(need)

    return write_answer(args.answer, measured)


if __name__ == "__main__":
    sys.exit(main())
