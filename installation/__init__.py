"""What `make gpu` does. Nothing but the standard library, as nothing is installed yet.

`preflight` says all that this machine lacks. Then, inside `.venv`: `packages` installs the pins, `toolkit` makes a CUDA
toolkit of what pip has brought, `kvcached` is built with it, and `check` looks whether all is where it belongs.
"""
