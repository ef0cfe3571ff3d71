"""The load test: its schedule, its arithmetic, and what it says of a server that fails."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer, unused_port
from transformers import AutoTokenizer

from bench.load.client import list_models, session
from bench.load.command import arguments, load, main
from bench.load.outcomes import ClientSlo, RequestOutcome
from bench.load.plan import choose_models, make_plan, objectives
from bench.load.prompts import ExactWriter, PromptWriter
from bench.load.report import warnings
from bench.load.summary import summarize
from bench.load.tokens import counter_of
from bench.load.workload import Arrival, arrival_times
from bench.overhead.mock_server import make_app
from simulator.errors import StudyError, UsageError

MINIMAL = ["--url", "http://127.0.0.1:1", "--rate", "1", "--duration", "1"]


@pytest.fixture
async def server() -> AsyncIterator[TestServer]:
    """A server with one model that works and three that fail, each in its own way."""
    app = make_app(("good", "busy", "breaks", "cuts"), tpot=0.001)
    app.middlewares.append(failing)
    async with TestServer(app) as running:
        yield running


@web.middleware
async def failing(request: web.Request, handler: web.Handler) -> web.StreamResponse:
    body = msgspec.json.decode(await request.read()) if request.method == "POST" else {}
    ends = {
        "breaks": b'data: {"error": {"message": "gone", "type": "server_error", "code": "worker_lost"}}\n\n',
        "cuts": b"",
    }
    if body.get("model") == "busy":
        return web.json_response({"error": {"message": "full"}}, status=429)
    if body.get("model") not in ends:
        return await handler(request)
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(b'data: {"choices": [{"delta": {"content": "a"}}]}\n\n' + ends[body["model"]])
    return response


def outcome(
    *, ttft: float, model: str = "m", tokens: int = 11, tpot: float = 0.01, late: float = 0.0
) -> RequestOutcome:
    """A request that was due at 100 s and answered to its end."""
    found = RequestOutcome(Arrival(100.0, model, 5, tokens), sent=100.0 + late)
    for number in range(tokens):
        found.token(100.0 + ttft + number * tpot)
    found.ended = found.last_token
    found.prompt_tokens, found.completion_tokens = 5, tokens
    return found


# --- a whole run ----------------------------------------------------------------------------------------------


async def test_a_run_reports_every_model_and_every_kind_of_failure(server: TestServer, tmp_path: Path) -> None:
    url = str(server.make_url("")).rstrip("/")
    given = ["--url", url, "--rate", "200", "--duration", "0.5s", "--output-tokens", "5", "--slo-ttft", "1h"]
    given += ["--json", str(tmp_path / "run.json"), "--png", str(tmp_path / "run.png"), "--slo-tpot", "1h"]

    assert await load(arguments(given)) == 0

    figures = json.loads((tmp_path / "run.json").read_text())
    models = figures["models"]
    assert {name: set(models[name]["errors"]) for name in models} == {
        "good": set(),
        "busy": {"http 429"},
        "breaks": {"error event: worker_lost"},
        "cuts": {"cut off"},
    }
    assert models["good"]["attainment"]["both"] == 1
    assert all(models[name]["attainment"]["both"] == 0 for name in ("busy", "breaks", "cuts"))
    assert sum(group["requests"] for group in models.values()) == figures["all"]["requests"]
    assert figures["all"]["goodput_rps"] == pytest.approx(models["good"]["completed"] / figures["took_s"])
    assert figures["tpot_from"] == "usage"
    assert len(figures["requests"]) == figures["all"]["requests"]
    assert {entry["failure"] for entry in figures["requests"] if entry["model"] == "good"} == {None}
    assert {entry["failure"] for entry in figures["requests"] if entry["model"] == "cuts"} == {"cut off"}
    assert {entry["output_tokens_got"] for entry in figures["requests"] if entry["model"] == "good"} == {5}
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")


async def test_ctrl_c_ends_the_run_and_still_reports(tmp_path: Path) -> None:
    arrived = asyncio.Event()
    app = make_app(("good",), tpot=3600.0)

    async def notice(request: web.Request, response: web.StreamResponse) -> None:
        if request.method == "POST":
            arrived.set()

    app.on_response_prepare.append(notice)
    async with TestServer(app) as running:
        command = [sys.executable, "-m", "bench.load", "--url", str(running.make_url("")), "--rate", "20"]
        command += ["--duration", "1h", "--estimate", "--json", str(tmp_path / "run.json")]
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.DEVNULL)
        await arrived.wait()
        process.send_signal(signal.SIGINT)

        assert await process.wait() == 130

    figures = json.loads((tmp_path / "run.json").read_text())
    assert figures["unfinished"] >= 1
    assert figures["all"]["requests"] == 0


def test_a_server_that_is_not_there_is_an_error_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"http://127.0.0.1:{unused_port()}"
    monkeypatch.setattr(sys, "argv", ["bench.load", "--url", url, "--rate", "1", "--duration", "1h"])

    with pytest.raises(SystemExit) as stopped:
        main()

    assert stopped.value.code == 1
    assert f"no server answers at {url}" in capsys.readouterr().err


async def test_objectives_come_from_the_server_unless_they_are_given(server: TestServer) -> None:
    async def models(request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "m", "slo": {"ttft_s": 0.5, "tpot_s": 0.05}}, {"id": "bare"}]})

    app = web.Application()
    app.router.add_get("/v1/models", models)
    async with TestServer(app) as running, session(None) as client:
        listed = await list_models(client, str(running.make_url("")).rstrip("/"))

    assert objectives(arguments(MINIMAL), listed, ["m", "bare"]) == {
        "m": ClientSlo(0.5, 0.05),
        "bare": ClientSlo(None, None),
    }
    given = arguments([*MINIMAL, "--slo-ttft", "250ms"])
    assert objectives(given, listed, ["m"]) == {"m": ClientSlo(0.25, 0.05)}


async def test_a_server_that_lists_no_models_is_refused() -> None:
    async with TestServer(web.Application()) as running, session(None) as client:
        with pytest.raises(StudyError, match="answers 404"):
            await list_models(client, str(running.make_url("")).rstrip("/"))


# --- units ----------------------------------------------------------------------------------------------------


def test_an_objective_in_milliseconds_is_compared_in_seconds() -> None:
    given = arguments([*MINIMAL, "--slo-ttft", "500ms", "--slo-tpot", "20ms"])
    slo = objectives(given, {"m": ClientSlo()}, ["m"])["m"]

    assert slo == ClientSlo(ttft=0.5, tpot=0.02)
    assert slo.met(outcome(ttft=0.4, tpot=0.015))
    assert not slo.met(outcome(ttft=0.6, tpot=0.015))
    assert not slo.met(outcome(ttft=0.4, tpot=0.025))


def test_figures_are_in_seconds() -> None:
    figures = summarize([outcome(ttft=0.4, tpot=0.015)], {"m": ClientSlo(0.5, 0.02)}, took=2.0)["all"]

    assert figures["ttft_s"]["p50"] == pytest.approx(0.4)
    assert figures["tpot_s"]["p50"] == pytest.approx(0.015)
    assert figures["inter_token_s"]["p99"] == pytest.approx(0.015)
    assert figures["e2e_s"]["p50"] == pytest.approx(0.4 + 10 * 0.015)
    assert figures["slo"] == {"ttft_s": 0.5, "tpot_s": 0.02}
    assert figures["goodput_rps"] == 0.5


def test_a_number_that_can_only_be_milliseconds_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        arguments([*MINIMAL, "--slo-ttft", "500"])

    assert "500 without a unit is seconds; for milliseconds write 500ms" in capsys.readouterr().err


# --- keeping the schedule -------------------------------------------------------------------------------------


def test_times_count_from_the_scheduled_arrival() -> None:
    late = outcome(ttft=2.1, late=2.0)

    assert late.lateness == pytest.approx(2.0)
    assert late.ttft == pytest.approx(2.1)


def test_a_run_that_fell_behind_says_so_loudly() -> None:
    behind = summarize([outcome(ttft=0.4, late=0.2)], {"m": ClientSlo(1.0, 1.0)}, took=1.0)
    on_time = summarize([outcome(ttft=0.4, late=0.001)], {"m": ClientSlo(1.0, 1.0)}, took=1.0)

    assert behind["kept_schedule"] is False
    assert "THE SCHEDULE WAS NOT KEPT" in warnings(behind)[0]
    assert on_time["kept_schedule"] is True
    assert warnings(on_time) == []


async def test_no_request_leaves_before_its_time_or_waits_for_another(tmp_path: Path) -> None:
    """The server answers nothing until all have arrived, so a client that waits would never end."""
    everyone = asyncio.Barrier(20)
    app = make_app(("good",), tpot=0.0)

    @web.middleware
    async def gather(request: web.Request, handler: web.Handler) -> web.StreamResponse:
        if request.method == "POST":
            await everyone.wait()
        return await handler(request)

    app.middlewares.append(gather)
    async with TestServer(app) as running:
        given = ["--url", str(running.make_url("")), "--rate", "100", "--duration", "0.205s", "--burstiness", "0"]
        await load(arguments([*given, "--estimate", "--json", str(tmp_path / "run.json")]))

    figures = json.loads((tmp_path / "run.json").read_text())
    assert figures["all"]["completed"] == 20
    assert figures["lateness_s"]["p50"] >= 0


# --- arrivals -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("burstiness", [0.5, 1.0, 3.0])
def test_gaps_have_the_rate_and_the_burstiness_asked_for(burstiness: float) -> None:
    times = list(arrival_times(50.0, 1000.0, burstiness, np.random.default_rng(1)))
    gaps = np.diff(times)

    assert len(times) == pytest.approx(50_000, rel=0.05)
    assert gaps.std() / gaps.mean() == pytest.approx(burstiness, rel=0.05)


def test_the_same_seed_gives_the_same_requests() -> None:
    given = ["--url", "http://x", "--rate", "20", "--duration", "10s", "--popularity", "zipf:1"]
    first, again, other = (make_plan(arguments([*given, "--seed", seed]), ["a", "b"]) for seed in "112")

    assert first == again
    assert first != other


def test_the_first_model_is_the_most_popular_by_zipfs_law() -> None:
    given = arguments(["--url", "http://x", "--rate", "100", "--duration", "100s", "--popularity", "zipf:1"])
    plan = make_plan(given, ["first", "second"])
    share = sum(arrival.model == "first" for arrival in plan) / len(plan)

    assert share == pytest.approx(2 / 3, abs=0.03)


def test_a_model_that_the_server_has_not_is_named() -> None:
    with pytest.raises(UsageError, match="has no zwei; it has eins"):
        choose_models("eins,zwei", {"eins": ClientSlo()})


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--rate", "0"], "--rate: expected a number above 0"),
        (["--duration", "soon"], "--duration: 'soon' is not a number"),
        (["--burstiness", "-1"], "expected 0 to 100"),
        (["--popularity", "pareto:1"], "expected uniform or zipf:EXPONENT"),
        (["--prompt-tokens", "uniform:9-3"], "9 is above 3"),
        (["--output-tokens", "normal:3"], "expected N, uniform:LOW-HIGH or lognormal:MEDIAN,P99"),
        (["--max-tokens", "many"], "--max-tokens: invalid whole number value: 'many'"),
        (["--time-scale", "2"], "--time-scale: only with --trace"),
        (["--tokenizer", "m"], "expected NAME=FOLDER of a model's tokenizer, got 'm'"),
        (["--url", "localhost:8000"], "expected http://HOST:PORT"),
        (["--json", "/nowhere/at/all.json"], "there is no folder /nowhere/at"),
        (["--colour"], "unrecognized arguments: --colour"),
    ],
)
def test_a_wrong_argument_is_one_line_and_exit_code_2(
    wrong: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        arguments([*MINIMAL, *wrong])

    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


# --- traces ---------------------------------------------------------------------------------------------------


REQUESTS = "arrival_s,model,prompt_tokens,output_tokens"
UNNAMED = "arrival_s,prompt_tokens,output_tokens"


def plan_of(path: Path, *given: str, models: Sequence[str] = ("a", "b")) -> list[Arrival]:
    return make_plan(arguments(["--url", "http://x", "--trace", str(path), *given]), models)


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join((*lines, "")))
    return path


def test_a_traces_models_are_those_of_the_server_by_name_and_then_by_rank(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "t.csv", REQUESTS, "2,rare,5,6", "0,busy,1,2", "1,busy,3,4", "3,kept,7,8")

    assert plan_of(path, models=["one", "two", "kept"]) == [
        Arrival(0.0, "one", 1, 2),
        Arrival(1.0, "one", 3, 4),
        Arrival(2.0, "two", 5, 6),
        Arrival(3.0, "kept", 7, 8),
    ]
    assert "trace: rare is two" in capsys.readouterr().err


def test_a_trace_without_models_is_spread_over_them_by_popularity(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", UNNAMED, *(f"{second},9,900" for second in range(1000)))
    plan = plan_of(path, "--max-tokens", "64", "--popularity", "zipf:1")

    assert sum(arrival.model == "a" for arrival in plan) == pytest.approx(667, abs=50)
    assert {arrival.model for arrival in plan} == {"a", "b"}
    assert {arrival.output_tokens for arrival in plan} == {64}


def test_a_traces_time_can_be_stretched_and_compressed(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", REQUESTS, "0,a,1,2", "1,a,3,4", "10,b,5,6")

    assert [arrival.at for arrival in plan_of(path, "--time-scale", "0.5")] == [0.0, 0.5, 5.0]
    assert [arrival.at for arrival in plan_of(path, "--time-scale", "2", "--duration", "5s")] == [0.0, 2.0]


@pytest.mark.parametrize("rate", [0.25, 3.0])
def test_a_trace_has_the_rate_and_the_duration_asked_for_and_its_own_pace(tmp_path: Path, rate: float) -> None:
    bursts = (200 * burst + second for burst in range(20) for second in range(100))
    path = write(tmp_path / "t.csv", UNNAMED, *(f"{at},1,1" for at in bursts))
    plan = plan_of(path, "--rate", str(rate), "--duration", "2000s")
    times = [arrival.at for arrival in plan]

    assert len(plan) == pytest.approx(2000 * rate, rel=0.1)
    assert max(times) < 2000
    assert sum(later - earlier > 90 for earlier, later in pairwise(times)) == 9
    assert plan == plan_of(path, "--rate", str(rate), "--duration", "2000s")


def test_clients_published_rates_are_a_trace_too(tmp_path: Path) -> None:
    lengths = ("prompt_mean", "prompt_p50", "prompt_p99", "output_mean", "output_p50", "output_p99")
    write(tmp_path / "x_lengths.csv", f"client,{','.join(lengths)}", "7,500,300,3000,100,60,600")
    rates = write(
        tmp_path / "x_rates.csv", "client,window_start_s,rate_rps,arrival_pattern,param_1,param_2", "7,0,2,Gamma,1,0.5"
    )
    plan = plan_of(rates, "--duration", "600s", models=["only"])

    assert len(plan) == 1200
    assert {arrival.model for arrival in plan} == {"only"}


@pytest.mark.parametrize(
    ("lines", "given", "said"),
    [
        (["arrival_s,prompt_tokens", "1,2"], [], "t.csv:1: expected the columns"),
        ([UNNAMED, "1,2,many"], [], "t.csv:2: output_tokens: expected a whole number of tokens, got 'many'"),
        ([UNNAMED], [], "holds no requests"),
        ([UNNAMED, "9,1,1"], ["--duration", "5s"], "no request arrives in that duration"),
        ([UNNAMED, "9,1,1"], ["--duration", "5s", "--rate", "1"], "a trace without requests has no rate"),
    ],
)
def test_a_wrong_trace_is_one_clear_line(tmp_path: Path, lines: list[str], given: list[str], said: str) -> None:
    with pytest.raises(StudyError) as refused:
        plan_of(write(tmp_path / "t.csv", *lines), *given)

    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


# --- prompts --------------------------------------------------------------------------------------------------


def test_prompts_are_text_that_never_repeats() -> None:
    writer = PromptWriter(seed=3)
    prompts = [writer.write(200) for _ in range(200)]

    assert len({prompt.split()[0] for prompt in prompts}) == 200
    for prompt in prompts:
        words = prompt.split()
        assert max(words.count(word) for word in set(words)) < len(words) / 5
        assert all(one != next_one for one, next_one in pairwise(words))


def test_prompts_have_about_the_length_asked_for_where_nobody_counts() -> None:
    writer = PromptWriter(seed=3)

    assert [len(writer.write(tokens).split()) for tokens in (135, 1350)] == [100, 1000]


LENGTHS = [20, 21, 40, 333, 1000, 3999]


def test_prompts_are_exact_by_a_models_own_tokenizer_and_template(demo_folder: Path) -> None:
    folder = demo_folder / "llama-tiny"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = ExactWriter.counting(3, counter_of(folder)).write_each(LENGTHS)
    chats = [[{"role": "user", "content": text}] for text in texts]

    assert [len(tokenizer.apply_chat_template(c, add_generation_prompt=True)["input_ids"]) for c in chats] == LENGTHS


def test_exact_prompts_are_text_too(demo_folder: Path) -> None:
    words = ExactWriter.counting(3, counter_of(demo_folder / "llama-tiny")).write(2000).split()

    assert max(words.count(word) for word in set(words)) < len(words) / 5


def test_a_prompt_shorter_than_the_template_is_the_shortest_there_is(demo_folder: Path) -> None:
    count_each = counter_of(demo_folder / "llama-tiny")
    (text,) = ExactWriter.counting(3, count_each).write_each([1])

    assert text == "1."
    assert count_each([text]) == count_each(["1."])


async def test_a_server_is_asked_how_it_counts_where_no_tokenizer_is_known(tmp_path: Path) -> None:
    """This one counts characters, and refuses `ignore_eos`."""

    @web.middleware
    async def strict(request: web.Request, handler: web.Handler) -> web.StreamResponse:
        if request.method == "POST" and "ignore_eos" in msgspec.json.decode(await request.read()):
            return web.json_response({"error": {"message": "unknown parameter"}}, status=400)
        return await handler(request)

    app = make_app(("counts",), tpot=0.0)
    app.middlewares.append(strict)
    async with TestServer(app) as running:
        given = ["--url", str(running.make_url("")), "--rate", "100", "--duration", "0.5s", "--prompt-tokens"]
        await load(arguments([*given, "uniform:2-4000", "--json", str(tmp_path / "run.json")]))

    lengths = json.loads((tmp_path / "run.json").read_text())["models"]["counts"]["prompt_tokens"]
    assert abs(lengths["off_most"]) <= 1


async def test_without_asking_the_report_says_how_far_off_lengths_were(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with TestServer(make_app(("counts",), tpot=0.0)) as running:
        given = ["--url", str(running.make_url("")), "--rate", "100", "--duration", "0.2s", "--prompt-tokens", "1000"]
        await load(arguments([*given, "--estimate", "--json", str(tmp_path / "run.json")]))

    lengths = json.loads((tmp_path / "run.json").read_text())["models"]["counts"]["prompt_tokens"]
    assert lengths["exact"] == 0
    assert lengths["off_mean"] == pytest.approx(lengths["counted_mean"] - 1000)
    assert f"counts: prompts had {lengths['off_mean']:+.1f} tokens more than asked for" in capsys.readouterr().out


def test_the_same_seed_writes_the_same_prompts() -> None:
    assert PromptWriter(7).write(50) == PromptWriter(7).write(50)
    assert PromptWriter(7).write(50) != PromptWriter(8).write(50)
