"""Finds every tensor and plain value that an SGLang model holds, by dotted path, and replaces them.

SGLang keeps tensors in parameters and buffers, in plain attributes of modules, in lists and dicts, and in helpers that
are not modules (quantization methods, dispatchers, rotary embeddings). Its post-processing after loading may change any
of them, their strides, and plain values: a scale kept as a float, a flag, a None. A path consists of attributes and
items, such as `model.layers.0.mlp.w13_weight` or `model.tables['cos'][3]`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from config.errors import EngineError
from enginepool.messages import TensorKind

_NOT_THE_MODELS = (
    "sglang.srt.configs",
    "sglang.srt.distributed",
    "sglang.srt.managers",
    "sglang.srt.model_executor",
    "sglang.srt.runtime_context",
    "sglang.srt.server_args",
    "sglang.srt.utils",
)
"""Modules whose objects a model refers to but does not own: configurations, process groups, global state."""

_PLAIN = (type(None), bool, int, float, str)
_FUNCTIONS = (FunctionType, MethodType, BuiltinFunctionType)


class Location(Protocol):
    """Where a tensor or value is stored."""

    def get(self) -> Any: ...

    def put(self, value: Any, kind: TensorKind = "attribute") -> None: ...

    def remove(self) -> None: ...


@dataclass(frozen=True, slots=True)
class _Attribute:
    holder: Any
    name: str

    def get(self) -> Any:
        return getattr(self.holder, self.name)

    def put(self, value: Any, kind: TensorKind = "attribute") -> None:
        if not isinstance(self.holder, nn.Module):
            object.__setattr__(self.holder, self.name, value)  # dataclasses may be frozen
            return
        spaces: dict[TensorKind, dict[str, Any]] = {
            "parameter": self.holder._parameters,
            "buffer": self.holder._buffers,
            "attribute": vars(self.holder),
        }
        if value is None and any(self.name in spaces[it] for it in ("parameter", "buffer")):
            setattr(self.holder, self.name, None)  # keeps the name registered
            return
        for other, space in spaces.items():
            if other != kind:
                space.pop(self.name, None)
        spaces[kind][self.name] = value

    def remove(self) -> None:
        delattr(self.holder, self.name)


@dataclass(frozen=True, slots=True)
class _Item:
    container: Any
    key: Any

    def get(self) -> Any:
        return self.container[self.key]

    def put(self, value: Any, kind: TensorKind = "attribute") -> None:
        self.container[self.key] = value

    def remove(self) -> None:
        del self.container[self.key]


@dataclass(frozen=True, slots=True)
class _TupleItem:
    """Tuples are immutable, so the whole tuple is replaced."""

    parent: Location
    index: int

    def get(self) -> Any:
        return self.parent.get()[self.index]

    def put(self, value: Any, kind: TensorKind = "attribute") -> None:
        items = list(self.parent.get())
        items[self.index] = value
        made = type(self.parent.get())
        self.parent.put(made(*items) if hasattr(made, "_fields") else made(items))

    def remove(self) -> None:
        raise EngineError("an item of a tuple cannot be removed")


@dataclass(frozen=True, slots=True)
class LocatedTensor:
    """A tensor and where it is stored."""

    location: Location
    kind: TensorKind
    tensor: Tensor


class Walk:
    """A snapshot of everything reachable from `root`. It references the model, so drop it after use."""

    def __init__(self, root: nn.Module) -> None:
        self.tensors: dict[str, LocatedTensor] = {}
        self.values: dict[str, Any] = {}
        """Plain values, packed, so that later changes of a list or dict do not affect them."""
        self.others: dict[str, str] = {}
        """Descriptions of all other objects, functions and containers, for comparison."""
        self._holders: dict[str, Any] = {}
        self._locations: dict[str, Location] = {}
        self._seen: set[int] = set()
        self._enter("", root)

    def location(self, name: str) -> Location:
        """Where `name` is or would be stored.

        Raises:
            EngineError: the model has nothing that could hold it.
        """
        if name in self._locations:
            return self._locations[name]
        parent, _, attribute = name.rpartition(".")
        holder = self.tensors[parent].location.get() if parent in self.tensors else self._holders.get(parent)
        if holder is None or not attribute.isidentifier():
            raise EngineError(f"the model has no location for {name}")
        return _Attribute(holder, attribute)

    def put(self, name: str, tensor: Tensor, kind: TensorKind) -> None:
        """Store `tensor` at `name`, whatever is there now; attributes of the previous tensor are carried over.

        Raises:
            EngineError: the model has nothing that could hold it.
        """
        location, old = self.location(name), self.tensors.get(name)
        if kind == "parameter":
            tensor = nn.Parameter(tensor, requires_grad=False)
        if old is not None:
            vars(tensor).update(vars(old.tensor))
        location.put(tensor, kind)
        self._locations[name] = location
        self.tensors[name] = LocatedTensor(location, kind, tensor)

    def has_holder(self, name: str) -> bool:
        """Whether the module or object that holds, or would hold, `name` exists."""
        return name.rpartition(".")[0] in self._holders

    def _enter(self, name: str, holder: Any) -> None:
        self.others[name] = _type_name(holder)
        if id(holder) in self._seen:
            return
        self._seen.add(id(holder))
        self._holders[name] = holder
        prefix = f"{name}." if name else ""
        for kind, attribute, value in _attributes(holder):
            self._visit(prefix + attribute, value, _Attribute(holder, attribute), kind)

    def _visit(self, name: str, value: Any, location: Location, kind: TensorKind) -> None:
        self._locations[name] = location
        if isinstance(value, Tensor):
            self.tensors[name] = LocatedTensor(location, kind, value)
            self._visit_attributes(name, value)
        elif is_plain(value):
            self.values[name] = pack(value)
        elif isinstance(value, (list, tuple, dict)):
            self._enter_container(name, value, location)
        elif _is_the_models(value):
            self._enter(name, value)
        else:
            self.others[name] = _describe(value)

    def _enter_container(self, name: str, container: Any, location: Location) -> None:
        self.others[name] = _type_name(container)
        if isinstance(container, tuple):
            for index, item in enumerate(container):
                self._visit(f"{name}[{index}]", item, _TupleItem(location, index), "attribute")
        elif id(container) not in self._seen:
            self._seen.add(id(container))
            for key, item in list(container.items()) if isinstance(container, dict) else enumerate(container):
                self._visit(f"{name}[{key!r}]", item, _Item(container, key), "attribute")

    def _visit_attributes(self, name: str, tensor: Tensor) -> None:
        """Visit a parameter's attributes, in which SGLang's loaders and kernels record its format."""
        for attribute, value in vars(tensor).items():
            inner = f"{name}.{attribute}"
            if isinstance(value, Tensor):
                raise EngineError(f"{inner} is a tensor that belongs to a tensor: not supported")
            if is_plain(value):
                self.values[inner] = pack(value)


def is_plain(value: Any) -> bool:
    """Whether a value consists only of numbers, text and containers of these."""
    if isinstance(value, torch.dtype) or type(value) in _PLAIN:
        return True
    if type(value) in (list, tuple, torch.Size):
        return all(map(is_plain, value))
    return type(value) is dict and all(type(key) in _PLAIN and is_plain(item) for key, item in value.items())


def pack(value: Any) -> Any:
    """Convert a plain value into a form that messages can carry."""
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, tuple):
        return {"tuple": [pack(it) for it in value]}
    if isinstance(value, dict):
        return {"dict": [[key, pack(item)] for key, item in value.items()]}
    if isinstance(value, list):
        return [pack(it) for it in value]
    return value


def unpack(packed: Any) -> Any:
    """The inverse of `pack`."""
    if isinstance(packed, list):
        return [unpack(it) for it in packed]
    if not isinstance(packed, dict):
        return packed
    ((form, content),) = packed.items()
    if form == "dtype":
        return getattr(torch, content)
    if form == "tuple":
        return tuple(unpack(it) for it in content)
    return {key: unpack(item) for key, item in content}


def _attributes(holder: Any) -> Iterator[tuple[TensorKind, str, Any]]:
    if isinstance(holder, nn.Module):
        yield from (("parameter", name, value) for name, value in list(holder._parameters.items()))
        yield from (("buffer", name, value) for name, value in list(holder._buffers.items()))
        yield from (("attribute", name, value) for name, value in list(holder._modules.items()))
    for name, value in list(getattr(holder, "__dict__", {}).items()):
        if not (isinstance(holder, nn.Module) and name in _MODULES_OWN):
            yield "attribute", name, value
    for kind in type(holder).__mro__:
        slots = vars(kind).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(holder, name) and name not in ("__dict__", "__weakref__"):
                yield "attribute", name, getattr(holder, name)


def _is_the_models(value: Any) -> bool:
    if isinstance(value, nn.Module):
        return True
    module = type(value).__module__
    if not module.startswith("sglang.") or module.startswith(_NOT_THE_MODELS):
        return False
    return not isinstance(value, (type, Enum))


def _describe(value: Any) -> str:
    if isinstance(value, _FUNCTIONS):
        return f"function {value.__qualname__}"
    return str(value) if isinstance(value, Enum) else _type_name(value)


def _type_name(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


_MODULES_OWN = frozenset(vars(nn.Module()))
"""torch's own attributes of every module: registries and hooks. `_attributes` reads the registries separately."""
