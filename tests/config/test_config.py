"""The registry: what it may say, and what is said of one that is wrong: everything at once, with line and key."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest
from msgspec.structs import replace

from config.devices import blank_reserve, copies_at_a_time
from config.errors import ConfigError
from config.model_files import config_file, weight_bytes
from config.reader import read_registry
from config.registry import (
    GatewayConfig,
    Limits,
    ModelConfig,
    PoolConfig,
    Registry,
    SchedulerConfig,
    Slo,
    WeightStoreConfig,
)

EXAMPLES = Path(__file__).parents[2] / "config" / "examples"

MIB = 2**20


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    def write_registry(text: str) -> Path:
        path = tmp_path / "registry.yaml"
        path.write_text(dedent(text).lstrip("\n"))
        return path

    return write_registry


@pytest.fixture
def problems(write: Callable[[str], Path]) -> Callable[..., list[str]]:
    """What is wrong with a registry, each line without the file's path before it; fails if nothing is."""

    def problems_of(text: str, *, serving: bool = True) -> list[str]:
        path = write(text)
        with pytest.raises(ConfigError) as raised:
            read_registry(path, serving=serving)
        assert all(line.startswith(f"{path}:") for line in raised.value.problems)
        assert all("\n" not in line for line in raised.value.problems)
        return [line.removeprefix(f"{path}:") for line in raised.value.problems]

    return problems_of


Problems = Callable[..., list[str]]
Write = Callable[[str], Path]


def make_model(folder: Path, weights: int = 64) -> Path:
    """A folder with all that the registry looks at; the weights' file has `weights` bytes, none of them on disk."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer.json").write_text("{}")
    with (folder / "model.safetensors").open("wb") as file:
        file.truncate(weights)
    return folder


# --- what a registry says -------------------------------------------------------------------------------------


def test_a_registry_with_everything(write: Write, tmp_path: Path) -> None:
    make_model(tmp_path / "llama")
    path = write(
        """
        gateway:
          host: 0.0.0.0
          port: 0
          admin_socket: run/admin.sock
          grace: 0s
          limits: {max_body: 2MiB, queue_per_model: 5, stream_buffer: 65536}
        pool:
          engine: transformers
          devices: [cpu]
          workers_per_device: 3
          max_running: 4
          kv_memory: 0.5GiB
          kv_minimum: 64MiB
          workspace: 128MiB
          shrink_timeout: 3s
          activations_per_device: 2
          blank_reserve: 1
          recycle_above: 1GiB
          heartbeat: 500ms
          silence: 1.5m
          threads: 2
        weight_store: {host_memory: 1GB, verify: true}
        scheduler: {policy: lru, idle_timeout: 1h, quantum: 0, drain_after: 0.25, late: refuse, backoff: 2s}
        models:
          - name: org/llama
            path: llama
            dtype: float32
            tensor_parallel: 1
            slo: {ttft: 2s, tpot: 50ms}
            priority: -3
            pinned: true
            preload: yes
        """
    )
    assert read_registry(path) == Registry(
        gateway=GatewayConfig(
            host="0.0.0.0",
            port=0,
            admin_socket=tmp_path / "run/admin.sock",
            grace=0.0,
            limits=Limits(max_body=2 * MIB, queue_per_model=5, stream_buffer=65536),
        ),
        pool=PoolConfig(
            workers_per_device=3,
            max_running=4,
            kv_memory=512 * MIB,
            kv_minimum=64 * MIB,
            workspace=128 * MIB,
            shrink_timeout=3.0,
            activations_per_device=2,
            blank_reserve=1,
            recycle_above=1024 * MIB,
            heartbeat=0.5,
            silence=90.0,
            threads=2,
        ),
        weight_store=WeightStoreConfig(host_memory=10**9, verify=True),
        scheduler=SchedulerConfig(
            policy="lru", idle_timeout=3600.0, quantum=0.0, drain_after=0.25, late="refuse", backoff=2.0
        ),
        models=(
            ModelConfig(
                name="org/llama",
                path=tmp_path / "llama",
                dtype="float32",
                slo=Slo(ttft=2.0, tpot=0.05),
                priority=-3,
                pinned=True,
                preload=True,
            ),
        ),
    )


def test_what_is_left_out_has_a_default(write: Write) -> None:
    registry = read_registry(write("pool: {engine: simulated}\nmodels: [{name: a}]"))
    assert registry == Registry(pool=PoolConfig(engine="simulated"), models=(ModelConfig(name="a"),))


def test_arguments_of_the_simulated_engine_are_durations(write: Write) -> None:
    registry = read_registry(
        write("pool: {engine: simulated, engine_args: {ttft: 20ms, tpot: 0s, activation: 0.5}}\nmodels: [{name: a}]")
    )
    assert registry.pool.engine_args == {"ttft": 0.02, "tpot": 0.0, "activation": 0.5}


def test_anchors_aliases_and_merges(write: Write) -> None:
    registry = read_registry(
        write(
            """
            pool: {engine: simulated}
            models:
              - &first
                name: a
                priority: 7
                slo: &slo {ttft: 3s, tpot: 30ms}
              - {name: b, slo: *slo}
              - {name: c, slo: {<<: *slo, tpot: 90ms}}
              - {name: d, <<: *first}
            """
        )
    )
    assert [model.slo for model in registry.models] == [Slo(ttft=3.0, tpot=tpot) for tpot in (0.03, 0.03, 0.09, 0.03)]
    assert [(model.name, model.priority) for model in registry.models] == [("a", 7), ("b", 0), ("c", 0), ("d", 7)]


def test_a_path_may_begin_at_the_home_folder(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    folder = make_model(tmp_path / "home" / "llama")
    assert read_registry(write("models: [{name: a, path: ~/llama}]")).models[0].path == folder


def test_a_relative_path_begins_at_the_files_folder(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write("models: [{name: a, path: ./models/llama}]")
    folder = make_model(tmp_path / "models" / "llama")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert read_registry(Path("..", path.name)).models[0].path.resolve() == folder  # type: ignore[union-attr]


def test_the_example_for_eight_gpus_is_valid() -> None:
    registry = read_registry(EXAMPLES / "eight-gpus.yaml")
    assert any(model.pinned for model in registry.models)
    assert any(model.preload for model in registry.models)


def test_the_example_for_one_gpu_needs_nothing_but_the_repository() -> None:
    registry = read_registry(EXAMPLES / "one-gpu.yaml")
    assert (registry.pool.engine, registry.pool.workers_per_device, len(registry.models)) == ("sglang", 4, 6)
    assert {model.weights for model in registry.models} == {"dummy"}
    total = sum(map(weight_bytes, registry.models))
    assert all(map(weight_bytes, registry.models))
    assert total < registry.weight_store.host_memory


def test_the_example_of_the_demo_is_valid_once_its_models_are_made(tmp_path: Path) -> None:
    names = ("llama-tiny", "qwen3-tiny", "gemma3-tiny")
    for name in names:
        make_model(tmp_path / ".demo" / "models" / name)
    copy = tmp_path / "config" / "examples" / "demo.yaml"
    copy.parent.mkdir(parents=True)
    shutil.copy(EXAMPLES / "demo.yaml", copy)
    registry = read_registry(copy)
    assert tuple(model.name for model in registry.models) == names
    assert len(registry.pool.devices) * registry.pool.workers_per_device == 2


# --- files that are no registry -------------------------------------------------------------------------------


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        read_registry(tmp_path / "none.yaml")
    assert raised.value.problems == (f"{tmp_path}/none.yaml: expected a readable file, got: No such file or directory",)


def test_a_folder_instead_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        read_registry(tmp_path)
    assert raised.value.problems == (f"{tmp_path}: expected a readable file, got: Is a directory",)


@pytest.mark.parametrize("text", ["", "# nothing but a comment\n"])
def test_an_empty_file(problems: Problems, text: str) -> None:
    assert problems(text) == ["1: expected a registry, got an empty file"]


@pytest.mark.parametrize(("text", "got"), [("- a", "a list"), ("just words", "'just words'"), ("~", "nothing")])
def test_not_a_mapping(problems: Problems, text: str, got: str) -> None:
    assert problems(text) == [
        f"1: expected a mapping with keys of gateway, pool, weight_store, scheduler, models, got {got}"
    ]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("models: []\ngateway: a: b", "2: expected YAML, got: mapping values are not allowed here"),
        ("models: *none", "1: expected YAML, got: found undefined alias 'none'"),
        ("models: []\n---\nmodels: []", "2: expected YAML, got: expected a single document in the stream"),
        ("[" * 5000, " expected YAML, got hundreds of nested levels"),
        ("models: \a", " expected YAML in UTF-8, got: special characters are not allowed at 8"),
    ],
)
def test_not_yaml(problems: Problems, text: str, found: str) -> None:
    (problem,) = problems(text)
    assert problem.startswith(found)


def test_aliases_that_would_fill_the_memory(problems: Problems) -> None:
    layers = "\n".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]" for n in range(1, 30))
    assert problems(f"l0: &l0 []\n{layers}") == [" expected at most 100000 values, got more, aliases counted"]


def test_merges_that_would_take_for_ever(problems: Problems) -> None:
    layers = "\n".join(f"l{n}: &l{n} {{<<: [{', '.join([f'*l{n - 1}'] * 2)}]}}" for n in range(1, 60))
    assert problems(f"l0: &l0 {{a: b}}\n{layers}") == [" expected at most 100000 values, got more, aliases counted"]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("engine_args: &a {x: *a}", "pool.engine_args.x: expected a value, got an alias of a value that contains it"),
        (
            "engine_args: &a {<<: *a}",
            "pool.engine_args.<<: expected a mapping, got an alias of a value that contains it",
        ),
        ("engine_args: {<<: 5}", "pool.engine_args.<<: expected a mapping, got 5"),
        ("threads: !!python/name:os.system x", "pool.threads: expected a plain YAML value, got x with the tag"),
        (r'threads: "\uD800"', r"pool.threads: expected a plain YAML value, got '\ud800'"),
        ("threads: !!bool perhaps", "pool.threads: expected a plain YAML value, got perhaps with the tag !!bool"),
        ("threads: 2024-99-99", "pool.threads: expected a plain YAML value, got 2024-99-99 with the tag !!timestamp"),
        ("[a, b]: 5", "pool.?: expected a name as key, got a list as key"),
    ],
)
def test_yaml_that_is_no_plain_value(problems: Problems, line: str, problem: str) -> None:
    (found,) = problems(f"pool:\n  engine: simulated\n  {line}\nmodels: [{{name: a}}]")
    assert found.startswith(f"3: {problem}")


def test_what_is_no_value_in_a_list_leaves_the_others_their_index(problems: Problems) -> None:
    assert problems("pool: {engine: simulated}\nmodels:\n  - !odd {}\n  - {name: b, pinned: 5}") == [
        "3: models[0]: expected a plain YAML value, got a mapping with the tag !odd",
        "4: models[1].pinned: expected true or false, got 5",
    ]


# --- fields that are wrong in themselves ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "line", "problem"),
    [
        ("gateway", "port: 70000", "port: expected a port from 0 to 65535, got 70000"),
        ("gateway", "port: -1", "port: expected a port from 0 to 65535, got -1"),
        ("gateway", "port: '8000'", "port: expected a port from 0 to 65535, got '8000'"),
        ("gateway", "port: true", "port: expected a port from 0 to 65535, got true"),
        ("gateway", "port: 80.5", "port: expected a port from 0 to 65535, got 80.5"),
        ("gateway", "grace: 5GiB", "grace: expected a duration such as 500ms, 2s or 0s, got '5GiB'"),
        ("gateway", "grace: -1s", "grace: expected a duration such as 500ms, 2s or 0s, got '-1s'"),
        ("gateway", "grace: .inf", "grace: expected a duration such as 500ms, 2s or 0s, got .inf"),
        ("gateway", "admin_socket: ''", "admin_socket: expected a path, got ''"),
        ("gateway", r'admin_socket: "a\0b"', r"admin_socket: expected a path, got 'a\x00b'"),
        (
            "gateway",
            "admin_socket: ~nobody-of-this-name/x",
            "admin_socket: expected a path, got '~nobody-of-this-name/x'",
        ),
        ("gateway", "admin_socket: 5", "admin_socket: expected a path, got 5"),
        ("gateway", "host: [a]", "host: expected a name without spaces or control characters, not empty, got a list"),
        (
            "gateway",
            "limits:",
            "limits: expected a mapping with keys of max_body, queue_per_model, stream_buffer, header_timeout, "
            "body_timeout, idle_timeout, unfinished_bodies, json_values, json_containers, got nothing",
        ),
        (
            "gateway",
            "limits: {max_body: 5Gib}",
            "limits.max_body: expected a size above 0 such as 512MiB or 16GiB, got '5Gib'",
        ),
        ("gateway", "limits: {max_body: 0}", "limits.max_body: expected a size above 0 such as 512MiB or 16GiB, got 0"),
        ("gateway", "limits: {queue_per_model: 0}", "limits.queue_per_model: expected an integer of at least 1, got 0"),
        ("pool", "workers_per_device: two", "workers_per_device: expected an integer of at least 1, got 'two'"),
        ("pool", "blank_reserve: -1", "blank_reserve: expected an integer of at least 0, got -1"),
        ("pool", "heartbeat: 0s", "heartbeat: expected a duration above 0 such as 500ms, 2s or 1.5m, got '0s'"),
        ("pool", "devices: []", "devices: expected a list of at least one device, got an empty list"),
        ("pool", "devices: cpu", "devices: expected a list of at least one device, got 'cpu'"),
        ("pool", "devices: [5]", "devices[0]: expected a name without spaces or control characters, not empty, got 5"),
        ("pool", "engine_args: [a]", "engine_args: expected a mapping, got a list"),
        ("weight_store", "verify: 1", "verify: expected true or false, got 1"),
        (
            "weight_store",
            "host_memory: 9e30",
            "host_memory: expected a size above 0 such as 512MiB or 16GiB, got '9e30'",
        ),
        ("scheduler", "late: serv", "late: expected one of serve, refuse (did you mean serve?), got 'serv'"),
        (
            "scheduler",
            "policy: fifo",
            "policy: expected one of prism, prism-paper, static, space, swap, serverless, lru, got 'fifo'",
        ),
    ],
)
def test_wrong_types_units_and_ranges(problems: Problems, section: str, line: str, problem: str) -> None:
    others = "" if section == "pool" else "pool: {engine: simulated}\n"
    engine = "  engine: simulated\n" if section == "pool" else ""
    found = problems(f"{others}models: [{{name: a}}]\n{section}:\n{engine}  {line}")
    assert found == [f"4: {section}.{problem}"]


def test_an_engine_that_does_not_exist(problems: Problems) -> None:
    assert problems("pool:\n  engine: simulate\n  engine_args: {ttft: 1s}\nmodels: [{name: a}]") == [
        "2: pool.engine: expected one of transformers, sglang, simulated (did you mean simulated?), got 'simulate'"
    ]


@pytest.mark.parametrize("name", ["''", "a b", '"a\\tb"', '"a\\nb"', '"a\\n"', '"a\\x7f"', "5", "~", "[]"])
def test_names_that_no_model_may_have(problems: Problems, name: str) -> None:
    (problem,) = problems(f"pool: {{engine: simulated}}\nmodels:\n  - name: {name}")
    assert problem.startswith(
        "3: models[0].name: expected a name without spaces or control characters, not empty, got "
    )


def test_unknown_keys_with_what_was_probably_meant(problems: Problems) -> None:
    found = problems(
        """
        pool:
          engine: simulated
          worker_per_device: 2
        shceduler: {}
        models:
          - name: a
            slo: {ttf: 1s}
          - name: b
            zzz: 1
        """
    )
    assert [problem.split(": expected")[0] for problem in found] == [
        "3: pool.worker_per_device",
        "4: shceduler",
        "7: models[0].slo.ttf",
        "9: models[1].zzz",
    ]
    assert "(did you mean workers_per_device?), got an unknown key" in found[0]
    assert "(did you mean scheduler?), got an unknown key" in found[1]
    assert found[2] == "7: models[0].slo.ttf: expected one of ttft, tpot (did you mean ttft?), got an unknown key"
    assert "did you mean" not in found[3]


@pytest.mark.parametrize("second", ["port: 2", '"port": 2'])
def test_a_key_twice(problems: Problems, second: str) -> None:
    found = problems(f"pool: {{engine: simulated}}\nmodels: [{{name: a}}]\ngateway:\n  port: 1\n  {second}")
    assert found == ["5: gateway.port: expected one value, got it again (first on line 4)"]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (
            "tfft: 1s",
            "pool.engine_args.tfft: expected one of ttft, tpot, activation, held_blank, held_active, held_parked, "
            "kv_per_token, limit_delay, faulty (did you mean ttft?), got an unknown key",
        ),
        ("tpot: fast", "pool.engine_args.tpot: expected a duration such as 500ms, 2s or 0s, got 'fast'"),
    ],
)
def test_wrong_arguments_of_the_simulated_engine(problems: Problems, line: str, problem: str) -> None:
    found = problems(f"pool:\n  engine: simulated\n  engine_args:\n    {line}\nmodels: [{{name: a}}]")
    assert found == [f"4: {problem}"]


def test_arguments_that_an_engine_does_not_take(problems: Problems, tmp_path: Path) -> None:
    make_model(tmp_path / "a")
    assert problems("pool:\n  engine_args: {x: 1}\nmodels:\n  - name: a\n    path: a\n    engine_args: {y: 1}") == [
        "2: pool.engine_args.x: expected no key here, got an unknown key",
        "6: models[0].engine_args.y: expected no key here, got an unknown key",
    ]


# --- fields that are wrong together ---------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["pool: {engine: simulated}", "pool: {engine: simulated}\nmodels: []"])
def test_no_models(problems: Problems, text: str) -> None:
    line = 2 if "models" in text else 1
    assert problems(text) == [f"{line}: models: expected at least one model, got none"]


def test_a_model_without_a_name(problems: Problems) -> None:
    assert problems("pool: {engine: simulated}\nmodels:\n  - priority: 1\n  - {}") == [
        "3: models[0].name: expected a name without spaces or control characters, not empty, got nothing",
        "4: models[1].name: expected a name without spaces or control characters, not empty, got nothing",
    ]


def test_two_models_of_one_name(problems: Problems) -> None:
    assert problems("pool: {engine: simulated}\nmodels:\n  - name: a\n  - name: b\n  - name: a") == [
        "5: models[2].name: expected a name of its own, got 'a' again (it is models[0])"
    ]


def test_a_device_twice(problems: Problems) -> None:
    assert problems("pool:\n  engine: simulated\n  devices:\n    - d\n    - d\nmodels: [{name: a}]") == [
        "5: pool.devices[1]: expected each device once, got 'd' again"
    ]


def test_an_admin_socket_whose_path_is_too_long(problems: Problems) -> None:
    path = f"/tmp/{'x' * 92}"
    found = problems(f"gateway:\n  admin_socket: {path}\npool: {{engine: simulated}}\nmodels: [{{name: a}}]")
    assert found == [f"2: gateway.admin_socket: expected a path of at most 96 bytes, got 97: {path}"]


def test_bodies_that_may_not_be_as_large_as_one_may_be(problems: Problems) -> None:
    limits = "gateway:\n  limits:\n    max_body: 2MiB\n    unfinished_bodies: 1MiB"
    found = problems(f"{limits}\npool: {{engine: simulated}}\nmodels: [{{name: a}}]")
    assert found == [
        "4: gateway.limits.unfinished_bodies: expected at least gateway.limits.max_body (2.0 MiB), got 1.0 MiB"
    ]


@pytest.mark.parametrize("written", ["on", "off", "auto", '"on"', "On"])
def test_on_and_off_are_words_where_a_choice_has_them(tmp_path: Path, written: str) -> None:
    file = tmp_path / "registry.yaml"
    file.write_text(f"pool: {{engine: simulated, devices: [cuda:0], mps: {written}}}\nmodels: [{{name: a}}]")
    assert read_registry(file).pool.mps == written.strip('"').lower()


def test_no_other_choice_takes_them(problems: Problems) -> None:
    found = problems("pool: {engine: simulated, mps: true}\nmodels: [{name: a}]")
    assert found == ["1: pool.mps: expected one of auto, on, off, got true"]


def test_mps_is_for_gpus(problems: Problems) -> None:
    found = problems("pool:\n  engine: simulated\n  devices: [cuda:0, cpu]\n  mps: on\nmodels: [{name: a}]")
    assert found == ["4: pool.mps: expected auto or off, as not all devices are GPUs, got on"]


def test_a_reserve_that_leaves_no_worker(problems: Problems) -> None:
    found = problems("pool:\n  engine: simulated\n  workers_per_device: 2\n  blank_reserve: 2\nmodels: [{name: a}]")
    assert found == ["4: pool.blank_reserve: expected less than workers_per_device (2), got 2"]


def test_a_silence_no_longer_than_a_heartbeat(problems: Problems) -> None:
    found = problems("pool:\n  engine: simulated\n  heartbeat: 2s\n  silence: 2s\nmodels: [{name: a}]")
    assert found == ["4: pool.silence: expected more than heartbeat (2.0 s), got 2.0 s"]


def test_more_pinned_models_than_workers(problems: Problems) -> None:
    found = problems(
        """
        pool: {engine: simulated, devices: [d0, d1], workers_per_device: 1}
        models:
          - {name: a, pinned: true}
          - {name: b, pinned: true}
          - {name: c, pinned: true}
        """
    )
    assert found == ["5: models[2].pinned: expected pinned models on at most 2 workers, got 3"]


def test_pinned_models_that_leave_no_worker_for_the_others(problems: Problems) -> None:
    found = problems(
        """
        pool: {engine: simulated, workers_per_device: 2}
        models:
          - {name: a, pinned: true}
          - {name: b, pinned: true}
          - {name: c}
        """
    )
    assert found == [
        "4: models[1].pinned: expected a worker left for the 1 not pinned, got pinned models on all 2 workers"
    ]


def test_a_pinned_model_takes_a_worker_of_each_of_its_devices(problems: Problems) -> None:
    found = problems(
        """
        pool: {engine: simulated, devices: [d0, d1], workers_per_device: 1}
        models:
          - {name: a, pinned: true, tensor_parallel: 2}
          - {name: b, pinned: true}
        """
    )
    assert found == ["4: models[1].pinned: expected pinned models on at most 2 workers, got 3"]


def test_every_model_pinned_is_fine(write: Write) -> None:
    text = "pool: {engine: simulated}\nmodels: [{name: a, pinned: true}, {name: b, pinned: true}]"
    assert all(model.pinned for model in read_registry(write(text)).models)


def test_tensor_parallel_is_not_for_transformers(problems: Problems, tmp_path: Path) -> None:
    make_model(tmp_path / "a")
    assert problems("models:\n  - name: a\n    path: a\n    tensor_parallel: 2") == [
        "4: models[0].tensor_parallel: expected 1 with the engine transformers, got 2"
    ]


def test_the_sglang_engine_takes_what_is_the_models_own_affair(write: Write, tmp_path: Path) -> None:
    make_model(tmp_path / "a")
    arguments = "{attention_backend: triton, max_total_tokens: 4096, mem_fraction_static: 0.4, tool_call_parser: qwen}"
    registry = read_registry(
        write(f"pool: {{engine: sglang}}\nmodels:\n  - {{name: a, path: a, engine_args: {arguments}}}")
    )
    assert registry.models[0].engine_args == {
        "attention_backend": "triton",
        "max_total_tokens": 4096,
        "mem_fraction_static": 0.4,
        "tool_call_parser": "qwen",
    }


def test_the_sglang_engine_takes_no_argument_that_is_prisms(problems: Problems, tmp_path: Path) -> None:
    make_model(tmp_path / "a")
    text = "pool: {engine: sglang}\nmodels:\n  - name: a\n    path: a\n    engine_args: {trust_remote_code: true}"
    (problem,) = problems(text)
    assert problem.startswith("5: models[0].engine_args.trust_remote_code: expected one of attention_backend, ")


def test_sglang_runs_on_gpus_too(problems: Problems, write: Write, tmp_path: Path) -> None:
    make_model(tmp_path / "a")
    assert read_registry(write('pool: {engine: sglang, devices: [cpu, "cuda:0"]}\nmodels: [{name: a, path: a}]'))
    places = {"sglang": "cpu, or a GPU such as cuda:0", "transformers": "cpu, the only device transformers runs on"}
    for engine, expected in places.items():
        assert problems(f"pool: {{engine: {engine}, devices: [cpu, gpu]}}\nmodels: [{{name: a, path: a}}]") == [
            f"1: pool.devices[1]: expected {expected}, got gpu"
        ]


def test_device_memory_that_leaves_nothing_for_a_model(problems: Problems) -> None:
    pool = "{engine: simulated, device_memory: 3GiB, kv_minimum: 1GiB, workspace: 2GiB}"
    assert problems(f"pool: {pool}\nmodels: [{{name: a}}]") == [
        "1: pool.device_memory: expected more than kv_minimum and workspace (3.0 GiB), got 3.0 GiB"
    ]


def test_device_memory_of_a_cpu(problems: Problems, tmp_path: Path) -> None:
    make_model(tmp_path / "a")
    assert problems("pool: {device_memory: 8GiB}\nmodels: [{name: a, path: a}]") == [
        "1: pool.device_memory: expected nothing, as transformers on a CPU uses no device memory, got 8.0 GiB"
    ]


def test_models_that_no_device_is_large_enough_for(problems: Problems, tmp_path: Path) -> None:
    make_model(tmp_path / "a", weights=14 * 1024 * MIB)
    expected = "weights of at most 13.0 GiB beside workspace and kv_minimum on a device of 16.0 GiB"
    assert problems(
        """
        pool: {engine: sglang, devices: ["cuda:0"], device_memory: 16GiB}
        weight_store: {host_memory: 32GiB}
        models:
          - {name: a, path: a}
        """
    ) == [f"4: models[0].path: expected {expected}, got 14.0 GiB"]


def test_pinned_models_that_no_memory_is_large_enough_for(problems: Problems) -> None:
    found = problems(
        """
        pool: {engine: simulated, devices: [d0, d1], device_memory: 16GiB}
        models:
          - {name: a, pinned: true, engine_args: {weights: 12GiB}}
          - {name: b, pinned: true, engine_args: {weights: 12GiB}}
          - {name: c, pinned: true, engine_args: {weights: 12GiB}}
        """
    )
    assert found == [
        "1: pool.device_memory: expected at least 45.0 GiB on all devices for the 3 pinned models, got 32.0 GiB"
    ]


def test_what_is_left_out_depends_on_the_device() -> None:
    gpus = PoolConfig(engine="sglang", devices=("cuda:0",))
    assert (blank_reserve(gpus, "cuda:0"), copies_at_a_time(gpus, "cuda:0")) == (1, 1)
    assert blank_reserve(replace(gpus, workers_per_device=1), "cuda:0") == 0
    assert (blank_reserve(PoolConfig(), "cpu"), copies_at_a_time(PoolConfig(), "cpu")) == (0, None)
    given = PoolConfig(blank_reserve=1, activations_per_device=3)
    assert (blank_reserve(given, "cpu"), copies_at_a_time(given, "cpu")) == (1, 3)


def test_a_colon_is_not_for_names_of_sglang(problems: Problems, tmp_path: Path) -> None:
    make_model(tmp_path / "a")
    assert problems("pool: {engine: sglang}\nmodels:\n  - name: a:b\n    path: a") == [
        "3: models[0].name: expected a name without a colon, after which SGLang expects an adapter, got a:b"
    ]


def test_tensor_parallel_over_more_devices_than_there_are(problems: Problems) -> None:
    assert problems("pool: {engine: simulated, devices: [d0, d1]}\nmodels:\n  - {name: a, tensor_parallel: 4}") == [
        "3: models[0].tensor_parallel: expected at most the number of devices (2), got 4"
    ]


def test_a_registry_for_the_simulator_may_have_models_on_several_devices(write: Write, tmp_path: Path) -> None:
    make_model(tmp_path / "a")
    text = "pool: {engine: sglang}\nmodels:\n  - {name: a, path: a, tensor_parallel: 8}"
    assert read_registry(write(text), serving=False).models[0].tensor_parallel == 8


# --- models on disk -------------------------------------------------------------------------------------------


def test_a_model_with_neither_path_nor_shape(problems: Problems) -> None:
    assert problems("models:\n  - name: a") == [
        "2: models[0].path: expected a folder with config.json, tokenizer and safetensors, got nothing"
    ]


def test_a_model_with_both_path_and_shape(problems: Problems, tmp_path: Path) -> None:
    make_model(tmp_path / "a")
    assert problems("models:\n  - name: a\n    path: a\n    shape: a/config.json") == [
        "4: models[0].shape: expected a path or a shape, got both"
    ]


def test_a_path_that_is_missing(problems: Problems, tmp_path: Path) -> None:
    assert problems("models:\n  - name: a\n    path: nowhere") == [
        f"3: models[0].path: expected a folder, got {tmp_path}/nowhere (No such file or directory)"
    ]


def test_a_path_that_the_file_system_refuses(problems: Problems, tmp_path: Path) -> None:
    assert problems(f"models:\n  - name: a\n    path: {'x' * 300}") == [
        f"3: models[0].path: expected a folder, got {tmp_path}/{'x' * 300} (File name too long)"
    ]


def test_a_path_that_is_a_file(problems: Problems, tmp_path: Path) -> None:
    assert problems("models:\n  - name: a\n    path: registry.yaml") == [
        f"3: models[0].path: expected a folder, got {tmp_path}/registry.yaml (not a folder)"
    ]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "(No such file or directory)"),
        (b"{", "(Expecting property name enclosed in double quotes: line 1 column 2 (char 1))"),
        (b"[]", "(not a JSON object)"),
        (b"[" * 100_000, "maximum recursion depth exceeded"),
        (b"\xff\xfe\xfa", "codec can't decode"),
    ],
)
def test_a_path_without_a_config_that_can_be_read(
    problems: Problems, tmp_path: Path, content: bytes | None, reason: str
) -> None:
    (tmp_path / "a").mkdir()
    if content is not None:
        (tmp_path / "a" / "config.json").write_bytes(content)
    (problem,) = problems("models:\n  - name: a\n    path: a")
    assert problem.startswith(
        f"3: models[0].path: expected a folder with a model's config.json, got {tmp_path}/a/config.json ("
    )
    assert reason in problem


def test_a_folder_without_weights_and_tokenizer(problems: Problems, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.json").write_text("{}")
    text = "models:\n  - name: a\n    path: a"
    where = "3: models[0].path: expected a folder with a model's"
    assert problems(text) == [
        f"{where} weights, got {tmp_path}/a without *.safetensors or pytorch_model*.bin",
        f"{where} tokenizer, got {tmp_path}/a without tokenizer.json or the like",
    ]


def test_a_folder_of_which_not_all_was_downloaded(problems: Problems, tmp_path: Path) -> None:
    folder = make_model(tmp_path / "a")
    parts = {"w1": "model.safetensors", "w2": "model-2.safetensors", "w3": "model-3.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))
    assert problems("models:\n  - name: a\n    path: a") == [
        f"3: models[0].path: expected a folder with a model's weights, got {folder} without model-2.safetensors "
        "and 1 more, which model.safetensors.index.json names"
    ]


def test_a_config_is_enough_of_a_folder_to_simulate(write: Write, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert read_registry(write("models: [{name: a, path: .}]"), serving=False).models[0].path == tmp_path


def test_a_shape_is_enough_to_simulate_and_not_to_serve(write: Write, problems: Problems, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    text = "models:\n  - name: a\n    shape: config.json"
    assert read_registry(write(text), serving=False).models[0].shape == tmp_path / "config.json"
    assert problems(text) == [
        "3: models[0].shape: expected a path, or weights: dummy, since a shape alone can be simulated but not served, "
        "got a shape alone"
    ]


def test_a_shape_is_enough_for_the_simulated_engine(write: Write, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    registry = read_registry(write("pool: {engine: simulated}\nmodels: [{name: a, shape: config.json}]"))
    assert registry.models[0].shape == tmp_path / "config.json"


def test_a_shape_that_is_missing(problems: Problems, tmp_path: Path) -> None:
    assert problems("models:\n  - name: a\n    shape: none.json", serving=False) == [
        f"3: models[0].shape: expected a model's config.json, got {tmp_path}/none.json (No such file or directory)"
    ]


# --- dummy weights --------------------------------------------------------------------------------------------

SHAPE = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 1000,
    "torch_dtype": "bfloat16",
}


@pytest.fixture
def shape(tmp_path: Path) -> Path:
    """The folder of a config.json, and nothing else."""
    (tmp_path / "shape").mkdir()
    (tmp_path / "shape" / "config.json").write_text(json.dumps(SHAPE))
    return tmp_path / "shape"


@pytest.mark.parametrize("engine", ["transformers", "sglang", "simulated"])
@pytest.mark.parametrize("source", ["shape: shape/config.json", "shape: shape", "path: shape"])
def test_a_config_is_enough_to_serve_dummy_weights(write: Write, shape: Path, engine: str, source: str) -> None:
    registry = read_registry(
        write(f"pool: {{engine: {engine}}}\nmodels: [{{name: a, weights: dummy, {source}}}]"), serving=True
    )
    (model,) = registry.models
    assert config_file(model) == shape / "config.json"
    parameters = 2 * 1000 * 64 + 2 * (4 * 64 * 64 + 3 * 64 * 128)
    assert weight_bytes(model) == 2 * parameters


def test_dummy_weights_have_the_dtype_that_the_model_is_served_in(write: Write, shape: Path) -> None:
    text = "models: [{name: a, weights: dummy, shape: shape}, {name: b, weights: dummy, shape: shape, dtype: float32}]"
    first, second = map(weight_bytes, read_registry(write(text)).models)
    assert second == 2 * first


def test_dummy_weights_of_an_unknown_size_are_left_to_the_load(write: Write, shape: Path) -> None:
    (shape / "config.json").write_text(json.dumps(SHAPE | {"architectures": ["NewForCausalLM"]}))
    (model,) = read_registry(write("models: [{name: a, weights: dummy, shape: shape}]")).models
    assert weight_bytes(model) == 0


@pytest.mark.parametrize("engine", ["transformers", "simulated"])
def test_dummy_weights_need_a_shape_or_a_path(problems: Problems, engine: str) -> None:
    assert problems(f"pool: {{engine: {engine}}}\nmodels:\n  - name: a\n    weights: dummy") == [
        "4: models[0].weights: expected a path or a shape to make dummy weights for, got neither"
    ]


def test_weights_that_are_neither(problems: Problems, shape: Path) -> None:
    assert problems("models:\n  - name: a\n    shape: shape\n    weights: random") == [
        "4: models[0].weights: expected one of checkpoint, dummy, got 'random'"
    ]


def test_dummy_weights_must_fit_into_host_memory_too(problems: Problems, shape: Path) -> None:
    huge = SHAPE | {"hidden_size": 2**15, "intermediate_size": 2**17, "num_hidden_layers": 50}
    (shape / "config.json").write_text(json.dumps(huge))
    (line,) = problems("models:\n  - name: a\n    shape: shape\n    weights: dummy")
    assert line.startswith("3: models[0].shape: expected weights of at most weight_store.host_memory (4.0 GiB), got ")


@pytest.mark.parametrize(("size", "got"), [(258, "with vocab_size 258"), (None, "without vocab_size")])
def test_a_vocabulary_that_no_tokenizer_can_be_made_up_for(
    problems: Problems, shape: Path, size: int | None, got: str
) -> None:
    (shape / "config.json").write_text(json.dumps(SHAPE | {"vocab_size": size}))
    text = "models:\n  - name: a\n    shape: shape\n    weights: dummy"
    assert problems(text) == [
        f"3: models[0].shape: expected a tokenizer, or a vocab_size of at least 259, got {shape}/config.json {got}"
    ]


def test_a_tokenizer_beside_the_config_needs_no_vocabulary_of_that_size(write: Write, shape: Path) -> None:
    (shape / "config.json").write_text(json.dumps(SHAPE | {"vocab_size": 100}))
    (shape / "tokenizer.json").write_text("{}")
    assert read_registry(write("models: [{name: a, weights: dummy, path: shape}]")).models


def test_a_shape_for_dummy_weights_that_is_missing(problems: Problems, tmp_path: Path) -> None:
    assert problems("models:\n  - name: a\n    shape: none.json\n    weights: dummy") == [
        f"3: models[0].shape: expected a model's config.json, got {tmp_path}/none.json (No such file or directory)"
    ]


@pytest.mark.parametrize("engine", ["transformers", "sglang"])
def test_a_model_that_is_larger_than_host_memory(problems: Problems, tmp_path: Path, engine: str) -> None:
    make_model(tmp_path / "large", 3 * 2**40)
    pool = f"pool: {{engine: {engine}}}"
    found = problems(f"{pool}\nweight_store: {{host_memory: 16GiB}}\nmodels:\n  - name: a\n    path: large")
    assert found == ["5: models[0].path: expected weights of at most weight_store.host_memory (16.0 GiB), got 3.0 TiB"]


@pytest.mark.parametrize("engine", ["transformers", "sglang"])
def test_what_is_kept_in_host_memory_must_fit_there(problems: Problems, tmp_path: Path, engine: str) -> None:
    for name in "abc":
        make_model(tmp_path / name, 1536 * MIB)
    found = problems(
        f"""
        pool: {{engine: {engine}}}
        models:
          - {{name: a, path: a, pinned: true}}
          - {{name: b, path: b, preload: true}}
          - {{name: c, path: c}}
        weight_store:
          host_memory: 2GiB
        """
    )
    assert found == [
        "7: weight_store.host_memory: expected at least 3.0 GiB for what is pinned or preloaded "
        "(a 1.5 GiB, b 1.5 GiB), got 2.0 GiB"
    ]


def test_what_is_not_kept_need_not_fit_together(write: Write, tmp_path: Path) -> None:
    for name in "ab":
        make_model(tmp_path / name, 1536 * MIB)
    text = "weight_store: {host_memory: 2GiB}\nmodels: [{name: a, path: a, preload: true}, {name: b, path: b}]"
    assert len(read_registry(write(text)).models) == 2


# --- all of it at once ----------------------------------------------------------------------------------------


def test_every_problem_at_once_in_the_order_of_the_lines(problems: Problems, tmp_path: Path) -> None:
    make_model(tmp_path / "b")
    found = problems(
        """
        models:
          - name: a b
            path: nowhere
            slo: {ttft: soon, tpot: 0}
          - just a name
          - name: b
            path: b
            tensor_parallel: 2
          - name: b
            path: b
            pinned: perhaps
        gateway:
          prot: 80
          port: 80
          port: 81
        pool:
          heartbeat: 5s
          silence: 1s
          workers_per_device: 1
          blank_reserve: 1
        weight_store: {host_memory: lots}
        """
    )
    assert [problem.split(": expected")[0] for problem in found] == [
        "2: models[0].name",
        "3: models[0].path",
        "4: models[0].slo.ttft",
        "4: models[0].slo.tpot",
        "5: models[1]",
        "8: models[2].tensor_parallel",
        "9: models[3].name",
        "11: models[3].pinned",
        "13: gateway.prot",
        "15: gateway.port",
        "18: pool.silence",
        "20: pool.blank_reserve",
        "21: weight_store.host_memory",
    ]


def test_what_follows_from_a_wrong_value_is_not_said(problems: Problems) -> None:
    found = problems(
        """
        pool: {engine: simulated, workers_per_device: 0, blank_reserve: 7}
        models:
          - {name: a, pinned: true}
          - {name: b, pinned: true}
          - {name: c, pinned: true}
        """
    )
    assert found == ["1: pool.workers_per_device: expected an integer of at least 1, got 0"]
