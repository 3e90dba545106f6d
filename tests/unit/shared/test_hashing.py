"""XXH64 against its reference implementation, the pure twin, and the hash-tag rule."""

from __future__ import annotations

import random

import pytest
import xxhash

from shared import hashing, hashing_py

SEEDS = (0, 1, 0x9E3779B185EBCA87, (1 << 64) - 1)


@pytest.mark.parametrize("seed", SEEDS)
def test_xxh64_agrees_with_the_reference_at_every_length(seed: int) -> None:
    source = random.Random(seed)
    for length in (*range(131), 255, 256, 1000, 4096, 65537):
        data = source.randbytes(length)
        expected = xxhash.xxh64_intdigest(data, seed)
        assert hashing.xxh64(data, seed) == expected, length
        assert hashing_py.xxh64(data, seed) == expected, length


def test_published_vectors() -> None:
    assert hashing.xxh64(b"") == 0xEF46DB3751D8E999
    assert hashing.xxh64(b"abc") == 0x44BC2CF5AD770999


@pytest.mark.parametrize(
    ("key", "part"),
    [
        (b"", b""),
        (b"plain", b"plain"),
        (b"{user1}.name", b"user1"),
        (b"a{b}c{d}", b"b"),
        (b"{}name", b"{}name"),
        (b"{}{tag}", b"{}{tag}"),
        (b"{{tag}}", b"{tag"),
        (b"}{tag}", b"tag"),
        (b"{open", b"{open"),
        (b"close}", b"close}"),
        (b"a{", b"a{"),
        (b"\x00{\xff\x00}", b"\xff\x00"),
    ],
)
def test_hashed_part(key: bytes, part: bytes) -> None:
    assert hashing.hashed_part(key) == part
    assert hashing_py.hashed_part(key) == part


@pytest.mark.parametrize("module", [hashing, hashing_py])
def test_partition_of_is_the_top_bits_of_the_hashed_part(module: object) -> None:
    for bits in range(13):
        for key in (b"a", b"hello", b"{user1}.name", b"x" * 4096):
            expected = xxhash.xxh64_intdigest(hashing_py.hashed_part(key)) >> (64 - bits)
            assert module.partition_of(key, bits) == expected  # type: ignore[attr-defined]
            assert 0 <= expected < 1 << bits


def test_keys_with_one_tag_share_a_partition() -> None:
    partitions = {hashing.partition_of(b"{order 7}.%d" % index, 12) for index in range(100)}
    assert len(partitions) == 1


def test_keys_spread_evenly() -> None:
    counts = [0] * 16
    for index in range(16_000):
        counts[hashing.partition_of(b"key:%d" % index, 4)] += 1
    # 1000 expected, standard deviation 31: five of them either way. The keys are fixed: this never flickers.
    assert min(counts) > 845
    assert max(counts) < 1155


@pytest.mark.parametrize("bits", [-1, 13, 64])
@pytest.mark.parametrize("module", [hashing, hashing_py])
def test_bits_out_of_range_are_refused(module: object, bits: int) -> None:
    with pytest.raises(ValueError, match=r"0\.\.12"):
        module.partition_of(b"key", bits)  # type: ignore[attr-defined]


def test_only_bytes_are_hashed() -> None:
    for wrong in ("text", None, bytearray(b"x"), 7):
        with pytest.raises(TypeError):
            hashing.xxh64(wrong)  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            hashing.partition_of(wrong, 4)  # type: ignore[arg-type]
