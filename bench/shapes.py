"""Creates models of real shapes with random weights: `python -m bench.shapes --out DIR llama-1b llama-8b ...`.

Their answers are meaningless, but sizes, layers, data types and files are those of the published models, so loading,
copying and running them takes as long. `--tiny` keeps the architecture and shrinks everything else, for machines
without a GPU.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from bench.subjects.checkpoints import make_checkpoint
from config.units import format_size
from gateway.demo_models import train_tokenizer
from gateway.dummy_models import write_folder
from simulator.command_line import Parser
from simulator.errors import StudyError
from simulator.progress import say

FOLDER = files("config").joinpath("examples/shapes")
"""Their config.json files. The two mixtures are cut: `qwen3-moe` is Qwen3-30B-A3B with 6 of its 48 layers and 64 of its
128 experts, `deepseek-mla` DeepSeek-V2-Lite with 3 of its 27 layers, one dense and two of experts."""
NAMES = ("llama-1b", "llama-3b", "llama-8b", "qwen3-0.6b", "qwen3-8b-fp8", "qwen3-moe", "deepseek-mla")
SHAPES: dict[str, dict[str, Any]] = {name: json.loads(FOLDER.joinpath(f"{name}.json").read_bytes()) for name in NAMES}

_TINY: dict[str, Any] = {
    "head_dim": 64,
    "hidden_size": 256,
    "intermediate_size": 512,
    "kv_lora_rank": 64,
    "moe_intermediate_size": 128,
    "n_routed_experts": 8,
    "num_attention_heads": 4,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 32,
    "v_head_dim": 64,
    "vocab_size": 4096,
}
"""Replacements for a shape's sizes. Multiples of an fp8 block if quantized, so that blocks stay whole."""


def config_of(name: str, *, tiny: bool) -> dict[str, Any]:
    """The contents of `name`'s config.json, without the parts that depend on the tokenizer."""
    shape = SHAPES[name]
    if not tiny:
        return shape
    smaller = {key: value for key, value in _TINY.items() if key in shape}
    if shape["model_type"] == "deepseek_v2":  # each head has keys and values of its own
        smaller["num_key_value_heads"] = smaller["num_attention_heads"]
    return {**shape, **smaller}


def make_models(folder: Path, names: Sequence[str], *, tiny: bool, weights: bool = True) -> None:
    """Create the models that `folder` lacks, each in a folder of its name. Takes seconds per GB.

    Without `weights`, they can only be used with `weights: dummy` in a registry.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = [name for name in names if not (folder / name).exists()]
    if not weights:
        for name in missing:
            write_folder(folder / name, config_of(name, tiny=tiny))
        return
    if not missing:
        return
    say("training a tokenizer")
    tokenizer = train_tokenizer()
    for name in missing:
        nbytes = make_checkpoint(folder / name, config_of(name, tiny=tiny), tokenizer, seed=list(SHAPES).index(name))
        say(f"made {name}: {format_size(nbytes)}")


def main() -> None:
    parser = Parser(prog="bench.shapes", description="Creates models of real shapes with random weights.")
    parser.add_argument("names", nargs="+", choices=SHAPES, metavar="NAME", help=", ".join(SHAPES))
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder in which each model gets a folder"
    )
    parser.add_argument("--tiny", action="store_true", help="megabytes instead of gigabytes")
    parser.add_argument(
        "--no-weights",
        dest="weights",
        action="store_false",
        help="write no weights, for registries with weights: dummy",
    )
    chosen = parser.parse_args()
    try:
        make_models(chosen.out, chosen.names, tiny=chosen.tiny, weights=chosen.weights)
    except (OSError, StudyError) as error:
        print(f"bench.shapes: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
