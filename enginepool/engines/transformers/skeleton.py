"""A model without its weights: modules on the meta device, tokenizer, and the parts of the config serving needs."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

import jinja2
import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)

from config.errors import EngineError, describe
from enginepool.engines.transformers.checkpoint import FOREIGN_ERRORS
from enginepool.engines.transformers.kv import values_per_token
from enginepool.engines.transformers.tensors import TensorSlot, slots_of
from enginepool.messages import Manifest, ModelSpec, TensorSpec
from enginepool.weights.layout import base_tensor, view_of

_GREETING = [{"role": "user", "content": "Hello"}]


class TransformersSkeleton:
    """Built once per model and worker; `attach` and `detach` add and remove the weights."""

    def __init__(self, spec: ModelSpec) -> None:
        """Build the modules of the model in `spec.path`.

        Raises:
            EngineError: transformers cannot build the model.
        """
        self.spec = spec
        try:
            self.config: PreTrainedConfig = AutoConfig.from_pretrained(spec.path, local_files_only=True)
            with torch.device("meta"):
                self.module: nn.Module = AutoModelForCausalLM.from_config(self.config).eval()
            self._generation = _generation_config(spec, self.config)
            self._kv_values = values_per_token(self.config)
            text = self.config.get_text_config(decoder=True)
            self.context: int = text.max_position_embeddings
            self.vocabulary: int = text.vocab_size
        except FOREIGN_ERRORS as error:
            raise EngineError(f"{spec.name}: cannot build the model in {spec.path}: {describe(error)}") from error
        self._slots = {slot.name: slot for slot in slots_of(self.module)}
        self._empty = {name: slot.tensor for name, slot in self._slots.items()}
        self.tokenizer: PreTrainedTokenizerBase
        self.kv_bytes_per_token = 0

    def load_tokenizer(self) -> None:
        """Read the tokenizer and use it once, because its chat template is compiled on first use.

        Raises:
            EngineError: the tokenizer cannot be read.
        """
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(self.spec.path, local_files_only=True)
            if self.tokenizer.chat_template is not None:
                with suppress(jinja2.TemplateError):  # a template may reject any messages
                    self.tokenizer.apply_chat_template(_GREETING, add_generation_prompt=True)
        except FOREIGN_ERRORS as error:
            raise EngineError(f"{self.spec.name}: cannot load the tokenizer: {describe(error)}") from error
        self.eos = frozenset(_ids(self._generation.eos_token_id) + _ids(self.tokenizer.eos_token_id))

    def attach(self, manifest: Manifest, view: memoryview) -> None:
        """Make every tensor a view of the segment's memory.

        Raises:
            EngineError: the manifest belongs to another model or leaves a tensor without data.
        """
        base = base_tensor(view)
        for spec in manifest.tensors:
            self._slot(spec).put(view_of(base, spec))
        for slot in slots_of(self.module):
            if slot.tensor.is_meta:
                raise EngineError(f"{self.spec.name}: the segment holds no data for {slot.name}")
        self.kv_bytes_per_token = self._kv_values * next(self.module.parameters()).dtype.itemsize

    def detach(self) -> None:
        """Remove the weights; nothing refers to the segment afterwards."""
        for name, slot in self._slots.items():
            slot.put(self._empty[name])

    @torch.inference_mode()
    def forward(self, tokens: Iterable[int], cache: object) -> Tensor:
        """Append `tokens` to `cache`; returns the next token's logits, of shape (vocabulary,)."""
        ids = torch.tensor([list(tokens)])
        output = self.module(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        logits: Tensor = output.logits[0, -1]
        return logits

    def _slot(self, spec: TensorSpec) -> TensorSlot:
        slot = self._slots.get(spec.name)
        if slot is None or tuple(self._empty[spec.name].shape) != spec.shape:
            raise EngineError(f"{self.spec.name}: the model has no tensor {spec.name} of shape {spec.shape}")
        return slot


def _generation_config(spec: ModelSpec, config: PreTrainedConfig) -> GenerationConfig:
    try:
        return GenerationConfig.from_pretrained(spec.path, local_files_only=True)
    except OSError:
        return GenerationConfig.from_model_config(config)  # the file is optional


def _ids(sent: int | list[int] | None) -> list[int]:
    if sent is None:
        return []
    return [sent] if isinstance(sent, int) else list(sent)
