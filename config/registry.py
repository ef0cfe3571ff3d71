"""The registry: the contents of the YAML file as plain data in base units (seconds, bytes).

`config.reader` reads and validates it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field

from config.fields import Bytes, Count, Delay, NonNegative, Port, Rank, Seconds, Word

MpsChoice = Literal["auto", "on", "off"]
EngineName = Literal["transformers", "sglang", "simulated"]
LatePolicy = Literal["serve", "refuse"]
PolicyName = Literal["prism", "prism-paper", "static", "space", "swap", "serverless", "lru"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Weights = Literal["checkpoint", "dummy"]


def default_admin_socket() -> Path:
    """The user's default admin socket, known to both gateway and CLI."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    return Path(base) / "prism" / "admin.sock" if base else Path(f"/tmp/prism-{os.getuid()}/admin.sock")


class Limits(Struct, frozen=True, kw_only=True):
    """Limits on what one client may ask of the gateway."""

    max_body: Bytes = 16 * 2**20
    """Maximum bytes of a request's body; larger ones get 413."""
    queue_per_model: Count = 2048
    """Maximum number of requests waiting for one model; further ones get 429."""
    stream_buffer: Bytes = 2**20
    """Bytes that a slow client may leave unread before its stream is aborted."""
    header_timeout: Seconds = 15.0
    """Seconds that a request's headers may take from their first byte; after that 408."""
    body_timeout: Seconds = 30.0
    """Seconds without any byte of a request's body; after that 408. A body that keeps arriving has no time limit."""
    idle_timeout: Seconds = 75.0
    """Seconds that a connection may stay open without a request. Longer than in common proxies, so that the proxy
    closes the connection first."""
    unfinished_bodies: Bytes | None = None
    """Maximum bytes of partially received bodies, over all clients. Above it, stalled bodies are dropped with 503.
    Default: six times `max_body`."""
    json_values: Count = 1_000_000
    """Maximum number of JSON values in a request's body, such as tokens of a prompt; above it 400."""
    json_containers: Count = 20_000
    """Maximum number of JSON objects and lists in a request's body, such as messages, which parse far more slowly than
    other values; above it 400."""


class GatewayConfig(Struct, frozen=True, kw_only=True):
    host: Word = "127.0.0.1"
    """Address to listen on. 0.0.0.0 is every interface: put a proxy with authentication in front of it."""
    port: Port = 8000
    """0 picks a free port, which is logged."""
    admin_socket: Path = field(default_factory=default_admin_socket)
    """Created by the gateway, accessible to its owner only; by default in $XDG_RUNTIME_DIR, or else in /tmp."""
    grace: Delay = 10.0
    """Seconds that requests in flight may take to finish after the gateway is told to stop."""
    allowed_origins: tuple[Word, ...] = ()
    """Origins, such as https://chat.example, whose web pages may send requests; `*` for all. Others get 403, except
    pages served by this gateway."""
    allowed_hosts: tuple[Word, ...] = ()
    """Host names, with or without a port, accepted besides localhost by a gateway that listens on loopback only; `*`
    for all. Others get 403, because a web page can make its own name resolve to this machine (DNS rebinding)."""
    limits: Limits = field(default_factory=Limits)
    """What one client may ask of the gateway."""


class WorkLimits(Struct, frozen=True, kw_only=True):
    """Limits on the work that one request may cause in a worker, besides running the model."""

    own_templates: bool = False
    """Whether clients may send their own chat templates, which are programs."""
    preparation: Seconds = 20.0
    """Seconds that applying the chat template to a large prompt and tokenizing it may take; above it 400."""
    grammar_time: Seconds = 5.0
    """Seconds that compiling a grammar, such as a JSON schema, may take; above it 400."""
    prompts: Count = 1024
    """Maximum number of prompts in one request; above it 400."""
    logprobs: Count = 200_000
    """Maximum number of prompt tokens with logprobs times alternatives per token; above it 400."""


class PoolConfig(Struct, frozen=True, kw_only=True):
    engine: EngineName = "transformers"
    """What computes: `sglang` on GPUs and CPUs, `transformers` on CPUs, `simulated` without any model."""
    devices: Annotated[tuple[Word, ...], Meta(min_length=1, description="a list of at least one device")] = ("cpu",)
    """Devices to serve on: `cpu`, or GPUs such as `cuda:0`."""
    workers_per_device: Count = 2
    """Worker processes on each device. Each serves one model at a time."""
    max_running: Count = 16
    """Maximum number of requests that one worker decodes concurrently; the rest wait in the gateway, in deadline
    order."""
    kv_memory: Bytes = 2**30
    """Bytes of KV cache per device, divided equally among its workers. Not used where `device_memory` applies."""
    device_memory: Bytes | None = None
    """Bytes of each device that Prism may use. What weights and workers leave free is divided up as KV cache, again
    whenever a model comes or goes. Default: 92% of a GPU's memory for `sglang`, none for `simulated`."""
    kv_minimum: Bytes = 2**30
    """Bytes of KV cache that an active model always keeps, even when others need its device's memory."""
    workspace: Bytes = 2 * 2**30
    """Bytes that a worker is assumed to hold besides weights and KV cache until it has been measured with the model."""
    shrink_timeout: Seconds = 10.0
    """Seconds that an activation waits for the device's other workers to release KV cache before it fails."""
    activations_per_device: Count | None = None
    """Maximum number of concurrent activations on one device, which share its link. Default: 1 on a GPU, unlimited
    elsewhere."""
    blank_reserve: NonNegative | None = None
    """Workers per device kept blank in the background, so that an activation never waits for a teardown. Default: 1
    for `sglang` on a GPU, otherwise 0."""
    recycle_above: Bytes = 512 * 2**20
    """A blank worker that holds this many bytes more than when it was new is replaced in the background."""
    heartbeat: Seconds = 1.0
    """Seconds between pings to a worker."""
    silence: Seconds = 10.0
    """Seconds without a message from a worker after which it counts as dead."""
    transition_timeout: Seconds = 120.0
    """Seconds that a worker may take to activate, park or blank a model before it is killed and replaced."""
    threads: Count = 1
    """CPU threads of one worker's engine."""
    mps: MpsChoice = "auto"
    """Whether the workers of a GPU compute concurrently, through an MPS daemon run by the gateway, instead of taking
    turns. `auto`: if `sglang` has several workers per GPU and NVIDIA MPS is available; `on`: refuse to start
    without it."""
    limits: WorkLimits = field(default_factory=WorkLimits)
    """Bounds on what one request may have a worker do besides its model's steps."""
    engine_args: dict[str, Any] = field(default_factory=dict)
    """Arguments of the engine as a whole. `simulated` accepts its timing (`ttft`, `tpot`, `activation`: seconds), the
    device memory it pretends to use (`held_blank`, `held_active`, `held_parked`, `kv_per_token`: bytes), the time until
    a lower KV limit takes effect (`limit_delay`: seconds), and `faulty`: a request that contains this text kills its
    worker the way a GPU fault does."""


class WeightStoreConfig(Struct, frozen=True, kw_only=True):
    host_memory: Bytes = 4 * 2**30
    """Bytes of host shared memory for weights."""
    verify: bool = False
    """Verify every tensor's checksum at each activation."""


class SchedulerConfig(Struct, frozen=True, kw_only=True):
    policy: PolicyName = "prism"
    """Who gets a worker and who leaves (docs/scheduler.md)."""
    placement_seed: NonNegative = 0
    """Seed of the fixed placement used by `static` and `space`; 0 places the largest model first, on the device with
    most room."""
    profile: Path | None = None
    """A JSON file with known speeds (`scheduler.learned.profile.Profile`); what it lacks is learned while serving."""
    window: Seconds = 60.0
    """Seconds over which request and token rates are averaged."""
    idle_timeout: Delay = 45.0
    """Seconds without a request after which a model is parked."""
    quantum: Delay = 2.0
    """Seconds that a busy model keeps its worker before it may be drained for another."""
    linger: Delay = 0.1
    """Seconds without a request after which a model makes way for another even before its quantum ends."""
    ahead: Delay = 0.25
    """Seconds of prefill work that may be queued on a device; further requests wait in the gateway, in deadline
    order."""
    drain_after: Delay = 1.0
    """Seconds that a request waits for a worker before a busy one is drained for it."""
    late: LatePolicy = "serve"
    """What to do with a request that can no longer meet its deadline."""
    backoff: Seconds = 1.0
    """Seconds before a failed activation is retried; doubles with each failure, up to 60 s."""


class Slo(Struct, frozen=True, kw_only=True):
    ttft: Seconds = 10.0
    """Seconds from arrival to the first token."""
    tpot: Seconds = 0.2
    """Seconds per output token after the first."""


class ModelConfig(Struct, frozen=True, kw_only=True):
    name: Word
    """The name by which clients ask for it; each only once."""
    path: Path | None = None
    """Folder with config.json, tokenizer and safetensors."""
    shape: Path | None = None
    """A config.json, or a folder with one: enough to simulate the model, or to serve it with dummy weights."""
    weights: Weights = "checkpoint"
    """`dummy` generates random weights in host memory from a config.json alone, seeded by the model's name. A tokenizer
    next to config.json is used; without one, a tokenizer is made up."""
    dtype: Dtype = "auto"
    """Type of the weights in memory; `auto` is what config.json says."""
    tensor_parallel: Count = 1
    """Devices over which the model is spread. More than 1 is for the engine `simulated` and `prism simulate` only."""
    slo: Slo = field(default_factory=Slo)
    """The latencies that this model is to keep to."""
    priority: Rank = 0
    """When models compete for a worker, the higher priority goes first."""
    pinned: bool = False
    """Activated at startup and never evicted."""
    preload: bool = False
    """Loaded into host memory at startup and kept there."""
    engine_args: dict[str, Any] = field(default_factory=dict)
    """Arguments of the engine for this model; the table below has them."""


class Registry(Struct, frozen=True, kw_only=True):
    gateway: GatewayConfig = field(default_factory=GatewayConfig)
    """The HTTP server and the admin socket."""
    pool: PoolConfig = field(default_factory=PoolConfig)
    """The workers, and the memory that they share."""
    weight_store: WeightStoreConfig = field(default_factory=WeightStoreConfig)
    """Weights in host memory."""
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    """Who is served where, and when."""
    models: tuple[ModelConfig, ...] = ()
    """A list of the models to serve."""
