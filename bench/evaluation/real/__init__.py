"""Runs the policies on the machine's GPUs, one after another in one gateway, and compares with the simulator."""
