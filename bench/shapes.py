"""Models of real shapes with random weights: `python -m bench.shapes --out DIR llama-1b llama-8b ...`.

What they answer means nothing. Their sizes, layers, data types and files are those of the published models, so that
loading, copying and running them takes what it would take there. `--tiny` keeps the architecture and shrinks all else,
for machines without a GPU.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.arguments import Parser
from bench.checkpoints import make_checkpoint
from bench.errors import BenchError
from bench.progress import say
from config.units import format_size
from gateway.demo_models import train_tokenizer

_LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}
_LLAMA_ROPE: dict[str, Any] = {
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
_QWEN3: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 40960,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vocab_size": 151936,
}
FP8_BLOCK = 128

SHAPES: dict[str, dict[str, Any]] = {
    "llama-1b": {
        **_LLAMA,
        "head_dim": 64,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_attention_heads": 32,
        "num_hidden_layers": 16,
        "rope_scaling": {**_LLAMA_ROPE, "factor": 32.0},
        "tie_word_embeddings": True,
    },
    "llama-3b": {
        **_LLAMA,
        "head_dim": 128,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_attention_heads": 24,
        "num_hidden_layers": 28,
        "rope_scaling": {**_LLAMA_ROPE, "factor": 32.0},
        "tie_word_embeddings": True,
    },
    "llama-8b": {
        **_LLAMA,
        "head_dim": 128,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "rope_scaling": {**_LLAMA_ROPE, "factor": 8.0},
        "tie_word_embeddings": False,
    },
    "qwen3-0.6b": {
        **_QWEN3,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_attention_heads": 16,
        "num_hidden_layers": 28,
        "tie_word_embeddings": True,
    },
    "qwen3-8b-fp8": {
        **_QWEN3,
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_attention_heads": 32,
        "num_hidden_layers": 36,
        "tie_word_embeddings": False,
        "quantization_config": {
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "quant_method": "fp8",
            "weight_block_size": [FP8_BLOCK, FP8_BLOCK],
        },
    },
    # Qwen3-30B-A3B with 6 of its 48 layers and 64 of its 128 experts
    "qwen3-moe": {
        **_QWEN3,
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "decoder_sparse_step": 1,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "mlp_only_layers": [],
        "moe_intermediate_size": 768,
        "norm_topk_prob": True,
        "num_attention_heads": 32,
        "num_experts": 64,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 6,
        "num_key_value_heads": 4,
        "output_router_logits": False,
        "router_aux_loss_coef": 0.001,
        "tie_word_embeddings": False,
    },
    # DeepSeek-V2-Lite with 3 of its 27 layers: one dense, two of experts
    "deepseek-mla": {
        "architectures": ["DeepseekV2ForCausalLM"],
        "model_type": "deepseek_v2",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "aux_loss_alpha": 0.001,
        "first_k_dense_replace": 1,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "intermediate_size": 10944,
        "kv_lora_rank": 512,
        "max_position_embeddings": 163840,
        "moe_intermediate_size": 1408,
        "moe_layer_freq": 1,
        "n_group": 1,
        "n_routed_experts": 64,
        "n_shared_experts": 2,
        "norm_topk_prob": False,
        "num_attention_heads": 16,
        "num_experts_per_tok": 6,
        "num_hidden_layers": 3,
        "num_key_value_heads": 16,
        "q_lora_rank": None,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {
            "beta_fast": 32,
            "beta_slow": 1,
            "factor": 40,
            "mscale": 0.707,
            "mscale_all_dim": 0.707,
            "original_max_position_embeddings": 4096,
            "type": "yarn",
        },
        "rope_theta": 10000,
        "routed_scaling_factor": 1.0,
        "scoring_func": "softmax",
        "seq_aux": True,
        "tie_word_embeddings": False,
        "topk_group": 1,
        "topk_method": "greedy",
        "torch_dtype": "bfloat16",
        "v_head_dim": 128,
        "vocab_size": 102400,
    },
}

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
"""What takes the place of a shape's own sizes. Multiples of an fp8 block where quantized, so that no block is cut."""


def config_of(name: str, *, tiny: bool) -> dict[str, Any]:
    """The content of `name`'s config.json, without what depends on its tokenizer."""
    shape = SHAPES[name]
    if not tiny:
        return shape
    smaller = {key: value for key, value in _TINY.items() if key in shape}
    if shape["model_type"] == "deepseek_v2":  # each head has keys and values of its own
        smaller["num_key_value_heads"] = smaller["num_attention_heads"]
    return {**shape, **smaller}


def make_models(folder: Path, names: Sequence[str], *, tiny: bool) -> None:
    """Make the models that `folder` lacks, each in a folder of its name. Blocking: seconds for each GB.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = [name for name in names if not (folder / name).exists()]
    if not missing:
        return
    say("training a tokenizer")
    tokenizer = train_tokenizer()
    for name in missing:
        nbytes = make_checkpoint(folder / name, config_of(name, tiny=tiny), tokenizer, seed=list(SHAPES).index(name))
        say(f"made {name}: {format_size(nbytes)}")


def main() -> None:
    parser = Parser(prog="bench.shapes", description="Make models of real shapes with random weights.")
    parser.add_argument("names", nargs="+", choices=SHAPES, metavar="NAME", help=", ".join(SHAPES))
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="each model gets a folder in it")
    parser.add_argument("--tiny", action="store_true", help="megabytes instead of gigabytes")
    chosen = parser.parse_args()
    try:
        make_models(chosen.out, chosen.names, tiny=chosen.tiny)
    except (OSError, BenchError) as error:
        print(f"bench.shapes: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
