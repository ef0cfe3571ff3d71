"""The registry: what the YAML file says, as plain data in base units (seconds, bytes).

Reading and validating is `config.reader`'s job; nothing here touches a file.
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
    """The user's own, where the CLI looks too."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    return Path(base) / "prism" / "admin.sock" if base else Path(f"/tmp/prism-{os.getuid()}/admin.sock")


class Limits(Struct, frozen=True, kw_only=True):
    """What one client may ask of the gateway."""

    max_body: Bytes = 16 * 2**20
    """Bytes of a request's body; above it 413."""
    queue_per_model: Count = 2048
    """Requests waiting for one model; above it 429."""
    stream_buffer: Bytes = 2**20
    """Bytes that a slow reader may leave unread before its stream is aborted."""
    header_timeout: Seconds = 15.0
    """Seconds that a request's headers may take from their first byte; then 408."""
    body_timeout: Seconds = 30.0
    """Seconds for which nothing of a body may come; then 408. A body that goes on coming may take any time."""
    idle_timeout: Seconds = 75.0
    """Seconds that a connection may stay open without a request. Longer than proxies keep theirs: it is for them to
    close first."""
    unfinished_bodies: Bytes | None = None
    """Bytes of bodies under way, of all clients together. Above it those that have stalled are given up, with 503. Left
    out: six of `max_body`."""
    json_values: Count = 1_000_000
    """Values in a request's body, such as tokens of a prompt; above it 400."""
    json_containers: Count = 20_000
    """Of them objects and lists, such as messages, which take far longer to read; above it 400."""


class Gateway(Struct, frozen=True, kw_only=True):
    host: Word = "127.0.0.1"
    """Address to listen on. 0.0.0.0 is every interface: put a proxy with authentication in front of it."""
    port: Port = 8000
    """Port to listen on; 0 takes a free one and says which."""
    admin_socket: Path = field(default_factory=default_admin_socket)
    """Made by the gateway, for its owner only; the default lies in $XDG_RUNTIME_DIR, or in /tmp."""
    grace: Delay = 10.0
    """Seconds that requests in flight may take to finish after a stop."""
    allowed_origins: tuple[Word, ...] = ()
    """Origins, such as https://chat.example, whose pages browsers may let ask; `*` for all. Others get 403, unless the
    page came from this gateway."""
    allowed_hosts: tuple[Word, ...] = ()
    """Names, with or without a port, by which clients may call a gateway that listens on loopback only, beside
    localhost; `*` for all. Others get 403: a page may have its name resolve to this machine."""
    limits: Limits = field(default_factory=Limits)
    """What one client may ask of the gateway."""


class Work(Struct, frozen=True, kw_only=True):
    """What one request may have a worker do besides its model's steps."""

    own_templates: bool = False
    """Whether a client may send a chat template of its own, which is a program."""
    preparation: Seconds = 20.0
    """Seconds that a large prompt may take to become tokens, its chat template included; above it 400."""
    grammar_time: Seconds = 5.0
    """Seconds that a grammar, such as a JSON schema, may take to be compiled; above it 400."""
    prompts: Count = 1024
    """Prompts in one request; above it 400."""
    logprobs: Count = 200_000
    """Tokens of the prompt that have logprobs, times the alternatives to each; above it 400."""


class Pool(Struct, frozen=True, kw_only=True):
    engine: EngineName = "transformers"
    """What computes: `sglang` on GPUs and CPUs, `transformers` on CPUs, `simulated` without any model."""
    devices: Annotated[tuple[Word, ...], Meta(min_length=1, description="a list of at least one device")] = ("cpu",)
    """Devices to serve on: `cpu`, or GPUs such as `cuda:0`."""
    workers_per_device: Count = 2
    """Worker processes on each device. Each serves one model at a time."""
    max_running: Count = 16
    """Requests that one worker decodes at a time; the rest wait in the gateway, in deadline order."""
    kv_memory: Bytes = 2**30
    """Bytes of KV cache that all workers of one device share, in equal parts; see `device_memory` for the other way."""
    device_memory: Bytes | None = None
    """Bytes of each device that Prism may use. What weights and workers leave of them is shared out as KV cache, anew
    whenever a model comes or goes. Left out: 92% of a GPU's memory for `sglang`, none for `simulated`."""
    kv_minimum: Bytes = 2**30
    """Bytes of KV cache that an active model keeps when others need its device's memory."""
    workspace: Bytes = 2 * 2**30
    """Bytes that a worker is taken to hold beside weights and KV cache, until it was measured with the model."""
    shrink_timeout: Seconds = 10.0
    """Seconds that an activation waits for its neighbours to give KV cache back before it fails."""
    activations_per_device: Count | None = None
    """Activations under way at a time on one device: they share its link. Left out: 1 on a GPU, else any number."""
    blank_reserve: NonNegative | None = None
    """Workers per device kept blank in the background, so that an activation never waits for a teardown. Left out: 1
    for `sglang` on a GPU, else none."""
    recycle_above: Bytes = 512 * 2**20
    """A blank worker that holds so many bytes more than when it was new is replaced in the background."""
    heartbeat: Seconds = 1.0
    """Seconds between two pings."""
    silence: Seconds = 10.0
    """Seconds without a sign of life after which a worker counts as dead."""
    transition_timeout: Seconds = 120.0
    """Seconds that a worker may take to activate, park or blank a model before it is killed and replaced."""
    threads: Count = 1
    """CPU threads of one worker's engine."""
    mps: MpsChoice = "auto"
    """Whether the workers of a GPU compute at the same time, through an MPS daemon of the gateway's own, and not in
    turns. `auto`: where `sglang` has more than one worker per GPU and NVIDIA's MPS can be had; `on`: or no start."""
    limits: Work = field(default_factory=Work)
    """What one request may have a worker do besides its model's steps."""
    engine_args: dict[str, Any] = field(default_factory=dict)
    """For the engine as a whole. `simulated` takes its timing model (`ttft`, `tpot`, `activation`: seconds) and what it
    pretends to hold of a device: `held_blank`, `held_active`, `held_parked`, `kv_per_token` (bytes); `limit_delay` are
    the seconds after which a lower KV limit holds; a request with the text `faulty` ends its worker as a GPU's fault
    does."""


class WeightStore(Struct, frozen=True, kw_only=True):
    host_memory: Bytes = 4 * 2**30
    """Bytes of host shared memory for weights."""
    verify: bool = False
    """Check every tensor's checksum again at each activation."""


class SchedulerConfig(Struct, frozen=True, kw_only=True):
    policy: PolicyName = "prism"
    """Who gets a worker and who leaves (docs/scheduler.md)."""
    placement_seed: NonNegative = 0
    """Of the placement that `static` and `space` keep to; 0 puts the largest model first, where there is most room."""
    profile: Path | None = None
    """A JSON file of known speeds (`scheduler.learned.profile.Profile`); what it lacks is learned."""
    window: Seconds = 60.0
    """Seconds over which rates of requests and tokens are taken."""
    idle_timeout: Delay = 45.0
    """Seconds without a request after which a model is parked."""
    quantum: Delay = 2.0
    """Seconds that a busy model keeps its worker before another may have it drained."""
    linger: Delay = 0.1
    """Seconds without a request before a model that has not had its quantum yet makes way for another."""
    ahead: Delay = 0.25
    """Seconds of prefill for which requests are sent to a device ahead; the rest waits in the gateway, in its order."""
    drain_after: Delay = 1.0
    """Seconds that a request waits for a worker before a busy one is drained for it."""
    late: LatePolicy = "serve"
    """What becomes of a request that cannot meet its deadline."""
    backoff: Seconds = 1.0
    """Seconds before a failed activation is tried again; doubles each time, up to 60 s."""


class Slo(Struct, frozen=True, kw_only=True):
    ttft: Seconds = 10.0
    """Seconds from arrival to the first token."""
    tpot: Seconds = 0.2
    """Seconds per output token after the first."""


class Model(Struct, frozen=True, kw_only=True):
    name: Word
    """The name by which clients ask for it; each only once."""
    path: Path | None = None
    """Folder with config.json, tokenizer and safetensors."""
    shape: Path | None = None
    """A config.json, or a folder with one: enough to simulate, and to serve with dummy weights."""
    weights: Weights = "checkpoint"
    """`dummy` makes random ones in host memory, seeded by the model's name, for a config.json alone; a tokenizer beside
    that is used, else one is made up."""
    dtype: Dtype = "auto"
    """Type of the weights in memory; `auto` is what config.json says."""
    tensor_parallel: Count = 1
    """Devices over which the model is spread. More than 1 is for the engine `simulated` and `prism simulate` only."""
    slo: Slo = field(default_factory=Slo)
    """The latencies that this model is to keep to."""
    priority: Rank = 0
    """Higher goes first where two models want one worker."""
    pinned: bool = False
    """Activated at the start and never evicted."""
    preload: bool = False
    """Loaded into host memory at the start and kept there."""
    engine_args: dict[str, Any] = field(default_factory=dict)
    """Arguments of the engine for this model; the table below has them."""


class Registry(Struct, frozen=True, kw_only=True):
    gateway: Gateway = field(default_factory=Gateway)
    """The HTTP server and the admin socket."""
    pool: Pool = field(default_factory=Pool)
    """The workers, and the memory that they share."""
    weight_store: WeightStore = field(default_factory=WeightStore)
    """Weights in host memory."""
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    """Who is served where, and when."""
    models: tuple[Model, ...] = ()
    """A list of the models to serve."""
