"""The front: the part of the engine in the worker's own process, with SGLang's OpenAI layer. It never touches a GPU."""
