"""Diagnose new patients with the trained model, on the owner's machine.

    python diagnose.py MODEL.pt NEW.csv

prints each patient's likelihood of a malignant tumour, and how many were right where the table knows the diagnosis.
"""

import sys

import torch
from train import Classifier, Records


def main(model, table):
    state = torch.load(model, weights_only=True)
    classifier = Classifier(state["mean"], state["deviation"])
    classifier.load_state_dict(state)
    classifier.eval()
    patients = Records(table)
    with torch.inference_mode():
        likelihood = classifier(patients.measured).sigmoid()
    for number, share in enumerate(likelihood.tolist()):
        print(f"patient {number:3}  {100 * share:6.2f} %")
    right = int(((likelihood > 0.5) == (patients.malignant > 0.5)).sum())
    print(f"{right} of {len(patients)} right")


if __name__ == "__main__":
    main(*sys.argv[1:3])
