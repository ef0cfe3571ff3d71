"""What clients may ask of engines: inference, and nothing that changes what the gateway decides.

An engine that does not have one of these answers 404; no engine is asked anything else.
"""

from __future__ import annotations

INFERENCE_ROUTES = frozenset(
    {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/embeddings",
        "/v1/classify",
        "/v1/score",
        "/v1/rerank",
        "/v1/tokenize",
        "/v1/detokenize",
        "/generate",
    }
)
