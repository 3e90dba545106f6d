"""Which leader is believed, of what several replicas report."""

from __future__ import annotations

from storenode.control.reports import GroupReport, Report
from storenode.control.sightings import Sightings


def report(node: int, config_index: int, voters: tuple[int, ...], *, leads: bool = False) -> Report:
    group = GroupReport(0, 2 if leads else 0, 1, 1, config_index, voters, (), (), 50, 50, 0, False)
    return Report(1, node, f"{node:032x}", 1, "", 0, 1, 0, (group,))


def test_a_replica_whose_configuration_came_with_a_snapshot_does_not_make_its_leader_old() -> None:
    sightings = Sightings()
    sightings.take(report(1, 20, (1, 2, 3), leads=True))
    sightings.take(report(3, 45, (1, 2, 3)))
    leader = sightings.leader(0)
    assert leader is not None
    assert leader.leader == 1


def test_a_leader_that_has_not_applied_what_others_have_is_not_believed() -> None:
    sightings = Sightings()
    sightings.take(report(1, 20, (1, 2, 3), leads=True))
    sightings.take(report(2, 45, (1, 2, 4)))
    assert sightings.leader(0) is None
