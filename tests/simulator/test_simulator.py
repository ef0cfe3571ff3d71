"""The simulator: exact times where they can be computed by hand, and a scheduler that is checked at every step."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from msgspec.structs import replace

from bench.calibration.measurements import read_measurements
from bench.shapes import SHAPES
from config.errors import ShapeError
from config.reader import read_registry
from config.registry import PolicyName, Registry, Slo
from config.shape import read_shape, shape_of
from gateway.cli.main import main
from simulator.calibration import H200, Calibration, read_calibration
from simulator.costs import Costs
from simulator.engine import VirtualEngine, VirtualRequest
from simulator.errors import StudyError
from simulator.models import costs_of, on_gpus
from simulator.outcomes import SimulatedAnswer, SimulationResult
from simulator.profile import LONG, SHORT, profile_of
from simulator.report import Setting, row
from simulator.sharing import ALONE
from simulator.simulation import Simulation
from simulator.traces.synthetic_text import parse_synthetic
from simulator.traces.trace import Trace, TraceRequest

CALIBRATION = read_calibration()
GIB = 2**30


def costs(name: str) -> Costs:
    shape = shape_of(SHAPES[name])
    return Costs(CALIBRATION, shape, shape.weight_bytes)


def write_registry(folder: Path, models: dict[str, str], *, workers: int = 1, **sections: Any) -> Path:
    """A registry of `models`, each with the name of its shape; all are in host memory from the start.

    Unless it says otherwise the policy is `lru`, which activates nothing that nobody has asked for.
    """
    for name in set(models.values()):
        (folder / f"{name}.json").write_text(json.dumps(SHAPES[name]))
    path = folder / "registry.yaml"
    entries = [{"name": name, "shape": f"{shape}.json", "preload": True} for name, shape in models.items()]
    pool = {"engine": "sglang", "devices": ["cuda:0"], "workers_per_device": workers, **sections.pop("pool", {})}
    scheduler = {"policy": "lru", **sections.pop("scheduler", {})}
    host = {"host_memory": "500GiB"}
    path.write_text(
        yaml.safe_dump({"pool": pool, "weight_store": host, "models": entries, "scheduler": scheduler, **sections})
    )
    return path


def registry(folder: Path, models: dict[str, str], **sections: Any) -> Registry:
    return on_gpus(read_registry(write_registry(folder, models, **sections), serving=False), None, None)


def simulate(
    made: Registry,
    trace: Trace,
    *,
    capacity: int = 130 * GIB,
    calibration: Calibration = CALIBRATION,
    mps: bool = False,
    warmed: bool = True,
) -> SimulationResult:
    simulation = Simulation(
        made, costs_of(made.models, calibration), calibration, capacity=capacity, mps=mps, warmed=warmed, validate=True
    )
    return simulation.run(trace)


def pinned(made: Registry) -> Registry:
    return replace(made, models=tuple(replace(model, pinned=True) for model in made.models))


def alone_tpot(model: str, prompt: int, output: int) -> float:
    """Seconds per token of an answer in a batch of its own: its context is one token longer at each step."""
    made = costs(model)
    steps = [made.contended_decode(1, prompt + said, prompt + said, ALONE)[0].first for said in range(1, output)]
    return sum(steps) / len(steps)


def prefill_alone(model: str, *chunks: int) -> float:
    made, before, seconds = costs(model), 0, 0.0
    for chunk in chunks:
        seconds += made.prefill(made.prefill_work(chunk, before)) + made.prefill_host
        before += chunk
    return seconds


def first_token_alone(model: str, *chunks: int) -> float:
    """Seconds of a prompt's steps, and of its way to the engine and back."""
    made = costs(model)
    return made.front(sum(chunks)) + prefill_alone(model, *chunks)


# --- one request, two models ------------------------------------------------------------------------------------


def test_a_request_alone_takes_what_the_calibration_says(tmp_path: Path) -> None:
    made = pinned(registry(tmp_path, {"a": "llama-8b"}))

    (answer,) = simulate(made, Trace.of([TraceRequest(1.0, "a", 300, 50)])).answers

    assert answer.ended == "finished"
    assert answer.ttft == pytest.approx(first_token_alone("llama-8b", 300))
    assert answer.tpot == pytest.approx(alone_tpot("llama-8b", 300, 50))


def test_a_long_prompt_is_prefilled_in_chunks(tmp_path: Path) -> None:
    made = pinned(registry(tmp_path, {"a": "llama-8b"}))

    (answer,) = simulate(made, Trace.of([TraceRequest(0.0, "a", 20_000, 1)])).answers

    assert answer.ttft == pytest.approx(first_token_alone("llama-8b", 8192, 8192, 20_000 - 2 * 8192))
    assert answer.tpot == 0.0


def test_two_models_take_turns_on_one_worker(tmp_path: Path) -> None:
    made = registry(tmp_path, {"a": "llama-1b", "b": "llama-8b"}, scheduler={"idle_timeout": "45s"})

    result = simulate(made, Trace.of([TraceRequest(0.0, "a", 100, 10), TraceRequest(60.0, "b", 100, 10)]))

    first, second = result.answers
    assert first.ttft == pytest.approx(costs("llama-1b").blank_activation + first_token_alone("llama-1b", 100))
    rebuilt = CALIBRATION.teardown.seconds + costs("llama-8b").blank_activation
    assert second.ttft == pytest.approx(rebuilt + first_token_alone("llama-8b", 100))
    assert (result.activations, result.migrations) == (2, 0)


def test_a_parked_model_comes_back_in_the_time_of_its_copy(tmp_path: Path) -> None:
    made = registry(tmp_path, {"a": "llama-8b"}, scheduler={"idle_timeout": "10s"})

    _, second = simulate(made, Trace.of([TraceRequest(0.0, "a", 100, 10), TraceRequest(30.0, "a", 100, 10)])).answers

    assert second.ttft == pytest.approx(costs("llama-8b").parked_activation + first_token_alone("llama-8b", 100))


def test_models_of_one_gpu_slow_each_other_while_both_run(tmp_path: Path) -> None:
    made = pinned(registry(tmp_path, {"a": "llama-8b", "b": "llama-8b"}, workers=2, pool={"blank_reserve": 0}))

    together = simulate(made, Trace.of([TraceRequest(0.0, "a", 300, 200), TraceRequest(0.0, "b", 300, 200)])).answers

    slices = CALIBRATION.time_slices
    slowdown = 2 + slices.switch_seconds / slices.slice_seconds
    for answer in together:
        assert answer.tpot is not None
        assert answer.tpot / alone_tpot("llama-8b", 300, 200) == pytest.approx(slowdown, rel=0.02)


# --- models on several GPUs -------------------------------------------------------------------------------------


def on_several(made: Registry, **tensor_parallel: int) -> Registry:
    models = (replace(model, tensor_parallel=tensor_parallel.get(model.name, 1)) for model in made.models)
    return replace(made, models=tuple(models))


def test_a_model_on_two_gpus_takes_half_as_long_and_the_exchange_between_them(tmp_path: Path) -> None:
    one = registry(tmp_path, {"a": "llama-8b"}, pool={"devices": ["cuda:0", "cuda:1"]})
    two = on_several(one, a=2)
    asked = Trace.of([TraceRequest(0.0, "a", 4000, 100)])

    (alone,), (shared,) = (simulate(pinned(made), asked).answers for made in (one, two))

    shape = shape_of(SHAPES["llama-8b"])
    layers = shape.layers
    exchange = CALIBRATION.tensor_parallel.seconds_per_layer * layers
    assert alone.ttft is not None
    around = costs("llama-8b").front(4000) + CALIBRATION.prefill_host.seconds
    assert shared.ttft == pytest.approx(around + exchange + (alone.ttft - around) / 2)
    decode = CALIBRATION.decode
    kept = layers * decode.seconds_per_layer + decode.seconds_per_request
    kept += shape.kv_bytes / decode.longest_kv_bytes_per_s * (4000 + 50)
    assert alone.tpot is not None
    assert shared.tpot == pytest.approx(kept + exchange + (alone.tpot - kept) / 2)


def test_its_parts_are_copied_at_the_same_time(tmp_path: Path) -> None:
    one = registry(tmp_path, {"a": "llama-8b"}, pool={"devices": ["cuda:0", "cuda:1"]})
    asked = Trace.of([TraceRequest(0.0, "a", 1, 1)])

    whole, halves = (costs_of(made.models, CALIBRATION)["a"] for made in (one, on_several(one, a=2)))
    (answer,) = simulate(on_several(one, a=2), asked).answers

    copied = (whole.weight_bytes - halves.shard_bytes) / CALIBRATION.blank.bytes_per_s
    assert whole.blank_activation - halves.blank_activation == pytest.approx(copied)
    assert answer.ttft == pytest.approx(
        halves.blank_activation + halves.front(1) + halves.prefill(0.0) + halves.prefill_host
    )


def test_a_model_that_is_too_large_for_a_gpu_is_served_on_several(tmp_path: Path) -> None:
    one = registry(tmp_path, {"a": "llama-8b"}, pool={"devices": ["cuda:0", "cuda:1"]})
    asked = Trace.of([TraceRequest(0.0, "a", 100, 10)])

    (refused,) = simulate(one, asked, capacity=14 * GIB).answers
    (served,) = simulate(on_several(one, a=2), asked, capacity=14 * GIB).answers

    assert (refused.ended, served.ended) == ("refused: unavailable", "finished")


def test_it_is_as_slow_as_on_its_busiest_gpu_and_slows_both(tmp_path: Path) -> None:
    names = {"a": "llama-8b", "b": "llama-8b", "c": "llama-8b"}
    pool = {"devices": ["cuda:0", "cuda:1"], "blank_reserve": 0}
    made = pinned(on_several(registry(tmp_path, names, workers=3, pool=pool), a=2))

    def tpots(*asked: str) -> dict[str, float | None]:
        answers = simulate(made, Trace.of([TraceRequest(0.0, name, 300, 300) for name in asked])).answers
        return {answer.asked.model: answer.tpot for answer in answers}

    alone, pair = tpots("a")["a"], tpots("a", "b")
    assert alone is not None
    slower = 2 + CALIBRATION.time_slices.switch_seconds / CALIBRATION.time_slices.slice_seconds
    assert pair["a"] == pytest.approx(slower * alone, rel=0.05)
    for name in ("b", "c"):
        beside, by_itself = tpots("a", name)[name], tpots(name)[name]
        assert beside is not None
        assert by_itself is not None
        assert beside > 1.2 * by_itself, f"{name} shares a GPU with a"


@pytest.mark.parametrize("policy", get_args(PolicyName))
def test_every_policy_takes_models_on_several_gpus_through_a_random_trace(tmp_path: Path, policy: PolicyName) -> None:
    shapes = ["llama-8b", "llama-1b", "llama-3b", "qwen3-0.6b"]
    plain = registry(
        tmp_path,
        {f"model-{index}": shapes[index % 4] for index in range(6)},
        workers=3,
        pool={"devices": [f"cuda:{index}" for index in range(4)]},
        scheduler={"policy": policy, "idle_timeout": "5s"},
    )
    made = on_several(plain, **{"model-0": 4, "model-1": 2, "model-4": 2})
    trace = parse_synthetic("zipf:models=6,rate=6,cv=3,duration=60s,seed=5").trace()

    answers = simulate(made, trace, capacity=24 * GIB).answers

    assert {answer.ended.partition(":")[0] for answer in answers} <= {"finished", "refused"}
    served = {answer.asked.model for answer in answers if answer.ended == "finished"}
    assert policy in ("static", "space") or served == {answer.asked.model for answer in answers}


# --- whole traces -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("late", ["serve", "refuse"])
def test_every_request_of_a_random_trace_ends_once_whatever_the_shortage(tmp_path: Path, late: str) -> None:
    shapes = ["llama-8b", "llama-1b", "llama-3b", "qwen3-0.6b"]
    made = registry(
        tmp_path,
        {f"m{index}": shapes[index % 4] for index in range(8)},
        workers=3,
        scheduler={"late": late, "idle_timeout": "5s"},
        gateway={"limits": {"queue_per_model": 20}},
    )
    trace = parse_synthetic("zipf:models=8,rate=8,cv=3,duration=60s,seed=5").trace().stored()
    trace = trace.renamed({f"model-{index}": f"m{index}" for index in range(8)})

    answers = simulate(made, trace, capacity=30 * GIB).answers

    assert [answer.asked for answer in answers] == list(trace)
    assert {answer.ended.partition(":")[0] for answer in answers} == {"finished", "refused"}
    for answer in answers:
        assert (answer.ended == "finished") == (answer.finished_at is not None)
        assert answer.ttft is None or answer.ttft > 0


def test_the_same_trace_is_simulated_to_the_same_result(tmp_path: Path) -> None:
    made = registry(tmp_path, {"model-0": "llama-8b", "model-1": "llama-1b", "model-2": "llama-3b"}, workers=2)
    trace = parse_synthetic("zipf:models=3,rate=3,cv=2,duration=30s,seed=1").trace()

    assert simulate(made, trace).answers == simulate(made, trace).answers


def test_a_request_that_no_gpu_has_the_kv_cache_for_fails_and_holds_up_nobody(tmp_path: Path) -> None:
    made = pinned(registry(tmp_path, {"a": "llama-8b"}))

    large, small = simulate(
        made, Trace.of([TraceRequest(0.0, "a", 200_000, 10), TraceRequest(0.1, "a", 100, 10)]), capacity=30 * GIB
    ).answers

    assert (large.ended, large.ttft) == ("larger than any KV cache", None)
    assert small.ended == "finished"


# --- the engine -------------------------------------------------------------------------------------------------


def drain(engine: VirtualEngine, now: float = 0.0) -> dict[int, float]:
    """Run until nothing is left; returns when each request was complete."""
    finished = {}
    while (end := engine.begin(now)) is not None:
        now = end
        for request in engine.complete().finished:
            finished[request] = now
    return finished


def fill(engine: VirtualEngine, requests: int, rng: random.Random) -> None:
    for number in range(requests):
        engine.submit(VirtualRequest(number, rng.random(), rng.randint(1, 3000), rng.randint(1, 500)))


@pytest.mark.parametrize("seed", range(3))
def test_kv_cache_stays_within_its_limit_and_yet_all_are_served(seed: int) -> None:
    made, limit = costs("llama-8b"), GIB
    engine = VirtualEngine(made, 16, limit)
    fill(engine, 40, random.Random(seed))
    now, finished = 0.0, 0

    while (end := engine.begin(now)) is not None:
        now = end
        assert engine.mapped(now) <= limit
        finished += len(engine.complete().finished)
        assert engine.mapped(now) <= limit

    assert finished == 40
    assert (engine.running, engine.waiting, engine.mapped(now)) == (0, 0, 0)


def test_what_was_served_is_counted_while_it_runs() -> None:
    engine = VirtualEngine(costs("llama-8b"), 4, GIB)
    engine.submit(VirtualRequest(1, 1.0, 100, 50))
    engine.begin(0.0)
    now = prefill_alone("llama-8b", 100)
    engine.complete()
    end = engine.begin(now)

    assert engine.served(now) == (100, 1)
    assert engine.served(now + costs("llama-8b").decode(1, 101)) == (100, 2)
    assert end is not None
    assert engine.served(end) == (100, 50)
    engine.complete()
    assert engine.served(end) == (100, 50)


def test_a_lower_limit_makes_the_newest_wait_again_and_a_higher_one_brings_them_back() -> None:
    engine = VirtualEngine(costs("llama-8b"), 16, 2 * GIB)
    for number in range(4):
        engine.submit(VirtualRequest(number, float(number), 3000, 200))
    now = 0.0
    while engine.begin(now) is not None and engine.run is not None and engine.run.pieces:
        now = engine.run.end()
        engine.complete()
    assert engine.running == 4

    engine.set_limit(GIB)
    now = engine.cut(now + 1e-4) or now
    assert engine.complete().finished == []
    engine.begin(now)

    assert (engine.running, engine.waiting) == (2, 2)
    assert engine.mapped(now) <= GIB
    engine.set_limit(2 * GIB)
    served = engine.complete().finished + list(drain(engine, now))
    assert sorted(served) == [0, 1, 2, 3]


@pytest.mark.parametrize("seed", range(3))
def test_a_cut_changes_no_time(seed: int) -> None:
    """Steps that are advanced together take as long as step by step."""
    whole, stepped = VirtualEngine(costs("llama-3b"), 8, 4 * GIB), VirtualEngine(costs("llama-3b"), 8, 4 * GIB)
    fill(whole, 20, random.Random(seed))
    fill(stepped, 20, random.Random(seed))
    rng, now, finished = random.Random(seed), 0.0, {}

    while (end := stepped.begin(now)) is not None:
        cut = stepped.cut(rng.uniform(now, end))
        assert cut is not None
        now = cut
        finished.update(dict.fromkeys(stepped.complete().finished, now))

    assert finished == pytest.approx(drain(whole))


def test_an_aborted_request_makes_room_wherever_it_is() -> None:
    engine = VirtualEngine(costs("llama-8b"), 1, GIB)
    engine.submit(VirtualRequest(1, 1.0, 100, 1000))
    engine.submit(VirtualRequest(2, 2.0, 100, 10))
    engine.submit(VirtualRequest(3, 3.0, 100, 10))
    engine.begin(0.0)

    assert [engine.abort(request) for request in (1, 3, 4)] == [True, True, False]

    assert engine.complete().first_tokens == []
    assert list(drain(engine)) == [2]


# --- what it is given -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "parameters", "kv_bytes"),
    [("llama-1b", 1.236e9, 32768), ("llama-3b", 3.213e9, 114688), ("llama-8b", 8.030e9, 131072)],
)
def test_a_shapes_size_is_that_of_the_published_model(shape: str, parameters: float, kv_bytes: int) -> None:
    read = shape_of(SHAPES[shape])

    assert read.weight_bytes / 2 == pytest.approx(parameters, rel=1e-3)
    assert read.kv_bytes == kv_bytes


def test_a_step_reads_the_experts_that_its_batch_chooses() -> None:
    read = shape_of(SHAPES["qwen3-moe"])

    one = read.shared_bytes + read.expert_bytes * 8 / 64
    assert read.bytes_read(1) == pytest.approx(one)
    assert read.bytes_read(1) < read.bytes_read(8) < read.weight_bytes
    assert read.active_parameters < read.weight_bytes / 4


def test_a_large_model_is_built_while_it_is_copied() -> None:
    shape = shape_of(SHAPES["llama-8b"])
    small, large = (Costs(CALIBRATION, shape, nbytes) for nbytes in (2 * 10**9, 60 * 10**9))

    assert small.blank_activation > small.parked_activation
    assert large.blank_activation == large.parked_activation


def test_the_shipped_calibration_gives_what_was_measured() -> None:
    rows = json.loads(Path("docs/results/activation.json").read_text())
    by_state = {(entry["model"], entry["state"]): entry for entry in rows["rows"]}

    for model in ("llama-1b", "llama-8b"):
        assert costs(model).parked_activation == pytest.approx(by_state[model, "parked"]["weights_s"], rel=0.02)
        assert costs(model).blank_activation == pytest.approx(by_state[model, "blank"]["ready_s"], rel=0.02)
    assert 1 / costs("llama-8b").decode(1, 383) == pytest.approx(rows["decode_tokens_per_s"]["1"], rel=0.1)
    assert 32 / costs("llama-8b").decode(32, 32 * 383) == pytest.approx(rows["decode_tokens_per_s"]["32"], rel=0.1)


def test_steps_take_what_was_measured_wherever_that_was_the_same_each_time() -> None:
    measured = read_measurements(Path("docs/results/calibration.json"))
    steady = [it for it in measured.decode if max(it.steps) < 1.2 * min(it.steps)]

    assert len(steady) > 0.9 * len(measured.decode)
    for point in measured.prefill:
        chunks = [min(8192, point.tokens - before) for before in range(0, point.tokens, 8192)]
        kernels = prefill_alone(point.model, *chunks) - len(chunks) * CALIBRATION.prefill_host.seconds
        assert kernels == pytest.approx(point.median, rel=0.2), point
    for it in steady:
        assert costs(it.model).decode(it.batch, round(it.context)) == pytest.approx(it.median, rel=0.2), it


def test_a_prefill_takes_no_less_than_launching_its_kernels() -> None:
    made, launch = costs("llama-8b"), CALIBRATION.prefill.seconds_per_layer * 32

    assert made.prefill(made.prefill_work(1, 0)) == made.prefill(made.prefill_work(100, 0)) == pytest.approx(launch)
    assert made.prefill(made.prefill_work(4096, 0)) == made.prefill_work(4096, 0) > launch
    assert made.prefill_work(4096, 4096) > made.prefill_work(4096, 0)


def test_a_long_context_costs_a_small_batch_latency_and_a_large_one_bandwidth() -> None:
    """Either way each step of a run is longer than the one before by the same."""
    made, decode = costs("llama-8b"), CALIBRATION.decode

    latency, bandwidth = (made.kv_bytes / rate for rate in (decode.longest_kv_bytes_per_s, decode.kv_bytes_per_s))
    growth = {batch: made.decode_times(batch, batch * 100, 100).growth for batch in (1, 2, 16, 64)}
    assert growth[1] == growth[2] == pytest.approx(latency)
    assert growth[64] == pytest.approx(64 * bandwidth)
    for batch, each in growth.items():
        grown = made.decode(batch, batch * 10_000) - made.decode(batch, batch * 100)
        assert grown == pytest.approx(9_900 * each)


@pytest.mark.parametrize("model", ["qwen3-0.6b", "llama-1b", "llama-8b"])
def test_a_scheduler_is_told_what_short_and_long_prompts_take(model: str) -> None:
    told = profile_of({model: costs(model)}, CALIBRATION).models[model]

    assert told.prefill is not None
    assert told.prefill.at(SHORT) == pytest.approx(first_token_alone(model, SHORT))
    assert told.prefill.at(LONG) == pytest.approx(first_token_alone(model, LONG))


def test_a_step_reads_no_input_embedding_but_the_outputs() -> None:
    tied, untied = (shape_of(SHAPES["llama-1b"] | {"tie_word_embeddings": tied}) for tied in (True, False))

    assert untied.weight_bytes - tied.weight_bytes == 2 * 128256 * 2048
    assert tied.bytes_read(1) == untied.bytes_read(1) == tied.weight_bytes


@pytest.mark.parametrize(
    ("entry", "value", "complaint"),
    [
        ("teardown", {"seconds": -1, "measured": True, "source": "x"}, r"\$\.teardown\.seconds"),
        ("decode", {"seconds": 1}, r"\$\.decode"),
        ("limit", {"seconds": 1, "measured": True, "source": ""}, r"\$\.limit\.source"),
        ("colour", {}, "colour"),
    ],
)
def test_a_wrong_calibration_says_which_entry(tmp_path: Path, entry: str, value: object, complaint: str) -> None:
    path = tmp_path / "gpu.json"
    path.write_text(json.dumps({**json.loads(H200.read_bytes()), entry: value}))

    with pytest.raises(StudyError, match=complaint):
        read_calibration(path)


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"architectures": ["DeepseekV2ForCausalLM"]}, "its architecture is DeepseekV2ForCausalLM"),
        ({"hidden_size": None}, "not understood"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantized by awq"),
    ],
)
def test_a_shape_that_is_not_understood_says_so(tmp_path: Path, changed: dict[str, Any], complaint: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(SHAPES["llama-1b"] | changed))

    with pytest.raises(ShapeError, match=complaint):
        read_shape(path)


def test_attainment_counts_what_was_not_answered_as_missed() -> None:
    asked = [TraceRequest(float(at), "a", 10, 11) for at in range(4)]
    answers = [
        SimulatedAnswer(asked[0], 0.5, 1.5, "finished"),
        SimulatedAnswer(asked[1], 3.5, 4.5, "finished"),
        SimulatedAnswer(asked[2], 2.5, 12.5, "finished"),
        SimulatedAnswer(asked[3], ended="refused: late"),
    ]

    made = row(Setting("lru", 1, 1.0, 1.0, 0), SimulationResult(answers, 8.0, 1, 0), {"a": Slo(ttft=1.0, tpot=0.2)})

    assert (made.ttft_attainment, made.tpot_attainment, made.goodput_rps) == (0.5, 0.5, 1 / 8)


# --- the command ------------------------------------------------------------------------------------------------


def command(*given: str | Path) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["simulate", *map(str, given)])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_prism_simulate_prints_a_table_and_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = write_registry(tmp_path, {"a": "llama-8b", "b": "llama-1b"}, workers=2), tmp_path / "out.json"
    synthetic = "zipf:models=3,rate=1,duration=40s"

    options = ["--gpus", "2", "--gpu-memory", "80GiB", "--rate-scale", "1,2", "--slo-scale", "0.01,1", "--validate"]
    status = command("--registry", path, "--synthetic", synthetic, *options, "--json", out)

    written, printed = json.loads(out.read_bytes()), capsys.readouterr()
    assert status == 0
    assert [(entry["rate_scale"], entry["slo_scale"]) for entry in written] == [(1, 0.01), (1, 1), (2, 0.01), (2, 1)]
    assert {entry["gpus"] for entry in written} == {2}
    assert written[0]["ttft_attainment"] < written[1]["ttft_attainment"] <= 1.0
    assert written[2]["requests"] > written[0]["requests"] > 0
    assert len(printed.out.splitlines()) == 5
    assert "trace: model-0 is served by a" in printed.err or "trace: model-0 is served by b" in printed.err
    assert "73.6 GiB" in printed.err


@pytest.mark.parametrize(
    ("given", "status", "complaint"),
    [
        (["--synthetic", "zipf:colour=3"], 2, "zipf has no 'colour'"),
        (["--synthetic", "zipf:models=2,rate=1", "--policy", "fifo"], 2, "--policy"),
        (["--synthetic", "zipf:models=2,rate=1", "--gpu-memory", "0"], 2, "--gpu-memory"),
        (["--synthetic", "zipf:models=2,rate=1", "--rate-scale", "1,x"], 2, "numbers separated by commas"),
        (["--trace", "/nowhere.csv"], 1, "/nowhere.csv"),
    ],
)
def test_what_is_wrong_with_the_command_line_is_said(
    tmp_path: Path, given: list[str], status: int, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_registry(tmp_path, {"a": "llama-1b"})

    assert command("--registry", path, *given) == status
    assert complaint in capsys.readouterr().err


def test_a_model_whose_size_is_not_known_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "registry.yaml"
    path.write_text("pool: {engine: simulated}\nmodels: [{name: ghost}]\n")

    assert command("--registry", path, "--synthetic", "zipf:models=1,rate=1") == 1
    assert "ghost: its size is unknown" in capsys.readouterr().err
