"""The newest that each store has reported of each group, found by partition.

Owns reports and what is counted up from them; must not know what follows. A store's report is taken as a
whole, and what did not change costs next to nothing: 50 stores report 12,300 replicas a second.
"""

from __future__ import annotations

from storenode.control.reports import GroupReport, Report


class Sightings:
    """`reports` by node; `changed`: partitions of which something that matters has changed, for whoever looks
    at them to take away; `failed`: (partition, node) of the replicas that are reported so.
    """

    def __init__(self) -> None:
        self.reports: dict[int, Report] = {}
        self.changed: set[int] = set()
        self.failed: set[tuple[int, int]] = set()
        self._groups: dict[int, dict[int, GroupReport]] = {}
        self._holders: dict[int, set[int]] = {}
        self._leaders: dict[int, int] = {}
        self._terms: dict[int, int] = {}

    def take(self, report: Report) -> bool:
        """The report is its node's newest now; whether that changes who leads, who is a member or what has
        failed anywhere.
        """
        node = report.node
        before = self._groups.get(node, {})
        groups = {group.partition: group for group in report.groups}
        self._groups[node] = groups
        self.reports[node] = report
        changed = False
        for partition, group in groups.items():
            old = before.get(partition)
            if (
                old is None
                or old.config_index != group.config_index
                or old.role != group.role
                or old.failed != group.failed
                or (old.term != group.term and group.role == 2)
            ):
                self._seen(node, partition, group)
                changed = True
        for partition in before.keys() - groups.keys():
            self._gone(node, partition)
            changed = True
        return changed

    def forget(self, node: int) -> None:
        """The node has left the cluster."""
        self.reports.pop(node, None)
        for partition in self._groups.pop(node, {}):
            self._gone(node, partition)

    def group(self, node: int, partition: int) -> GroupReport | None:
        """What a node says of its replica."""
        return self._groups.get(node, {}).get(partition)

    def holders(self, partition: int) -> set[int]:
        """Who reports a replica, member or not."""
        return self._holders.get(partition, set())

    def leaders(self) -> dict[int, int]:
        """Of each partition where one is known."""
        return dict(self._leaders)

    def leader(self, partition: int) -> GroupReport | None:
        """What the newest leader says, by its term; its `leader` is the node. None while none is known, or
        while it has not applied a configuration that another replica has. The index of a configuration is
        that of the snapshot or the flushed state it came with, if no entry told it: a higher one alone says
        nothing.
        """
        node = self._leaders.get(partition)
        if node is None:
            return None
        group = self._groups[node][partition]
        for holder in self._holders[partition]:
            other = self._groups[holder][partition]
            if other.config_index > group.config_index and _members(other) != _members(group):
                return None
        return group if group.leader == node else group._replace(leader=node)

    def _seen(self, node: int, partition: int, group: GroupReport) -> None:
        self.changed.add(partition)
        self._holders.setdefault(partition, set()).add(node)
        if group.failed:
            self.failed.add((partition, node))
        else:
            self.failed.discard((partition, node))
        if group.role == 2:
            if group.term >= self._terms.get(partition, 0):
                self._terms[partition] = group.term
                self._leaders[partition] = node
        elif self._leaders.get(partition) == node:
            del self._leaders[partition]

    def _gone(self, node: int, partition: int) -> None:
        self.changed.add(partition)
        self._holders[partition].discard(node)
        self.failed.discard((partition, node))
        if self._leaders.get(partition) == node:
            del self._leaders[partition]


def _members(group: GroupReport) -> tuple[tuple[int, ...], ...]:
    return group.voters, group.outgoing, group.learners
