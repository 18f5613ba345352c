"""Name what a photograph shows, with a network that is somebody's secret, weights and architecture.

    python infer.py MODEL.safetensors PHOTO.jpg RESULT.txt

The model file holds everything that its owner keeps to herself: the layers as data, their weights, the names of the
classes.  It is data, not code: nothing in it can run.  An ordinary script, which knows nothing of Adyton.
"""

import json
import sys

import numpy
import torch
from PIL import Image
from safetensors import safe_open
from torch.nn import functional


def read_photo(path, size, mean, deviation):
    """The photo's middle, `size` pixels square, as a tensor of shape (1, 3, size, size)."""
    photo = Image.open(path).convert("RGB")
    side = int(size / (size + 32) * min(photo.size))
    left, top = (photo.width - side) // 2, (photo.height - side) // 2
    photo = photo.crop((left, top, left + side, top + side)).resize((size, size), Image.BICUBIC)
    return ((torch.from_numpy(numpy.array(photo)).float() - mean) / deviation).permute(2, 0, 1)[None]


def convolve(x, weight, bias, stride):
    """A convolution whose output keeps the size of its input divided by the stride; grouped if it has one input."""
    kernel, channels = weight.shape[-1], x.shape[1]
    padding = []
    for size in (x.shape[3], x.shape[2]):
        missing = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        padding += [missing // 2, missing - missing // 2]
    return functional.conv2d(functional.pad(x, padding), weight, bias, stride, groups=channels // weight.shape[1])


def main(model, photo, result):
    with safe_open(model, "pt") as file:
        description = {key: json.loads(text) for key, text in file.metadata().items()}
        x = read_photo(photo, **description["input"])
        with torch.inference_mode():
            for number, layer in enumerate(description["layers"]):
                if layer.get("starts_block"):
                    shortcut = x
                x = convolve(x, file.get_tensor(f"{number}.weight"), file.get_tensor(f"{number}.bias"), layer["stride"])
                if layer.get("ends_block"):
                    x = x + shortcut
                if layer["clamped"]:
                    x = functional.relu6(x)
            likelihood = functional.linear(
                x.mean((2, 3)), file.get_tensor("classes.weight"), file.get_tensor("classes.bias")
            ).softmax(1)[0]
    with open(result, "w") as out:
        for share, index in zip(*likelihood.topk(5)):
            out.write(f"{100 * share:6.2f}%  {description['names'][index]}\n")


if __name__ == "__main__":
    main(*sys.argv[1:4])
