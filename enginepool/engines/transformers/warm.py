"""One-time work of the template process that saves every worker and loader from doing it."""

from __future__ import annotations

import gc
import tempfile

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.models.gemma3 import modeling_gemma3  # noqa: F401
from transformers.models.qwen3 import modeling_qwen3  # noqa: F401
from transformers.utils import logging as transformers_logging

from enginepool.engines.transformers.skeleton import TransformersSkeleton
from enginepool.engines.transformers.weights import load
from enginepool.messages import ModelSpec


def warm() -> None:
    """Import common architectures, and load and run a model of a few kilobytes.

    The first time, each step costs up to hundreds of milliseconds: tables built by transformers, templates, kernels.
    Leaves no thread behind, because the caller is about to fork.
    """
    torch.set_num_threads(1)
    transformers_logging.disable_progress_bar()
    with tempfile.TemporaryDirectory(prefix="prism-warm-") as folder:
        _write_model(folder)
        spec = ModelSpec("warm", folder, "auto", {})
        _, segment = load(spec, lambda done, total: None)
        segment.close()
        TransformersSkeleton(spec).load_tokenizer()
        _run(LlamaForCausalLM.from_pretrained(folder, local_files_only=True))
    # Exempts all current objects from collection; otherwise a child's first collection would copy their pages.
    gc.collect()
    gc.freeze()


def _write_model(folder: str) -> None:
    config = LlamaConfig(vocab_size=8, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    LlamaForCausalLM(config).save_pretrained(folder)
    words = Tokenizer(WordLevel({"Hello": 0, "[UNK]": 1}, unk_token="[UNK]"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, chat_template="{{ messages[0]['content'] }}")
    tokenizer.save_pretrained(folder)


def _run(model: LlamaForCausalLM) -> None:
    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        for ids in ([[1, 2, 3]], [[4]]):
            model(input_ids=torch.tensor(ids), past_key_values=cache, use_cache=True, logits_to_keep=1)
