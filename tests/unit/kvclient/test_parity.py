"""The two clients are one interface: same methods, same signatures, same words; only the colour differs."""

from __future__ import annotations

import inspect
import re

import pytest

import kvclient
from kvclient import aio, client, pipeline, scan

PAIRS = [
    (client.Client, aio.AsyncClient),
    (pipeline.Pipeline, pipeline.AsyncPipeline),
    (pipeline.Handle, pipeline.AsyncHandle),
    (scan.Scan, scan.AsyncScan),
]
# A MutableMapping cannot be awaited.
SYNC_ONLY = {(client.Client, "map")}
# These return at once in both: what they return does the waiting.
NOT_AWAITED = {"pipeline", "scan", "namespace", "resume"}


def public(cls):
    return {name for name in dir(cls) if not name.startswith("_") and callable(getattr(cls, name))}


def same_words(text):
    return re.sub(r"\bAsync(?=Client|Pipeline|Scan|Handle)|\bAsync(?=Iterator)", "", text)


METHODS = [
    (sync, twin, name)
    for sync, twin in PAIRS
    for name in sorted(public(sync))
    if (sync, name) not in SYNC_ONLY
]


@pytest.mark.parametrize(("sync", "twin"), PAIRS)
def test_both_have_the_same_methods(sync, twin):
    assert public(sync) - {name for cls, name in SYNC_ONLY if cls is sync} == public(twin)


@pytest.mark.parametrize(("sync", "twin", "name"), METHODS)
def test_signatures_and_docstrings_are_the_same(sync, twin, name):
    ours, theirs = getattr(sync, name), getattr(twin, name)
    assert same_words(str(inspect.signature(theirs))) == str(inspect.signature(ours))
    assert inspect.getdoc(theirs) == inspect.getdoc(ours)
    assert inspect.getdoc(ours)


@pytest.mark.parametrize(("sync", "twin", "name"), METHODS)
def test_what_waits_is_awaited(sync, twin, name):
    assert not inspect.iscoroutinefunction(getattr(sync, name))
    awaited = inspect.iscoroutinefunction(getattr(twin, name)) or inspect.isasyncgenfunction(
        getattr(twin, name)
    )
    assert awaited is (name not in NOT_AWAITED)


def test_connect_and_aconnect_are_the_same():
    theirs, ours = inspect.signature(kvclient.aconnect), inspect.signature(kvclient.connect)
    assert same_words(str(theirs)) == str(ours)
    assert inspect.getdoc(kvclient.aconnect) == inspect.getdoc(kvclient.connect)


def test_every_public_name_is_there():
    for name in kvclient.__all__:
        assert getattr(kvclient, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        kvclient.nothing  # noqa: B018
