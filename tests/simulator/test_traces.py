"""Traces: read, made, cut, scaled, mapped onto a registry, and what they say of themselves."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from simulator.errors import StudyError, UsageError
from simulator.traces.__main__ import main
from simulator.traces.drawing import Gaps, LengthDistribution, generator
from simulator.traces.readers import read_requests, read_trace
from simulator.traces.statistics import describe
from simulator.traces.synthetic import Rotating, Steady, Zipf
from simulator.traces.synthetic_text import parse_synthetic, written
from simulator.traces.table import ACTIVE, CHANGES, IDLE_GAPS, MINUTE_CV, table
from simulator.traces.trace import Trace, TraceRequest, map_models, merged
from simulator.traces.writer import write_requests

REQUESTS = "arrival_s,model,prompt_tokens,output_tokens"
RATES = "client,window_start_s,rate_rps,cv,arrival_pattern,param_1,param_2"
LENGTHS = "client,prompt_mean,prompt_p50,prompt_p99,output_mean,output_p50,output_p99"


def write(path: Path, *lines: str) -> Path:
    content = "\n".join((*lines, "")).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def trace_of(*times: float, model: str = "m", duration: float | None = None) -> Trace:
    return Trace.of([TraceRequest(at, model, 10, 20) for at in times], duration=duration)


def times(trace: Trace, model: str | None = None) -> list[float]:
    return [request.at for request in trace if model in (None, request.model)]


# --- cutting, scaling, merging --------------------------------------------------------------------------------


def test_a_trace_is_in_time_order_and_can_be_read_again() -> None:
    trace = trace_of(3.0, 1.0, 2.0)

    assert times(trace) == [1.0, 2.0, 3.0]
    assert list(trace) == list(trace)
    assert trace.duration > 3.0


def test_a_window_starts_at_zero_and_keeps_models_that_are_silent_in_it() -> None:
    whole = merged([trace_of(0.0, 10.0, 20.0, duration=30.0), trace_of(1.0, model="early")])
    window = whole.window(10.0, 10.0)

    assert times(window) == [0.0]
    assert window.models == ("m", "early")
    assert window.duration == 10.0
    assert whole.window(25.0, 60.0).duration == 5.0


def test_merged_traces_run_from_the_same_start() -> None:
    together = merged([trace_of(0.0, 4.0, model="a"), trace_of(1.0, 9.0, model="b")])

    assert [request.model for request in together] == ["a", "b", "a", "b"]
    assert together.duration > 9.0


@pytest.mark.parametrize("factor", [0.25, 1.0, 2.5])
def test_a_scaled_trace_has_the_rate_and_the_idle_gaps_it_had(factor: float) -> None:
    bursts = trace_of(*(600 * burst + 0.1 * number for burst in range(20) for number in range(100)))
    scaled = bursts.scaled(factor, seed=1)
    found = times(scaled)

    assert len(found) == pytest.approx(2000 * factor, rel=0.06)
    assert found == sorted(found)
    assert found == times(bursts.scaled(factor, seed=1))
    assert np.count_nonzero(np.diff(found) > 500) == 19
    assert found[-1] < bursts.duration


def test_a_lower_rate_is_a_part_of_a_higher_one() -> None:
    trace = trace_of(*range(1000))

    assert set(times(trace.scaled(0.3))) < set(times(trace.scaled(0.6)))
    assert times(trace.scaled(1.0)) == times(trace)


def test_a_trace_is_scaled_to_a_rate() -> None:
    trace = trace_of(*range(1000)).at_rate(4.0)

    assert describe(trace).rate == pytest.approx(4.0, rel=0.02)
    with pytest.raises(StudyError, match="without requests"):
        Trace.of([], ["m"], 10.0).at_rate(1.0)


# --- mapping --------------------------------------------------------------------------------------------------


def asked(**requests: int) -> Trace:
    return merged([trace_of(*range(number), model=name) for name, number in requests.items()])


def test_models_map_by_name_and_then_by_rank_in_registry_order() -> None:
    trace = asked(rare=1, busy=5, kept=3)
    mapping = map_models(trace, ["one", "kept", "two"])

    assert mapping == {"rare": "two", "busy": "one", "kept": "kept"}
    assert trace.renamed(mapping).requests_by_model() == {"one": 5, "kept": 3, "two": 1}


def test_more_models_than_the_registry_has_share_its() -> None:
    trace = asked(a=3, b=2, c=1)
    mapping = map_models(trace, ["x", "y"])

    assert mapping == {"a": "x", "b": "y", "c": "x"}
    assert trace.renamed(mapping).models == ("x", "y")


# --- files of requests ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz"])
def test_requests_are_read_in_time_order(tmp_path: Path, name: str) -> None:
    trace = read_trace(write(tmp_path / name, REQUESTS, "2.5,b,5,6", "0.0,a,0,2", "1,a,3,4"))

    assert list(trace) == [TraceRequest(0.0, "a", 1, 2), TraceRequest(1.0, "a", 3, 4), TraceRequest(2.5, "b", 5, 6)]
    assert trace.models == ("a", "b")


def test_a_file_without_models_is_one_model(tmp_path: Path) -> None:
    trace = read_trace(write(tmp_path / "code.csv.gz", "arrival_s,prompt_tokens,output_tokens", "0,1,2", "9,3,4"))

    assert trace.models == ("code",)


def test_a_part_of_a_file_is_read_at_a_rate(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", REQUESTS, *(f"{second},m,1,1" for second in range(1000)))

    assert times(read_trace(path, start=10, duration=3)) == [0.0, 1.0, 2.0]
    assert describe(read_trace(path, rate=0.5)).requests == pytest.approx(500, rel=0.1)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    trace = Steady(duration=60.0).trace()
    paths = [tmp_path / "one.csv.gz", tmp_path / "two.csv.gz"]
    counts = [write_requests(trace, path) for path in paths]
    back = list(read_requests(paths[0]))

    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert len(back) == counts[0] == counts[1]
    assert [(got.model, got.prompt_tokens) for got in back] == [(sent.model, sent.prompt_tokens) for sent in trace]
    assert times(read_requests(paths[0])) == pytest.approx(times(trace), abs=1e-6)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["arrival_s,prompt_tokens", "1,2"], r"t\.csv:1: expected the columns .*output_tokens is missing"),
        (
            [REQUESTS, "0,m,1,1", "1,m,2,many"],
            r"t\.csv:3: output_tokens: expected a whole number of tokens, got 'many'",
        ),
        ([REQUESTS, "-1,m,2,3"], r"t\.csv:2: arrival_s: expected seconds of at least 0, got '-1'"),
        ([REQUESTS, "nan,m,2,3"], r"t\.csv:2: arrival_s: expected seconds"),
        ([REQUESTS, "1,,2,3"], r"t\.csv:2: model: expected text"),
        ([REQUESTS, "1,m,2"], r"t\.csv:2: expected 4 columns \(.*\), got 3"),
        ([REQUESTS], "holds no requests"),
        ([], r"t\.csv:1: expected the columns"),
    ],
)
def test_a_wrong_file_is_refused_with_line_and_column(tmp_path: Path, lines: Sequence[str], said: str) -> None:
    with pytest.raises(StudyError, match=said):
        read_trace(write(tmp_path / "t.csv", *lines))


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    cut = write(tmp_path / "cut.csv.gz", REQUESTS, *(f"{second},m,1,1" for second in range(100)))
    cut.write_bytes(cut.read_bytes()[:60])
    (tmp_path / "plain.csv.gz").write_text(REQUESTS)

    for name in ("none.csv", "plain.csv.gz", "cut.csv.gz"):
        with pytest.raises(StudyError, match=rf"{name}: cannot be read"):
            read_trace(tmp_path / name)


# --- ServeGen's clients ---------------------------------------------------------------------------------------


def servegen(folder: Path, *rates: str, lengths: Sequence[str] = ("0,500,300,3000,100,60,600", "1,,,,,,")) -> Path:
    write(folder / "x_lengths.csv", LENGTHS, *lengths)
    return write(folder / "x_rates.csv.gz", RATES, *rates)


def test_clients_have_the_requests_of_their_windows(tmp_path: Path) -> None:
    rates = servegen(
        tmp_path, "0,600,2,1,Gamma,1,0.5", "0,0,1,1,Gamma,1,1", "1,1200,0.5,1,Weibull,1,2", "7,9000,1,1,Gamma,1,1"
    )
    trace = read_trace(rates, duration=1800)

    assert set(trace.models) == {"client-0", "client-1", "client-7"}
    assert len(times(trace.window(0, 600))) == 600
    assert len(times(trace.window(600, 600))) == 1200
    assert len(times(trace.window(1200, 600), "client-1")) == 300
    assert list(trace) == list(trace)
    assert times(trace.window(600, 600)) == times(read_trace(rates, start=600, duration=600))
    assert list(trace) != list(read_trace(rates, duration=1800, seed=1))


def test_a_part_of_the_clients_at_a_rate(tmp_path: Path) -> None:
    rates = servegen(tmp_path, *(f"{client},600,2,1,Gamma,1,0.5" for client in range(20)))
    trace = read_trace(rates, models=5, start=900, duration=300, rate=3.0)

    assert len(trace.models) == 5
    assert set(trace.models) < set(read_trace(rates, models=6, start=900).models)
    assert describe(trace).rate == pytest.approx(3.0, rel=0.15)
    assert max(times(trace)) < 300


def test_gaps_have_their_parameters_and_a_short_burst_stays_one(tmp_path: Path) -> None:
    bursty = Gaps.with_cv("gamma", 3.0)
    rates = servegen(
        tmp_path,
        f"0,0,50,3,Gamma,{bursty.shape},{bursty.scale / 50}",
        "1,0,0.1,1,Gamma,1,0.01",
        "2,0,5,1,Weibull,0.007,1",
    )
    trace = read_trace(rates, duration=600)

    gaps = np.diff(times(trace, "client-0"))
    assert np.std(gaps) / np.mean(gaps) == pytest.approx(3.0, rel=0.1)
    burst = times(trace, "client-1")
    assert len(burst) == 60
    assert burst[-1] - burst[0] < 3
    assert len(times(trace, "client-2")) == 3000, "whatever the parameters, all requests are in the window"


def test_lengths_keep_the_published_mean_and_those_of_others_stand_in(tmp_path: Path) -> None:
    trace = read_trace(servegen(tmp_path, "0,0,20,1,Gamma,1,0.05", "1,0,20,1,Gamma,1,0.05"), duration=600)

    for model in trace.models:
        prompts = [request.prompt_tokens for request in trace if request.model == model]
        assert np.mean(prompts) == pytest.approx(500, rel=0.05)
        assert np.median(prompts) == pytest.approx(300, rel=0.15)
        assert np.percentile(prompts, 99) == pytest.approx(3000, rel=0.3)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("0,0,1,1,Pareto,1,1", r"x_rates\.csv\.gz:2: arrival_pattern: expected Gamma or Weibull, got 'Pareto'"),
        ("0,0,0,1,Gamma,1,1", r":2: rate_rps: expected a number above 0, got '0'"),
        ("0,0,1,1,Gamma,-1,1", r":2: param_1: expected a number above 0, got '-1'"),
        ("0,7200,1,1,Gamma,1,1", "these clients send no request between 0 and 3600 s"),
    ],
)
def test_wrong_rates_are_refused(tmp_path: Path, row: str, said: str) -> None:
    with pytest.raises(StudyError, match=said):
        read_trace(servegen(tmp_path, row))


def test_what_clients_cannot_give_is_refused(tmp_path: Path) -> None:
    rates = servegen(tmp_path, "0,0,1,1,Gamma,1,1")
    requests = write(tmp_path / "t.csv", REQUESTS, "0,m,1,1")

    with pytest.raises(StudyError, match="expected 2 clients to draw, found 1"):
        read_trace(rates, models=2)
    with pytest.raises(StudyError, match=r"send 1\.00 requests per second then, fewer than 5"):
        read_trace(rates, duration=600, rate=5.0)
    with pytest.raises(StudyError, match="needs ServeGen's client rates"):
        read_trace(requests, models=2)
    servegen(tmp_path, "0,0,1,1,Gamma,1,1", lengths=["0,5,,9,1,1,1"])
    with pytest.raises(StudyError, match=r"x_lengths\.csv:2: prompt_p50: expected a number above 0"):
        read_trace(rates)


# --- synthetic traces -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gamma", "weibull"])
@pytest.mark.parametrize("cv", [0.5, 1.0, 2.5])
def test_gaps_have_the_mean_and_the_variation_asked_for(kind: str, cv: float) -> None:
    trace = parse_synthetic(f"zipf:models=1,rate=20,on=1,pause=0,arrivals={kind},cv={cv},duration=1h").trace()
    found = describe(trace)

    assert found.rate == pytest.approx(20, rel=0.05)
    assert found.gap_cv == pytest.approx(cv, rel=0.06)


def test_the_default_lies_within_what_prism_saw() -> None:
    for seed in range(3):
        found = describe(Zipf(seed=seed).trace())

        assert ACTIVE.verdict(found.active_share) == "within"
        assert CHANGES.verdict(found.changes_per_hour) == "within"
        assert IDLE_GAPS.verdict(found.idle_gaps_per_hour) == "within"
        assert MINUTE_CV.verdict(found.minute_cv) == "within"
        assert found.rate == pytest.approx(6, rel=0.05)


def test_popularity_and_lengths_are_those_asked_for() -> None:
    asked_for = Zipf(models=4, rate=8, exponent=1, on=1, pause=0, prompt_mean=300, prompt_p99=2000)
    found = describe(asked_for.trace())

    assert list(asked_for.trace().requests_by_model()) == ["model-0", "model-1", "model-2", "model-3"]
    assert found.top_share == pytest.approx(12 / 25, rel=0.05)
    assert found.prompt_tokens.mean == pytest.approx(300, rel=0.05)
    assert found.prompt_tokens.p99 == pytest.approx(2000, rel=0.1)


@pytest.mark.parametrize("switching", ["exponential", "lognormal", "regular"])
def test_models_are_on_for_their_share_of_the_time(switching: str) -> None:
    text = f"zipf:models=40,rate=2,exponent=0,on=0.25,on_time=20m,switching={switching},duration=20h"
    found = describe(parse_synthetic(text).trace())

    assert found.active_share == pytest.approx(0.25, abs=0.06)


def test_a_day_has_its_peak_and_models_can_have_theirs_apart() -> None:
    together = "zipf:models=8,rate=4,exponent=0,on=1,pause=0,cv=1,diurnal=0.9,day=2h,duration=2h"
    halves = [len(times(parse_synthetic(together).trace().window(start, 3600))) for start in (0, 3600)]
    apart = [len(times(parse_synthetic(f"{together},shift=1").trace().window(start, 3600))) for start in (0, 3600)]

    assert halves[0] > 3 * halves[1]
    assert max(apart) < 2 * min(apart)


def test_steady_models_are_all_active_and_unequal() -> None:
    found = describe(Steady().trace())

    assert found.models == 4
    assert found.active_share == 1.0
    assert found.top_share > 0.4


def test_the_hot_pair_rotates() -> None:
    trace = Rotating(period=100.0, duration=600.0, rate=20.0).trace()
    pairs = [tuple(trace.window(start, 100).requests_by_model().items())[:2] for start in range(0, 600, 100)]

    assert all(count > 500 for pair in pairs for _, count in pair)
    hot = [frozenset(name for name, _ in pair) for pair in pairs]
    assert len(set(hot)) == 3
    assert hot[:3] == hot[3:]
    assert frozenset.union(*hot[:3]) == set(trace.models)


def test_a_seed_makes_the_same_trace_and_another_another() -> None:
    short = [list(Zipf(duration=300.0, seed=seed).trace()) for seed in (1, 1, 2)]

    assert short[0] == short[1] != short[2]


def test_the_text_of_a_synthetic_trace_says_all_of_it() -> None:
    chosen = parse_synthetic("zipf:models=58,rate=20,cv=2,duration=1h,on=0.3,seed=7")

    assert chosen == Zipf(models=58, rate=20.0, cv=2.0, duration=3600.0, on=0.3, seed=7)
    for synthetic in (chosen, Steady(), Rotating(period=90.0)):
        assert parse_synthetic(written(synthetic)) == synthetic


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("poisson:rate=1", "expected KIND.* one of zipf, steady, rotating"),
        ("zipf:ratee=1", "zipf has no 'ratee'; it has models, rate, duration"),
        ("zipf:rate=fast", "zipf: rate: expected a number above 0, got 'fast'"),
        ("zipf:rate=-1", "zipf: rate: expected a number above 0"),
        ("zipf:on=1.5", "zipf: on: expected a number above 0, up to 1"),
        ("zipf:duration=long", "zipf: duration: expected a duration above 0"),
        ("zipf:arrivals=gama", r"expected one of gamma, weibull \(did you mean gamma\?\), got 'gama'"),
        ("zipf:models", "expected KEY=VALUE, got 'models'"),
        ("zipf:rate=1,rate=2", "rate is given twice"),
        ("zipf:prompt_p99=5", "prompt_p99: expected at least the mean, 600, got 5"),
        ("rotating:models=2", "hot: expected fewer than the 2 models, got 2"),
        ("rotating:on=0.5", "rotating has no 'on'"),
    ],
)
def test_a_wrong_text_is_refused_with_its_key(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_synthetic(text)


def test_a_fit_keeps_the_mean() -> None:
    drawn = LengthDistribution.fit(mean=590, p99=3951, p50=120).draw(generator(0), 100_000)

    assert np.mean(drawn) == pytest.approx(590, rel=0.03)
    assert min(drawn) >= 1


# --- statistics -----------------------------------------------------------------------------------------------


def test_a_model_is_active_for_two_minutes_after_a_request() -> None:
    always = trace_of(*range(0, 3720, 60), model="always", duration=3720.0)
    once = trace_of(1200.0, model="once", duration=3720.0)
    silent = Trace.of([], ["silent", "mute"], 3720.0)
    found = describe(merged([always, once, silent]))

    assert found.active_share == pytest.approx(0.25 + 0.25 * 120 / 3600, abs=1e-3)
    assert found.changes_per_hour == pytest.approx(2.0)
    assert (found.models, found.silent_models) == (4, 2)
    assert found.top_share == pytest.approx(62 / 63)


def test_idle_gaps_are_counted_by_the_hour_and_model() -> None:
    often = trace_of(*range(0, 1800, 20), model="often", duration=1800.0)
    never = trace_of(*range(0, 1800, 10), model="never", duration=1800.0)
    found = describe(merged([often, never]))

    assert found.idle_gaps_per_hour == pytest.approx(89, abs=0.1)
    assert found.gap_cv == 0


def test_variation_of_requests_a_minute() -> None:
    every_other = [60 * minute + second for minute in range(0, 60, 2) for second in range(10)]

    assert describe(trace_of(*every_other, duration=3600.0)).minute_cv == pytest.approx(1.0)
    assert describe(trace_of(*range(3600))).minute_cv == 0


def test_a_trace_too_short_to_say_is_described_all_the_same() -> None:
    for trace in (trace_of(1.0), Trace.of([], ["m"], 10.0), Trace.of([])):
        assert "unknown" in table(describe(trace))


# --- the command line -----------------------------------------------------------------------------------------


def test_describe_and_make(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = tmp_path / "made.csv"
    main(["make", "--out", str(made), "--synthetic", "zipf:models=3,duration=10m,rate=2,on=1"])
    assert "requests written to" in capsys.readouterr().out

    main(["describe", str(made), "--rate", "1"])
    described = capsys.readouterr().out
    assert "to 3 models" in described
    assert "23 to 50%" in described


def test_several_files_are_one_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("code", "chat"):
        write(tmp_path / f"{name}.csv", "arrival_s,prompt_tokens,output_tokens", "0,1,1", "60,2,2")

    main(["describe", str(tmp_path / "code.csv"), str(tmp_path / "chat.csv")])
    assert "4 requests to 2 models" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "code", "said"),
    [
        (["describe"], 2, "expected files or --synthetic"),
        (["describe", "--synthetic", "zipf:x=1"], 2, "zipf has no 'x'"),
        (["describe", "--seed", "-1", "none.csv"], 2, "--seed: expected at least 0"),
        (["describe", "--duration", "0s", "none.csv"], 2, "expected a number above 0"),
        (["describe", "none.csv"], 1, "none.csv: cannot be read"),
    ],
)
def test_a_mistake_is_one_line(given: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(given)

    assert stopped.value.code == code
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
