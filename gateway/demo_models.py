"""Three tiny but real models for the demo: real architectures, seeded random weights, a trained tokenizer.

    python -m gateway.demo_models FOLDER

What they answer means nothing; everything else about them is as with any other model.
"""

from __future__ import annotations

import importlib
import inspect
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Progress = Callable[[str], None]
"""Called with a line for people at the start of each piece of work."""

CONTEXT = 4096
VOCABULARY = 4096
END_OF_TEXT, TURN_BEGIN, TURN_END = SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_CORPUS_MODULES = [
    "argparse",
    "asyncio.streams",
    "collections",
    "contextlib",
    "csv",
    "datetime",
    "decimal",
    "difflib",
    "email.message",
    "fractions",
    "functools",
    "heapq",
    "html",
    "http.client",
    "inspect",
    "io",
    "itertools",
    "json",
    "logging",
    "mailbox",
    "math",
    "optparse",
    "os",
    "pathlib",
    "pickle",
    "random",
    "re",
    "shutil",
    "socket",
    "statistics",
    "string",
    "subprocess",
    "tarfile",
    "tempfile",
    "textwrap",
    "threading",
    "unittest.case",
    "unittest.mock",
    "urllib.parse",
    "urllib.request",
    "zipfile",
]

_SHARED = {
    "vocab_size": VOCABULARY,
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": CONTEXT,
    "tie_word_embeddings": True,
    # More than a trained model's: so that random weights do not say the same token for ever.
    "initializer_range": 0.08,
}
_ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-tiny": ("LlamaConfig", {"tie_word_embeddings": False}),
    "qwen3-tiny": ("Qwen3Config", {}),
    "gemma3-tiny": (
        "Gemma3TextConfig",
        {
            "tie_word_embeddings": False,
            "sliding_window": 512,
            "query_pre_attn_scalar": 64,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
    ),
}
NAMES = tuple(_ARCHITECTURES)


def make_demo_models(folder: Path, progress: Progress) -> list[Path]:
    """Make the models that `folder` lacks; returns the folder of each. Blocking, some seconds.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = [name for name in NAMES if not (folder / name).exists()]
    if missing:
        progress("training a tokenizer")
        tokenizer = train_tokenizer()
        for seed, name in enumerate(NAMES):
            if name in missing:
                progress(f"making {name}")
                _make(folder, name, seed, tokenizer)
    return [folder / name for name in NAMES]


def _make(folder: Path, name: str, seed: int, tokenizer: Any) -> None:
    """Write into a folder beside it and rename: a model that is there is complete."""
    unfinished = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=folder))
    try:
        _save_model(unfinished, name, seed, tokenizer)
        tokenizer.save_pretrained(unfinished)
        unfinished.chmod(0o755)
        unfinished.rename(folder / name)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _save_model(folder: Path, name: str, seed: int, tokenizer: Any) -> None:
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    class_name, own = _ARCHITECTURES[name]
    ends = tokenizer.convert_tokens_to_ids([TURN_END, END_OF_TEXT])
    tokens = {"bos_token_id": None, "eos_token_id": ends, "pad_token_id": ends[1]}
    config = getattr(transformers, class_name)(**{**_SHARED, **own, **tokens})
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)


def train_tokenizer() -> Any:
    """A byte-level BPE of `VOCABULARY` tokens with the chat template, as transformers has it. Takes some seconds."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT,
    )


def _corpus() -> Iterator[str]:
    """English prose that every Python brings along: the docstrings of its standard library."""
    for name in _CORPUS_MODULES:
        module = importlib.import_module(name)
        yield inspect.getdoc(module) or ""
        own = [it for it in vars(module).values() if getattr(it, "__module__", None) == name]
        for member in own:
            yield inspect.getdoc(member) or ""
            if inspect.isclass(member):
                yield from (inspect.getdoc(method) or "" for _, method in inspect.getmembers(member, inspect.isroutine))


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python -m gateway.demo_models FOLDER")
    make_demo_models(Path(sys.argv[1]), print)


if __name__ == "__main__":
    main()
