"""Models on several devices: workers that are gathered, act as one, and part again."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from config.registry import PolicyName
from scheduler.actions import Activate, Blank, Drain, Park, Recycle, SetKvLimit
from scheduler.events import ActivationFailed, Counted, FirstToken, LimitApplied
from scheduler.state.phases import Phase
from tests.rig.fake_pool import GIB, Bench, model, only

TWO = ("d0", "d1")


def big(name: str = "big", *, over: int = 2, **fields: Any) -> Any:
    return model(name, tensor_parallel=over, **fields)


def bench(*models: Any, devices: tuple[str, ...] = TWO, **fields: Any) -> Bench:
    return Bench(models, devices=devices, **fields)


def groups(made: Bench) -> dict[int, tuple[int, ...]]:
    """Followers by leader."""
    replicas = [worker.replica for worker in made.scheduler.state.workers if worker.grouped and worker.leads]
    return {it.lead.number: tuple(worker.number for worker in it.workers[1:]) for it in replicas}


# --- together ---------------------------------------------------------------------------------------------------


def test_a_model_on_two_devices_takes_a_worker_on_each() -> None:
    made = bench(big(), workers=2)

    request = made.serve("big")

    (activate,) = only(Activate, made.said)
    assert (activate.worker, activate.followers) == (0, (2,))
    assert made.active() == {0: "big", 2: "big"}
    assert made.on(request) == 0
    assert made.scheduler.state.models["big"].workers == {0}


@pytest.mark.parametrize("policy", get_args(PolicyName))
def test_every_policy_serves_models_of_one_and_of_two_devices(policy: PolicyName) -> None:
    made = bench(big(), "a", "b", workers=2, weights=dict.fromkeys(("big", "a", "b"), 1), policy=policy)
    made.wait(1.0)
    made.settle()

    asked = [made.ask(name) for name in ("big", "a", "b", "big")]
    for _ in range(30):
        made.settle()
        made.finish(*(number for number in asked if made.on(number) is not None))
        made.wait(1.0)

    assert not made.scheduler.state.requests
    assert not made.refused()


def test_each_device_accounts_for_its_part() -> None:
    made = bench(big(), weights={"big": 9 * GIB}, memory=20 * GIB, host_memory=20 * GIB)

    made.serve("big")

    for worker in made.scheduler.state.workers:
        account = made.scheduler.state.account(worker)
        assert (account.weights, account.held) == (9 * GIB // 2, 2 * GIB)
        assert account.limit > 10 * GIB


def test_the_smallest_limit_is_what_the_model_has() -> None:
    made = bench(big(), "a", workers=2, weights={"big": 4 * GIB, "a": 2 * GIB}, memory=20 * GIB, host_memory=20 * GIB)
    made.serve("a")
    made.serve("big")

    limits = made.kv_limits()
    leader, (follower,) = next(iter(groups(made).items()))

    assert limits[leader] != limits[follower]
    state = made.scheduler.state
    assert state.kv_limit(state.workers[leader].replica) // GIB == min(limits[leader], limits[follower])


def test_a_model_that_fits_only_in_parts_is_served() -> None:
    sizes = {"big": 16 * GIB, "whole": 16 * GIB}
    made = bench(big(), "whole", weights=sizes, memory=13 * GIB, host_memory=20 * GIB)

    made.serve("big")
    refused = made.ask("whole")

    assert "does not fit" in made.refused()[refused].reason


# --- what an activation waits for ---------------------------------------------------------------------------------


def two_with_cache(**fields: Any) -> Bench:
    """`a` and `b` have all memory of a device each, as KV cache; `big` is wanted."""
    made = bench(
        big(),
        "a",
        "b",
        workers=2,
        weights={"big": 4 * GIB, "a": GIB, "b": GIB},
        memory=12 * GIB,
        host_memory=20 * GIB,
        **fields,
    )
    made.serve("a")
    made.serve("b")
    made.clear()
    made.ask("big")
    made.settle(but=SetKvLimit)
    return made


def test_it_begins_once_all_of_its_devices_have_the_memory() -> None:
    made = two_with_cache()
    assert made.phases().count("preparing") == 2

    first = made.take(SetKvLimit)
    made.tell(LimitApplied(first.worker, first.revision, 0))
    assert not only(Activate, made.said)

    made.settle()
    assert [activate.model for activate in only(Activate, made.said)] == ["big"]
    assert sorted(made.active().values()) == ["a", "b", "big", "big"]


def test_memory_that_does_not_come_in_time_leaves_all_as_they_were() -> None:
    made = two_with_cache()
    first = made.take(SetKvLimit)
    made.tell(LimitApplied(first.worker, first.revision, 0))

    for _ in range(2):
        made.wait(100.0)

    assert made.scheduler.state.models["big"].failures == 2
    assert "preparing" not in made.phases()
    assert not groups(made)
    state = made.scheduler.state
    assert all(not state.account(w).weights for w in state.workers if w.phase is Phase.BLANK)


def test_its_copy_takes_the_link_of_every_device() -> None:
    made = bench(big(), "a", workers=2, copies=1)
    made.ask("a")
    made.ask("big")
    begun = only(Activate, made.said)
    assert [activate.model for activate in begun] == ["a"]

    made.settle()

    assert [activate.model for activate in only(Activate, made.said)] == ["a", "big"]


def test_whoever_comes_after_it_does_not_take_the_link_it_waits_for() -> None:
    made = bench(big(), "a", "b", workers=3, copies=1)
    made.ask("a", within=10.0)
    made.ask("big", within=20.0)
    made.ask("b", within=30.0)
    busy = made.scheduler.state.workers[only(Activate, made.said)[0].worker].device

    other = next(worker for worker in made.scheduler.state.workers if worker.model == "b")

    assert busy != other.device or other.phase is Phase.PREPARING
    assert [activate.model for activate in only(Activate, made.said)] == ["a"]
    made.settle()
    assert sorted(made.active().values()) == ["a", "b", "big", "big"]


# --- gathering ----------------------------------------------------------------------------------------------------


def test_an_idle_model_leaves_and_the_free_worker_is_kept() -> None:
    made = bench(big(), "a", "b")
    made.finish(made.serve("a"))
    made.clear()

    made.ask("big")
    later = made.ask("b")

    assert [park.worker for park in only(Park, made.said)] == [0]
    assert not only(Activate, made.said), "the free worker is kept for the model on two devices"
    made.settle()
    assert made.active() == {0: "big", 1: "big"}
    assert made.waits(later)


def test_busy_models_do_not_starve_it() -> None:
    names = ("a", "b", "c", "d")
    made = bench(big(), *names, quantum=2.0, drain_after=1.0)
    wanted = None
    for round_ in range(60):
        for name in names:
            made.ask(name)
        if round_ == 5:
            wanted = made.ask("big", within=1.0)
        made.wait(0.5)
        made.settle()
        made.finish(*(n for n in list(made.scheduler.state.requests) if made.on(n) is not None and n != wanted))
        if wanted is not None and made.on(wanted) is not None:
            break
        made.settle()

    assert wanted is not None
    assert made.on(wanted) is not None
    assert round_ < 60 - 1


def test_only_as_many_leave_as_it_lacks() -> None:
    made = bench(big(), "a", "b", "c", devices=("d0", "d1", "d2", "d3"))
    for name in ("a", "b", "c"):
        made.finish(made.serve(name))
        made.wait(1.0)
    made.clear()

    made.ask("big")
    made.settle()

    assert len(only(Park, made.said)) == 1
    assert sorted(made.active().values()) == ["b", "big", "big", "c"]


def test_a_busy_one_is_drained_for_it_and_serves_on_when_nobody_asks_any_more() -> None:
    made = bench(big(), "a", quantum=2.0, drain_after=1.0)
    running = made.serve("a")
    asked = made.ask("big")
    made.wait(5.0)
    assert [drain.worker for drain in only(Drain, made.said)] == [0]

    made.finish(running)
    made.settle()

    assert made.on(asked) is not None


def test_its_workers_are_one_replica_until_they_are_blank_again() -> None:
    made = bench(big(), idle_timeout=10.0)
    alone = [worker.replica for worker in made.scheduler.state.workers]
    assert [replica.workers for replica in alone] == [(worker,) for worker in made.scheduler.state.workers]

    made.finish(made.serve("big"))
    leader, follower = made.scheduler.state.workers
    assert leader.replica is follower.replica
    assert leader.replica.workers == (leader, follower)
    assert (leader.leads, follower.leads) == (True, False)

    made.die(follower.number)
    made.settle()
    assert leader.replica is not follower.replica
    assert made.phases() == ["blank", "starting"], "the one that is left is replaced, too, and ready again"


# --- parking and blanking -----------------------------------------------------------------------------------------


def parked_big(*others: Any, **fields: Any) -> Bench:
    made = bench(big(), *others, idle_timeout=10.0, **fields)
    made.finish(made.serve("big"))
    made.wait(60.0)
    made.settle()
    assert made.phases().count("parked") == 2
    made.clear()
    return made


def test_a_parked_group_comes_back_as_it_was() -> None:
    made = parked_big(workers=2)

    made.serve("big")

    assert [(action.worker, action.followers) for action in only(Activate, made.said)] == [(0, (2,))]
    assert made.scheduler.state.workers[0].replica.revived


def test_a_parked_group_is_blank_before_others_have_its_workers() -> None:
    made = parked_big("a")

    asked = made.ask("a")
    assert [action.worker for action in only(Blank, made.said)] == [0]
    assert not only(Activate, made.said)

    made.settle()
    assert made.on(asked) is not None
    assert sorted(made.phases()) == ["active", "blank"]
    assert not groups(made)


def test_other_workers_are_taken_before_a_parked_group() -> None:
    made = parked_big("a", workers=2)

    made.serve("a")

    assert not only(Blank, made.said)
    assert groups(made)


def test_a_group_that_was_used_later_is_torn_down_later_than_a_model_beside_its_follower() -> None:
    made = bench(big(), "a", "b", workers=3, blank_reserve=1)
    for name, worker in (("a", 4), ("big", 0)):
        made.activate(name, worker)
        made.settle()
        made.finish(made.serve(name))
        made.evict(name)
        made.settle()
        made.now += 60.0
    assert [made.phases()[worker] for worker in (0, 3, 4)] == ["parked"] * 3
    made.clear()

    made.activate("b", 5)
    made.settle()

    assert [action.worker for action in only(Blank, made.said)] == [4]


def test_what_a_request_was_thought_to_need_is_corrected_on_every_device() -> None:
    made = bench(big(), workers=1, memory=20 * GIB, kv={"big": 2**20}, max_running=4)
    requests = [made.serve("big", prompt=1000) for _ in range(3)]

    for number in requests:
        made.tell(Counted(number, 10))

    leader, follower = made.scheduler.state.workers
    assert leader.replica.kv_promised == follower.replica.kv_promised == 3 * 10 * 2**19
    made.finish(*requests)
    assert leader.replica.kv_promised == follower.replica.kv_promised == 0


def test_an_idle_group_is_evicted_whole() -> None:
    made = bench(big(), "a", "b")
    made.finish(made.serve("big"))
    made.clear()

    for name in ("a", "b"):
        made.ask(name)
    made.settle()

    assert [park.worker for park in only(Park, made.said)] == [0]
    assert sorted(made.active().values()) == ["a", "b"]


# --- what goes wrong ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("victim", [0, 1])
def test_a_death_ends_the_whole_group_and_its_requests_are_served_again(victim: int) -> None:
    made = bench(big())
    waiting, streaming = made.serve("big"), made.serve("big")
    made.tell(FirstToken(streaming))
    made.clear()

    made.die(victim)

    assert [action.worker for action in only(Recycle, made.said)] == [1 - victim]
    assert made.aborted() == [streaming]
    assert made.phases() == ["starting", "starting"]
    made.pending.append(Recycle(victim, "the supervisor starts another"))
    made.settle()
    assert made.on(waiting) is not None
    assert made.active() == {0: "big", 1: "big"}


def test_a_death_before_anybody_was_told_leaves_the_others_as_they_were() -> None:
    made = bench(big(), "a", workers=2, copies=1)
    made.ask("a")
    made.ask("big")
    (leader, (follower,)) = next(iter(groups(made).items()))

    made.die(follower)

    assert not only(Recycle, made.said)
    assert made.scheduler.state.workers[leader].phase in (Phase.BLANK, Phase.PREPARING)
    made.settle()
    assert sorted(made.active().values()) == ["a", "big", "big"]


def test_a_parked_group_of_which_one_dies_is_replaced() -> None:
    made = parked_big()

    made.die(1)

    assert [action.worker for action in only(Recycle, made.said)] == [0]
    assert made.phases() == ["starting", "starting"]


def test_an_activation_that_fails_leaves_all_blank() -> None:
    made = bench(big(), memory=20 * GIB, weights={"big": 4 * GIB}, host_memory=10 * GIB)
    made.ask("big")
    made.settle(but=Activate)
    failed = made.take(Activate)

    made.tell(ActivationFailed(failed.worker, "big", "a file is missing", GIB))

    state = made.scheduler.state
    assert state.models["big"].avoid == failed.worker
    again = only(Activate, made.said)[-1]
    assert (again.worker, again.followers) != (failed.worker, failed.followers) or state.models["big"].failures == 1


def test_more_devices_than_there_are_is_said_at_once() -> None:
    made = bench(big(over=3))

    refused = made.ask("big")

    assert made.refused()[refused].reason == "big needs 3 devices, there are not as many"


def test_devices_that_pinned_models_keep_are_none_for_it() -> None:
    made = bench(big(), model("a", pinned=True))
    made.settle()

    refused = made.ask("big")

    assert "kept by a pinned model" in made.refused()[refused].reason


def test_a_pinned_one_is_served_from_the_start_and_never_evicted() -> None:
    made = bench(big(pinned=True), "a", "b", workers=2)
    made.settle()
    assert sorted(made.active().values()) == ["big", "big"]

    for name in ("a", "b"):
        made.serve(name)
    made.wait(100.0)
    made.settle()

    assert list(made.active().values()).count("big") == 2


# --- operators ----------------------------------------------------------------------------------------------------


def test_an_operator_evicts_all_of_it() -> None:
    made = bench(big())
    made.finish(made.serve("big"))

    command = made.evict("big")
    made.settle()

    assert made.answers() == {command: True}
    assert made.phases() == ["parked", "parked"]


def test_who_led_an_evicted_group_that_never_began_may_follow_in_the_next() -> None:
    made = two_with_cache()
    leader, (follower,) = next(iter(groups(made).items()))

    evicted = made.evict("big")
    made.die(follower)
    made.activate("big", worker=follower)
    made.pending.append(Recycle(follower, "the supervisor starts another"))
    made.settle()

    assert made.answers()[evicted]
    assert groups(made) == {follower: (leader,)}


def test_an_evicted_group_that_never_began_leaves_no_eviction_to_what_its_workers_were() -> None:
    made = bench(big(), "a", "b", workers=2, copies=1)
    made.activate("a", worker=0)
    made.settle()
    made.evict("a")
    made.settle()
    made.activate("b", worker=1)
    made.activate("big", worker=0)
    made.evict("big")
    made.die(2)
    assert made.scheduler.state.workers[0].model == "a"

    made.activate("a", worker=3)
    made.settle()
    evicted = made.evict("a")
    made.settle()

    assert made.answers()[evicted]


def test_the_worker_that_an_operator_names_leads() -> None:
    made = bench(big(), workers=2)

    command = made.activate("big", worker=3)
    made.settle()

    assert made.answers() == {command: True}
    assert list(groups(made)) == [3]


def test_a_second_one_is_refused_where_the_first_is_pinned_to_the_devices() -> None:
    made = bench(big(pinned=True), devices=("d0", "d1", "d2"))
    made.settle()
    assert made.active() == {0: "big", 1: "big"}

    command = made.activate("big", worker=2)

    assert made.answers() == {command: False}


@pytest.mark.parametrize("policy", ["swap", "serverless"])
def test_an_operator_may_have_a_second_one_beside_the_first_whatever_the_policy(policy: PolicyName) -> None:
    made = bench(big(pinned=True), devices=("d0", "d1", "d2"), workers=2, policy=policy)
    made.settle()
    free = next(worker.number for worker in made.scheduler.state.workers if worker.phase is Phase.BLANK)

    command = made.activate("big", worker=free)
    made.settle()

    assert made.answers() == {command: True}
    assert list(made.active().values()) == ["big"] * 4


def test_a_follower_is_nobodys_to_name() -> None:
    made = bench(big(), "a")
    made.serve("big")

    made.activate("a", worker=1)

    assert [action.text for action in made.said if hasattr(action, "text")] == ["worker 1 acts with worker 0 for big"]


def test_a_worker_that_is_named_for_another_model_waits_until_the_group_is_blank() -> None:
    made = parked_big("a")

    command = made.activate("a", worker=0)
    made.settle()

    assert made.answers() == {command: True}
    assert made.active() == {0: "a"}


# --- places for ever ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["static", "space"])
def test_it_has_as_many_homes_as_devices(policy: PolicyName) -> None:
    made = bench(
        big(),
        "a",
        devices=("d0", "d1", "d2"),
        workers=2,
        weights={"big": 8 * GIB, "a": 2 * GIB},
        memory=16 * GIB,
        host_memory=20 * GIB,
        policy=policy,
    )
    made.settle()

    homes = made.scheduler.state.models["big"].homes

    assert homes is not None
    assert len(homes) == 2
    state = made.scheduler.state
    assert {state.workers[number].device for number, name in made.active().items() if name == "big"} == homes
