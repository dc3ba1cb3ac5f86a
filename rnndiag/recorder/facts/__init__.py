"""Facts on a training step that need no replay: losses, clipping, gradient norms, trainer, provenance."""
