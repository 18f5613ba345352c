"""Name what a photograph shows: EfficientNet-Lite0 with ImageNet weights, in plain PyTorch.

    python classify.py WEIGHTS.pth LABELS.txt PHOTO.jpg TOP5.txt

An ordinary script: it opens files, computes, and writes a file.  It knows nothing of Adyton.
"""

import sys
from pathlib import Path

import numpy
import torch
from PIL import Image
from torch import nn
from torch.nn import functional


class SameConv(nn.Conv2d):
    """A convolution whose output keeps the size of its input divided by the stride, as TensorFlow pads."""

    def forward(self, x):
        padding = []
        for size in (x.shape[3], x.shape[2]):
            kernel, stride = self.kernel_size[0], self.stride[0]
            missing = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            padding += [missing // 2, missing - missing // 2]
        return functional.conv2d(functional.pad(x, padding), self.weight, None, self.stride, 0, 1, self.groups)


class Block(nn.Module):
    """An inverted residual block: expand, filter each channel, project; attribute names are those of the weights."""

    def __init__(self, inputs, outputs, kernel, stride, expansion):
        super().__init__()
        inner = inputs * expansion
        self.expands = expansion != 1
        if self.expands:
            self._expand_conv = SameConv(inputs, inner, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(inner, eps=1e-3)
        self._depthwise_conv = SameConv(inner, inner, kernel, stride, groups=inner, bias=False)
        self._bn1 = nn.BatchNorm2d(inner, eps=1e-3)
        self._project_conv = SameConv(inner, outputs, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(outputs, eps=1e-3)
        self.skips = stride == 1 and inputs == outputs

    def forward(self, x):
        y = functional.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = self._bn2(self._project_conv(functional.relu6(self._bn1(self._depthwise_conv(y)))))
        return x + y if self.skips else y


class EfficientNetLite0(nn.Module):
    """The smallest EfficientNet-Lite: 4.7 million parameters, 224 x 224 pixels, 1000 classes."""

    # repeats, kernel, stride, expansion, output channels
    STAGES = (
        (1, 3, 1, 1, 16),
        (2, 3, 2, 6, 24),
        (2, 5, 2, 6, 40),
        (3, 3, 2, 6, 80),
        (3, 5, 1, 6, 112),
        (4, 5, 2, 6, 192),
        (1, 3, 1, 6, 320),
    )

    def __init__(self):
        super().__init__()
        self._conv_stem = SameConv(3, 32, 3, 2, bias=False)
        self._bn0 = nn.BatchNorm2d(32, eps=1e-3)
        blocks, channels = [], 32
        for repeats, kernel, stride, expansion, outputs in self.STAGES:
            for index in range(repeats):
                blocks.append(Block(channels, outputs, kernel, stride if index == 0 else 1, expansion))
                channels = outputs
        self._blocks = nn.Sequential(*blocks)
        self._conv_head = SameConv(channels, 1280, 1, bias=False)
        self._bn1 = nn.BatchNorm2d(1280, eps=1e-3)
        self._fc = nn.Linear(1280, 1000)

    def forward(self, x):
        x = self._blocks(functional.relu6(self._bn0(self._conv_stem(x))))
        return self._fc(functional.relu6(self._bn1(self._conv_head(x))).mean((2, 3)))


def read_photo(path, size=224):
    """The photo's middle, `size` pixels square, as a tensor of shape (1, 3, size, size) between -1 and 1."""
    photo = Image.open(path).convert("RGB")
    side = int(size / (size + 32) * min(photo.size))
    left, top = (photo.width - side) // 2, (photo.height - side) // 2
    photo = photo.crop((left, top, left + side, top + side)).resize((size, size), Image.BICUBIC)
    return ((torch.from_numpy(numpy.array(photo)).float() - 127) / 128).permute(2, 0, 1)[None]


def main(weights, labels, photo, top5):
    model = EfficientNetLite0()
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    model.eval()
    names = Path(labels).read_text().splitlines()
    with torch.inference_mode():
        likelihood = model(read_photo(photo)).softmax(1)[0]
    with open(top5, "w") as out:
        for share, index in zip(*likelihood.topk(5)):
            out.write(f"{100 * share:6.2f}%  {names[index]}\n")


if __name__ == "__main__":
    main(*sys.argv[1:5])
