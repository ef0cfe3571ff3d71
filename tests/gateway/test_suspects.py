"""What the scheduler makes of requests under which a worker has died: they run alone, apart from everybody else."""

from __future__ import annotations

from typing import Any

from scheduler.actions import Dispatch, Recycle
from scheduler.events import Aborted, FirstToken
from scheduler.flow.suspects import MEMORY
from tests.rig.fake_pool import GIB, Bench, only


def bench(models: str = "ab", **fields: Any) -> Bench:
    return Bench(models, **{"workers": 2, "max_running": 4, **fields})


def die_alone(pool: Bench, poison: int) -> None:
    """A request ends its worker, and then the one on which it is alone."""
    pool.die(worker_of(pool, poison))
    pool.settle()
    pool.die(worker_of(pool, poison))
    pool.settle()


def worker_of(pool: Bench, request: int) -> int:
    dispatched = [action.worker for action in only(Dispatch, pool.said) if action.request == request]
    return dispatched[-1]


# after a worker's death


def test_who_had_no_byte_runs_alone_where_nobody_else_does() -> None:
    pool = bench()
    first, second = pool.serve("a"), pool.serve("a")
    victim = worker_of(pool, first)
    pool.clear()
    pool.die(victim)
    assert only(Recycle, pool.said) == [Recycle(victim, "its requests may have ended a worker", isolated=True)]
    pool.settle()
    assert pool.dispatched() == [first]
    other = pool.serve("a")
    assert pool.on(other) not in (None, victim)
    pool.finish(first)
    pool.settle()
    assert pool.dispatched() == [first, other, second]
    pool.finish(second)
    pool.settle()
    assert not pool.scheduler.state.isolations
    assert pool.refused() == {}


def test_a_stream_that_had_begun_ends_and_is_no_suspect() -> None:
    pool = bench()
    begun = pool.serve("a")
    pool.tell(FirstToken(begun))
    pool.die(worker_of(pool, begun))
    assert pool.aborted() == [begun]
    assert pool.scheduler.state.isolations == {}


def test_who_waited_for_the_worker_is_served_elsewhere_at_once() -> None:
    pool = bench(max_running=1)
    poison, bystander = pool.serve("a"), pool.ask("a")
    assert pool.waits(bystander)
    victim = pool.on(poison)
    assert victim is not None
    pool.die(victim)
    pool.settle(but=Recycle)  # before the isolated worker is even there
    assert pool.on(bystander) == 1 - victim


def test_bystanders_are_never_refused_however_many_workers_die_beside_them() -> None:
    pool = bench(workers=4)
    for _ in range(3):
        bystander, poison = pool.serve("a"), pool.serve("a", body="poison")
        pool.die(worker_of(pool, poison))
        for _ in range(4):
            pool.settle()
            if pool.dispatched()[-1] == poison and poison in pool.scheduler.state.requests:
                pool.die(worker_of(pool, poison))
            elif bystander in pool.scheduler.state.requests:
                pool.finish(bystander)
        assert bystander not in pool.refused()
        pool.now += MEMORY


def test_one_that_ends_its_lone_worker_is_told_so() -> None:
    pool = bench()
    poison = pool.serve("a")
    die_alone(pool, poison)
    refusal = pool.refused()[poison]
    assert (refusal.kind, refusal.retry_after) == ("crash", 0.0)
    assert "so did one that served nothing else" in refusal.reason
    assert pool.phases().count("isolated") == 0


def test_one_that_ends_its_lone_worker_after_its_first_byte_is_known_as_well() -> None:
    pool = bench()
    poison = pool.serve("a", body="poison")
    pool.die(worker_of(pool, poison))
    pool.settle()
    pool.tell(FirstToken(poison))
    pool.die(worker_of(pool, poison))
    assert pool.aborted() == [poison]
    again = pool.ask("a", body="poison")
    assert pool.refused()[again].kind == "crash"


def test_a_suspects_client_may_leave() -> None:
    pool = bench()
    suspect = pool.serve("a")
    pool.die(worker_of(pool, suspect))
    pool.settle(but=Recycle)
    pool.tell(Aborted(suspect))
    pool.settle()
    assert not pool.scheduler.state.isolations


# the same again


def test_the_same_again_is_refused_and_ends_no_worker_for_ten_minutes() -> None:
    pool = bench()
    die_alone(pool, pool.serve("a", body="poison"))
    pool.clear()
    for _ in range(3):
        pool.now += MEMORY / 4
        again = pool.ask("a", body="poison")
        assert pool.refused()[again].kind == "crash"
    assert pool.dispatched() == []
    assert pool.on(pool.serve("a", body="another")) is not None
    pool.now += MEMORY
    assert pool.on(pool.serve("a", body="poison")) is not None


def test_the_same_again_runs_apart_while_it_is_not_known_who_it_was() -> None:
    """Such as when its client has left, and comes back."""
    pool = bench()
    suspect = pool.serve("a", body="poison")
    pool.die(worker_of(pool, suspect))
    pool.tell(Aborted(suspect))
    pool.settle()
    pool.clear()
    again = pool.ask("a", body="poison")
    (apart,) = pool.scheduler.state.isolations
    assert only(Recycle, pool.said) == [Recycle(apart, "its requests may have ended a worker", isolated=True)]
    pool.settle()
    assert (worker_of(pool, again), pool.on(again)) == (apart, None)
    pool.finish(again)
    pool.settle()
    assert pool.on(pool.serve("a", body="poison")) is not None, "it is cleared"


def test_it_takes_the_worker_that_is_missed_least() -> None:
    pool = bench(workers=3)
    suspect = pool.serve("a", body="poison")
    busy = pool.serve("b")
    pool.die(worker_of(pool, suspect))
    pool.tell(Aborted(suspect))
    pool.settle()
    pool.serve("a")
    pool.ask("a", body="poison")
    (apart,) = pool.scheduler.state.isolations
    assert apart not in (pool.on(busy), *pool.active())


def test_it_waits_while_nobody_can_spare_a_worker() -> None:
    pool = bench(workers=1)
    suspect = pool.serve("a", body="poison")
    pool.die(worker_of(pool, suspect))
    pool.tell(Aborted(suspect))
    pool.settle()
    busy = pool.serve("a")
    again = pool.ask("a", body="poison")
    pool.settle()
    assert pool.waits(again)
    assert pool.on(busy) == 0
    pool.finish(busy)
    pool.wait(0.1)
    pool.settle()
    assert worker_of(pool, again) == 0
    assert pool.phases() == ["isolated"]
    waiting = pool.ask("a")
    pool.finish(again)
    pool.settle()
    assert pool.on(waiting) == 0


def test_all_that_ask_the_same_are_refused_with_the_first_that_is_found_out() -> None:
    pool = bench()
    poison = pool.serve("a", body="poison")
    pool.die(worker_of(pool, poison))
    same = [pool.ask("a", body="poison") for _ in range(3)]
    pool.settle()
    pool.die(worker_of(pool, poison))
    assert pool.refused().keys() == {poison, *same}


def test_no_more_than_half_of_a_devices_workers_are_apart() -> None:
    pool = bench("abcd", workers=4)
    suspects = [pool.serve(name) for name in "abcd"]
    for suspect in suspects:
        pool.die(worker_of(pool, suspect))
    assert pool.phases().count("isolated") == 2
    for suspect in suspects:
        pool.settle()
        pool.finish(suspect)
    pool.settle()
    assert pool.refused() == {}
    assert not pool.scheduler.state.isolations


def test_memory_is_kept_for_its_model() -> None:
    pool = bench("ab", weights={"a": 4 * GIB, "b": 4 * GIB}, memory=20 * GIB, host_memory=100 * GIB)
    suspect = pool.serve("a")
    pool.die(worker_of(pool, suspect))
    pool.settle()
    assert pool.dispatched()[-1] == suspect
