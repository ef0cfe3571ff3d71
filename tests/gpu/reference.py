"""What SGLang's own engine answers: `python -m tests.gpu.reference FOLDER` prints the token ids for each prompt."""

from __future__ import annotations

import json
import sys
from typing import Any

from tests.gpu.settings import GPU, PROMPTS, SAMPLING

ARGUMENTS: dict[str, Any] = {
    "dtype": "bfloat16",
    "attention_backend": "triton",
    "sampling_backend": "pytorch",
    "grammar_backend": "none",
    "mem_fraction_static": 0.4,
    "max_total_tokens": 8192,
    "cuda_graph_bs_decode": [1],
    "disable_prefill_cuda_graph": True,
    "random_seed": 0,
    "base_gpu_id": GPU,
    "log_level": "error",
}
"""The kernels that a worker uses, with static memory: they decide about the last digits."""


def main() -> None:
    import sglang

    engine = sglang.Engine(model_path=sys.argv[1], **ARGUMENTS)
    answers = [engine.generate(input_ids=prompt, sampling_params=SAMPLING)["output_ids"] for prompt in PROMPTS]
    engine.shutdown()
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
