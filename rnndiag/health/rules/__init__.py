"""One file a rule. Every module of this folder is loaded by `rnndiag.health.rule.all_rules`."""
