"""Rows as people read them."""

from __future__ import annotations

from typing import Any

_MET = {True: ", met", False: ", NOT met", None: ""}


def print_head() -> None:
    """Above the rows of loads; `ratio` is our rate to that of the peer."""
    print(f"{'':<12} {'op/s':>9} {'p50 ms':>8} {'p99 ms':>8} {'ratio':>6}  costs per op", flush=True)


def print_row(row: dict[str, Any]) -> None:
    """A load with its costs, or another measurement by the names of its figures."""
    if "costs" in row:
        _print_load(row)
    else:
        _print_other(row)


def _print_load(row: dict[str, Any]) -> None:
    bar = ""
    if row["bar"] is not None:
        ((peer, ratio),) = row["bar"].items()
        bar = f"; bar: {ratio:g} x {peer}{_MET[row['met']]}"
    failed = f"; {row['failed']:,} of our requests failed" if "failed" in row else ""
    print(f"{row['workload']}, {row['in_flight']} in flight{bar}{failed}")
    for name, figures in {"ours": row["ours"], **row["peers"]}.items():
        ratio = f"{row['ratios'][name]:.2f}" if name in row["ratios"] else ""
        print(
            f"  {name:<10} {figures['ops_per_s']:>9,} {figures['p50_ms']:>8.2f} {figures['p99_ms']:>8.2f}"
            f" {ratio:>6}  {_cost(row['costs'][name])}",
            flush=True,
        )


def _cost(cost: dict[str, Any]) -> str:
    text = "CPU us " + " ".join(f"{process} {spent:.1f}" for process, spent in cost["cpu_us_per_op"].items())
    if "written_per_user_byte" in cost:
        text += f"; bytes written x {cost['written_per_user_byte']:.1f}"
    if "syncs_per_op" in cost:
        text += f"; syncs {cost['syncs_per_op']:.3f}"
    return text


def _print_other(row: dict[str, Any]) -> None:
    bar = f"; bar: max < {row['bar_ms']:g} ms{_MET[row['met']]}" if "bar_ms" in row else ""
    print(f"{row['workload']}{bar}")
    for name, figures in {"ours": row["ours"], **row["peers"]}.items():
        print(f"  {name:<10} " + "  ".join(f"{figure} {value:,}" for figure, value in figures.items()))
    if row.get("leaders_stayed"):
        print(f"  {row['leaders_stayed']} partitions were led by the node that had ended")
    if "cpu_percent_by_process" in row:
        processes = row["cpu_percent_by_process"].items()
        print("  by process: " + "  ".join(f"{name} {percent:g} %" for name, percent in processes))
