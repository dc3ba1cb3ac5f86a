"""`python -m rnndiag` is the command `rnndiag`."""

from __future__ import annotations

import sys

from rnndiag.cli import main

sys.exit(main())
