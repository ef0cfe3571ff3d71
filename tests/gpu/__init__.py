"""What needs a GPU: the same tokens as SGLang's own engine, no out-of-memory, and kills. `make gpu-test` runs it."""
