"""Where a byte lives: between plaintext offsets, data nodes, tree nodes and nodes of the host file. Arithmetic only.

Data node d holds the plaintext from 3072 + 4096 d. Tree node m holds the slots of data nodes
96 m .. 96 m + 95 and of tree nodes 32 m + 1 .. 32 m + 32.  The root is tree node 0.
"""

from __future__ import annotations

from adyton.pfile.layout import CHILD_SLOTS, DATA_SLOTS, INLINE_BYTES, NODE_BYTES, SLOT_BYTES

SEGMENT_NODES = 1 + DATA_SLOTS
"""A tree node and its data nodes lie together on the host: 97 nodes."""


def data_nodes(size: int) -> int:
    """How many data nodes a plaintext of `size` bytes has."""
    return 0 if size <= INLINE_BYTES else (size - INLINE_BYTES + NODE_BYTES - 1) // NODE_BYTES


def tree_nodes(size: int) -> int:
    """How many tree nodes a plaintext of `size` bytes has, the root among them."""
    return (data_nodes(size) + DATA_SLOTS - 1) // DATA_SLOTS


def host_nodes(size: int) -> int:
    """How many nodes the host file of a plaintext of `size` bytes has."""
    count = data_nodes(size)
    return 1 if count == 0 else physical_data(count - 1) + 1


def host_size(size: int) -> int:
    """How many bytes the host file of a plaintext of `size` bytes has."""
    return host_nodes(size) * NODE_BYTES


def physical_data(data: int) -> int:
    """The place of data node `data` among the nodes of the host file."""
    return 2 + data + data // DATA_SLOTS


def physical_tree(tree: int) -> int:
    """The place of tree node `tree` among the nodes of the host file."""
    return 1 + SEGMENT_NODES * tree


def parent(tree: int) -> int:
    """The tree node that holds the slot of tree node `tree`, which must not be the root."""
    return (tree - 1) // CHILD_SLOTS


def child_slot_at(tree: int) -> int:
    """The byte offset of the slot of tree node `tree` within its parent."""
    return (DATA_SLOTS + (tree - 1) % CHILD_SLOTS) * SLOT_BYTES


def data_slot_at(data: int) -> int:
    """The byte offset of the slot of data node `data` within its tree node."""
    return data % DATA_SLOTS * SLOT_BYTES


def data_in_tree(tree: int, count: int) -> int:
    """How many of `count` data nodes have their slot in tree node `tree`."""
    return max(0, min(DATA_SLOTS, count - DATA_SLOTS * tree))


def children_of(tree: int, count: int) -> int:
    """How many of `count` tree nodes have their slot in tree node `tree`."""
    return max(0, min(CHILD_SLOTS, count - (CHILD_SLOTS * tree + 1)))


def first_offset(data: int) -> int:
    """The plaintext offset of the first byte of data node `data`."""
    return INLINE_BYTES + NODE_BYTES * data


def zero_dangling(plain: bytearray, tree: int, size: int) -> None:
    """Zero the slots of tree node `tree` that a plaintext of `size` bytes does not use."""
    used = data_in_tree(tree, data_nodes(size)) * SLOT_BYTES
    plain[used : DATA_SLOTS * SLOT_BYTES] = bytes(DATA_SLOTS * SLOT_BYTES - used)
    used = (DATA_SLOTS + children_of(tree, tree_nodes(size))) * SLOT_BYTES
    plain[used:NODE_BYTES] = bytes(NODE_BYTES - used)
