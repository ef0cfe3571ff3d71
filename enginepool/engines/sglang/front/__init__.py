"""The front: the worker's own process, with SGLang's OpenAI layer. It never touches a GPU."""
