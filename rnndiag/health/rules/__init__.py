"""One rule per file. `rnndiag.health.rule.all_rules` imports every module of this folder."""
