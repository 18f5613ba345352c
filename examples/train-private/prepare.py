"""Lay out the hospital's files: 569 biopsies of breast tumours (Wisconsin, UCI), from the package scikit-learn.

    python prepare.py FOLDER

makes FOLDER/records.csv (455 patients, to train on) and FOLDER/new.csv (114 patients, to diagnose).
The data set is licensed CC BY 4.0 (W. Wolberg, O. Mangasarian, N. Street, W. Street, 1993).  Nothing is downloaded.
"""

import csv
import hashlib
import random
import sys
from pathlib import Path

from sklearn.datasets import load_breast_cancer

TRAINING = 455
SHA256 = {
    "records.csv": "9e62dd3eeec9ce6741fc40e32b02287bf0f58e49ac6ee058757a5c4afa547ed3",
    "new.csv": "93896d608acfe43c8a755fce919231c53a62b0039162d458b33ac6fad21211d4",
}


def main(folder):
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    data = load_breast_cancer()
    rows = [[*map(str, row.tolist()), data.target_names[kind]] for row, kind in zip(data.data, data.target)]
    random.Random(0).shuffle(rows)
    names = [name.replace(" ", "_") for name in data.feature_names] + ["diagnosis"]
    for file, part in (("records.csv", rows[:TRAINING]), ("new.csv", rows[TRAINING:])):
        with open(folder / file, "w", newline="") as out:
            csv.writer(out, lineterminator="\n").writerows([names, *part])
        found = hashlib.sha256((folder / file).read_bytes()).hexdigest()
        if found != SHA256[file]:
            sys.exit(f"{file}: sha256 is {found}, expected {SHA256[file]}: install scikit-learn==1.9.1")


if __name__ == "__main__":
    main(sys.argv[1])
