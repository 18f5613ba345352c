"""Weights from a protected file into a GPU's memory: read, decrypted and copied at once, by name of tensor.

::

    import adyton.gpu
    weights = adyton.gpu.load("model.safetensors", key=key)
    tensor = torch.from_dlpack(weights["lm_head.weight"])

It is optional: a program that reads its mounts needs none of it. It never imports torch. The key is the program's own
(`/dev/attestation/keys/NAME` in a run).
"""

from __future__ import annotations

from adyton.gpu.loading import Loaded, load
from adyton.gpu.tensors import Tensor

__all__ = ["Loaded", "Tensor", "load"]
