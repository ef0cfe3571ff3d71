"""The routes that clients may use: inference only, nothing that interferes with the gateway's decisions.

An engine that lacks one of them answers 404; no other routes are forwarded to engines.
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
