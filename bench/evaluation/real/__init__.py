"""The policies on the machine's own GPUs, one after another in one gateway, with what the simulator says beside it."""
