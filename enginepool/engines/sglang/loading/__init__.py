"""The loader: the process of a model's first load, by SGLang's own code into a segment."""
