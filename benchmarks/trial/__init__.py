"""The trial of the diagnosis: small programs with planted faults, what is named first, and whether its remedy cures."""
