"""A model's first load, in the loader process: SGLang's code reads the model, which is then written into a segment."""
