"""The implementation of `make gpu`. It uses the standard library only, since nothing is installed when it starts.

`preflight` reports everything that the machine lacks. Then, inside `.venv`, `packages` installs the pinned packages,
`toolkit` assembles a CUDA toolkit from what pip installed, `kvcached` builds kvcached with it, and `complete` checks
the result.
"""
