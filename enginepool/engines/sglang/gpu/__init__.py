"""GPU-only code: a rank's device, and imports that do not initialise CUDA."""
