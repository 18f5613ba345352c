"""The arithmetic of places: sweeps, and the numbers of the format's description."""

from __future__ import annotations

import pytest

from adyton.pfile import geometry
from adyton.pfile.layout import INLINE_BYTES, NODE_BYTES

SIZES = {
    0: 1,
    1: 1,
    3072: 1,
    3073: 3,
    7168: 3,
    7169: 4,
    396_287: 98,
    396_288: 98,
    396_289: 100,
    12_979_200: 3202,
    12_979_201: 3204,
}


@pytest.mark.parametrize(("size", "nodes"), SIZES.items())
def test_host_size_of_known_sizes_is_as_described(size: int, nodes: int) -> None:
    """The table of the description."""
    assert geometry.host_nodes(size) == nodes
    assert geometry.host_size(size) == nodes * NODE_BYTES


def test_places_of_known_nodes_are_as_described() -> None:
    """The check values of the description."""
    places = {95: (97, 0, 95), 96: (99, 1, 0), 3167: (3201, 32, 95), 3168: (3203, 33, 0)}
    for data, (place, number, slot) in places.items():
        assert geometry.physical_data(data) == place
        assert (data // 96, geometry.data_slot_at(data)) == (number, 32 * slot)
    assert [geometry.physical_tree(number) for number in (0, 1, 2, 32, 33, 1057)] == [1, 98, 195, 3105, 3202, 102_530]
    assert (geometry.parent(32), geometry.child_slot_at(32)) == (0, 32 * 127)
    assert (geometry.parent(33), geometry.child_slot_at(33)) == (1, 32 * 96)
    assert (geometry.parent(1057), geometry.child_slot_at(1057)) == (33, 32 * 96)


def test_places_of_all_nodes_of_a_large_file_are_distinct_and_without_gap() -> None:
    """Node 0, the tree nodes and the data nodes together fill the host file, each its own place."""
    size = INLINE_BYTES + NODE_BYTES * 10_000
    places = [0]
    places += [geometry.physical_tree(number) for number in range(geometry.tree_nodes(size))]
    places += [geometry.physical_data(data) for data in range(geometry.data_nodes(size))]
    assert sorted(places) == list(range(geometry.host_nodes(size)))


def test_slots_of_all_nodes_are_distinct() -> None:
    """Every data and tree node has a slot of its own, within its parent."""
    taken = {(data // 96, geometry.data_slot_at(data)) for data in range(9600)}
    taken |= {(geometry.parent(number), geometry.child_slot_at(number)) for number in range(1, 3201)}
    assert len(taken) == 9600 + 3200
    assert all(0 <= at <= NODE_BYTES - 32 for _, at in taken)


def test_sizes_grow_monotonically_and_count_their_nodes() -> None:
    """Over ten thousand sizes: never fewer nodes for more bytes, and counts that agree with each other."""
    before = 0
    for size in range(0, 60_000_000, 5987):
        nodes = geometry.host_nodes(size)
        assert nodes >= before
        assert nodes == 1 + geometry.data_nodes(size) + geometry.tree_nodes(size)
        trees = geometry.tree_nodes(size)
        assert sum(
            geometry.data_in_tree(number, geometry.data_nodes(size)) for number in range(trees)
        ) == geometry.data_nodes(size)
        before = nodes


def test_children_are_those_whose_parent_says_so() -> None:
    """`children_of` and `parent` agree for every tree of up to 1,100 nodes."""
    for count in (0, 1, 2, 33, 34, 1057, 1058, 1100):
        for number in range(count):
            children = [child for child in range(1, count) if geometry.parent(child) == number]
            assert geometry.children_of(number, count) == len(children)


def test_dangling_slots_are_zeroed_and_live_ones_kept() -> None:
    """Of a full tree node, a file that ends within it keeps exactly its slots."""
    plain = bytearray(b"\1" * NODE_BYTES)
    geometry.zero_dangling(plain, 0, INLINE_BYTES + NODE_BYTES * 97)
    assert plain == b"\1" * (97 * 32) + bytes(31 * 32)
    geometry.zero_dangling(plain, 0, INLINE_BYTES + 1)
    assert plain == b"\1" * 32 + bytes(127 * 32)
