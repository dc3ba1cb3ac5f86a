"""What is known of a training step without any replay: losses, clipping, gradient norms, trainer, provenance."""
