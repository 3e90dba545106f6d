"""Configuration changes: etcd-io/raft's own cases, the rules as properties, and the bytes."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvclient.errors import ProtocolError
from storenode.raft.configuration import (
    ConfigurationRefused,
    apply_change,
    decode_change,
    decode_configuration,
    describe,
    encode_change,
    encode_configuration,
    enter_joint,
    leave_joint,
    simple,
)
from storenode.raft.messages import Change, Configuration, Operation, Transition
from storenode.raft.quorum import joint_committed_index
from tests.unit.storenode.raft.oracles import Block, blocks, parametrized

NONE = Configuration(frozenset())
OPERATIONS = {"v": Operation.ADD_VOTER, "r": Operation.REMOVE, "l": Operation.ADD_LEARNER}
REFUSALS = {
    "config is already joint": "joint already",
    "can't make a zero-voter config joint": "without voters",
    "can't leave a non-joint config": "not joint and cannot be left",
    "can't apply simple config change in joint config": "in one step is not possible while",
    "more than one voter changed without entering joint config": "more than one voter would change",
    "removed all voters": "no voter would be left",
}

CHANGES = st.lists(st.tuples(st.sampled_from(Operation), st.integers(1, 6)), max_size=6).map(tuple)
STEPS = st.lists(st.builds(Change, st.sampled_from(Transition), CHANGES), max_size=8)


def operations_of(block: Block) -> list[tuple[int, int]]:
    """`v1 r2 l3`; `u4` tells the application something in etcd, and changes nothing."""
    words = [word for line in block.input for word in line.split()]
    return [(OPERATIONS[word[0]], int(word[1:])) for word in words if word[0] != "u"]


def run(block: Block, before: Configuration) -> Configuration:
    if block.command == "simple":
        return simple(before, operations_of(block))
    if block.command == "enter-joint":
        return enter_joint(before, operations_of(block), block.arguments.get("autoleave") == ["true"])
    assert block.command == "leave-joint"
    return leave_joint(before)


def progress_of(configuration: Configuration) -> list[tuple[int, bool]]:
    """Whose progress a leader follows, and whether as a learner's."""
    return [(node, node in configuration.learners) for node in sorted(configuration.members)]


def progress_in(lines: Iterable[str]) -> list[tuple[int, bool]]:
    return [(int(line.split(":")[0]), line.endswith(" learner")) for line in lines]


@parametrized("etcd-raft/confchange")
def test_the_resulting_configuration_or_the_refusal_agrees_with_etcd_in_every_block_of(path: Path) -> None:
    configuration = NONE
    compared = 0
    for block in blocks(path.read_text()):
        where = f"{path.name}:{block.line}"
        refusal = REFUSALS.get(block.expected[0])
        if refusal is not None:
            with pytest.raises(ConfigurationRefused, match=refusal):
                run(block, configuration)
        else:
            configuration = run(block, configuration)
            assert describe(configuration) == block.expected[0], where
            assert progress_of(configuration) == progress_in(block.expected[1:]), where
        compared += 1
    assert compared


def reachable(steps: Iterable[Change]) -> list[Configuration]:
    """The configurations on the way through `steps` from one voter; a refused step changes nothing."""
    configurations = [Configuration(frozenset({1}))]
    for change in steps:
        try:
            configurations.append(apply_change(configurations[-1], change))
        except ConfigurationRefused:
            continue
    return configurations


@given(STEPS)
def test_no_sequence_of_changes_leads_to_a_configuration_that_contradicts_itself(steps: list[Change]) -> None:
    for voters, outgoing, learners, learners_next, auto_leave in reachable(steps):
        assert voters
        assert not learners & (voters | outgoing)
        assert learners_next <= outgoing - voters
        assert outgoing or not (learners_next or auto_leave)


def majorities(voters: frozenset[int]) -> list[frozenset[int]]:
    return [frozenset(some) for some in itertools.combinations(sorted(voters), len(voters) // 2 + 1)]


def quorums(configuration: Configuration) -> list[frozenset[int]]:
    halves = [majorities(half) for half in (configuration.voters, configuration.outgoing) if half]
    return [frozenset().union(*parts) for parts in itertools.product(*halves)]


@given(STEPS)
def test_quorums_before_and_after_any_change_have_a_node_in_common(steps: list[Change]) -> None:
    for before, after in itertools.pairwise(reachable(steps)):
        assert all(one & other for one in quorums(before) for other in quorums(after)), (before, after)


@given(STEPS)
def test_bytes_of_every_reachable_configuration_and_change_come_back_as_they_were(
    steps: list[Change],
) -> None:
    for configuration in reachable(steps):
        assert decode_configuration(encode_configuration(configuration)) == configuration
    for change in steps:
        assert decode_change(encode_change(change)) == change


def test_auto_with_one_operation_is_one_step_and_with_several_a_joint_one_that_is_left_by_the_leader() -> (
    None
):
    three = Configuration(frozenset({1, 2, 3}))
    one = Change(Transition.AUTO, ((Operation.ADD_VOTER, 4),))
    swap = Change(Transition.AUTO, ((Operation.ADD_VOTER, 4), (Operation.REMOVE, 1)))
    assert apply_change(three, one) == Configuration(frozenset({1, 2, 3, 4}))
    assert apply_change(three, swap) == Configuration(frozenset({2, 3, 4}), three.voters, auto_leave=True)


@pytest.mark.parametrize(
    ("transition", "auto_leave"), [(Transition.IMPLICIT, True), (Transition.EXPLICIT, False)]
)
def test_implicit_and_explicit_enter_a_joint_configuration_even_for_one_operation(
    transition: Transition, auto_leave: bool
) -> None:
    before = Configuration(frozenset({1}))
    joint = apply_change(before, Change(transition, ((Operation.ADD_VOTER, 2),)))
    assert joint == Configuration(frozenset({1, 2}), frozenset({1}), auto_leave=auto_leave)
    assert apply_change(joint, Change(Transition.AUTO, ())) == Configuration(frozenset({1, 2}))


@pytest.mark.parametrize("transition", Transition)
def test_a_change_without_operations_leaves_whatever_its_transition_says(transition: Transition) -> None:
    joint = Configuration(frozenset({2}), frozenset({1}), frozenset({3}), frozenset({1}))
    assert apply_change(joint, Change(transition, ())) == Configuration(
        frozenset({2}), learners=frozenset({1, 3})
    )
    with pytest.raises(ConfigurationRefused, match=r"not joint and cannot be left: voters=\(2\)$"):
        apply_change(Configuration(frozenset({2})), Change(transition, ()))


def test_a_node_that_moves_in_one_step_keeps_its_old_vote_until_the_joint_configuration_is_left() -> None:
    joint = enter_joint(Configuration(frozenset({1, 2, 3})), [(Operation.ADD_LEARNER, 3)], auto_leave=False)
    assert joint.learners_next == {3}
    assert 3 not in joint.learners
    assert joint_committed_index(joint, {1: 7, 2: 7}) == 7
    assert joint_committed_index(joint, {1: 7, 3: 7}) == 0


def test_a_refusal_names_the_voters_that_would_change_at_once() -> None:
    with pytest.raises(ConfigurationRefused) as caught:
        simple(Configuration(frozenset({1, 2})), [(Operation.REMOVE, 2), (Operation.ADD_VOTER, 7)])
    assert str(caught.value) == "more than one voter would change (2 7): this takes a joint configuration"


def test_the_bytes_of_a_change_and_of_a_configuration_are_those_of_the_page() -> None:
    change = Change(Transition.EXPLICIT, ((Operation.ADD_LEARNER, 65534), (Operation.REMOVE, 1)))
    assert encode_change(change).hex() == "9202929202cdfffe920101"
    configuration = Configuration(
        frozenset({257, 2}), frozenset({2, 1}), frozenset({9}), frozenset({1}), auto_leave=True
    )
    assert encode_configuration(configuration).hex() == "959202cd01019201029109" + "9101" + "c3"


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        [0],
        [0, [], 0],
        [0, None],
        [3, []],
        [-1, []],
        [True, []],
        ["0", []],
        [0, [[0]]],
        [0, [[0, 1, 2]]],
        [0, [[3, 1]]],
        [0, [[False, 1]]],
        [0, [[0, 0]]],
        [0, [[0, 65535]]],
        [0, [[0, -1]]],
        [0, [[0, True]]],
        [0, [[0, b"1"]]],
        [0, [{0: 1}]],
    ],
)
def test_other_bytes_are_no_change(value: object) -> None:
    with pytest.raises(ProtocolError):
        decode_change(msgpack.packb(value))


@pytest.mark.parametrize(
    "value",
    [
        None,
        [[1], [], [], []],
        [[1], [], [], [], 0],
        [[1], [], [], [], False, 0],
        [1, [], [], [], False],
        [[0], [], [], [], False],
        [[65535], [], [], [], False],
        [[True], [], [], [], False],
        [[2, 1], [], [], [], False],
        [[1, 1], [], [], [], False],
        pytest.param([[1], [], [1], [], False], id="a learner is a voter"),
        pytest.param([[1], [2], [2], [], False], id="a learner is an outgoing voter"),
        pytest.param([[1], [1], [], [2], False], id="who is to be a learner is no outgoing voter"),
        pytest.param([[1], [1], [], [1], False], id="who is to be a learner is a voter"),
        pytest.param([[1], [], [], [2], False], id="somebody is to be a learner without a joint"),
        pytest.param([[1], [], [], [], True], id="left by itself without a joint"),
        pytest.param([[], [1], [], [], False], id="joint without new voters"),
    ],
)
def test_other_bytes_are_no_configuration(value: object) -> None:
    with pytest.raises(ProtocolError):
        decode_configuration(msgpack.packb(value))


@given(st.binary(max_size=40))
def test_random_bytes_raise_protocol_error_and_nothing_else(data: bytes) -> None:
    for decode in (decode_change, decode_configuration):
        try:
            decode(data)
        except ProtocolError:
            continue


def test_a_replica_that_waits_for_its_first_snapshot_has_a_configuration_without_voters() -> None:
    assert decode_configuration(encode_configuration(NONE)) == NONE
