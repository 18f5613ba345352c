"""Train a classifier on patient records: benign or malignant, from thirty measurements of a biopsy.

    python train.py RECORDS.csv FOLDER [EPOCHS]

writes FOLDER/model.pt and FOLDER/history.csv.  Every few epochs it writes FOLDER/checkpoint.pt, too; a run
that finds one goes on from there, and ends with the same model, bit for bit, as a run that was never stopped.
An ordinary script: it opens files, computes, and writes files.  It knows nothing of Adyton.
"""

import csv
import os
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, Subset
from torch.utils.data.distributed import DistributedSampler

EPOCHS = 60
EVERY = 5  # epochs between two checkpoints
WORKERS = 2


class Records(Dataset):
    """Patients as (measurements, 1 if malignant), from a table whose last column is the diagnosis."""

    def __init__(self, path):
        with open(path, newline="") as table:
            _, *rows = csv.reader(table)
        self.measured = torch.tensor([[float(value) for value in row[:-1]] for row in rows])
        self.malignant = torch.tensor([float(row[-1] == "malignant") for row in rows])

    def __len__(self):
        return len(self.malignant)

    def __getitem__(self, index):
        return self.measured[index], self.malignant[index]


class Classifier(nn.Module):
    """Two hidden layers; the training set's mean and deviation travel with the weights."""

    def __init__(self, mean, deviation):
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("deviation", deviation)
        self.layers = nn.Sequential(
            nn.Linear(len(mean), 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1)
        )

    def forward(self, measured):
        return self.layers((measured - self.mean) / self.deviation)[:, 0]


def save(state, path):
    """Write beside and rename: at any moment the name holds a whole file, old or new."""
    beside = path.with_name(path.name + ".new")
    with open(beside, "wb") as out:
        torch.save(state, out)
        out.flush()
        os.fsync(out.fileno())
    beside.replace(path)


def main(records, folder, epochs=EPOCHS):
    records, folder, epochs = Records(records), Path(folder), int(epochs)
    folder.mkdir(parents=True, exist_ok=True)
    held_out = len(records) // 5
    train = Subset(records, range(held_out, len(records)))
    check_x, check_y = records.measured[:held_out], records.malignant[:held_out]
    seen = records.measured[held_out:]

    torch.manual_seed(0)
    model = Classifier(seen.mean(0), seen.std(0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
    shuffled = DistributedSampler(train, num_replicas=1, rank=0)  # an order that depends on the epoch's number alone
    loader = DataLoader(
        train,
        batch_size=32,
        sampler=shuffled,
        num_workers=WORKERS,
        persistent_workers=True,
        generator=torch.Generator(),  # its own, or starting the workers would throw the model's dice
    )
    done, history = 0, []
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        done, history = state["epoch"], state["history"]
        print(f"going on after epoch {done}", flush=True)

    for epoch in range(done + 1, epochs + 1):
        began = time.monotonic()
        shuffled.set_epoch(epoch)
        torch.manual_seed(epoch)  # so do the dice of dropout: a resumed run throws the same ones
        model.train()
        total = 0.0
        for measured, malignant in loader:
            loss = functional.binary_cross_entropy_with_logits(model(measured), malignant)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(malignant)
        model.eval()
        with torch.inference_mode():
            right = ((model(check_x) > 0) == (check_y > 0)).float().mean().item()
        history.append((epoch, total / len(train), right))
        seconds = time.monotonic() - began
        print(f"epoch {epoch:2}  loss {total / len(train):.4f}  right {100 * right:.1f} %  {seconds:.2f} s", flush=True)
        if epoch % EVERY == 0 and epoch < epochs:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            save({**state, "epoch": epoch, "history": history}, checkpoint)

    save(model.state_dict(), folder / "model.pt")
    with open(folder / "history.csv", "w", newline="") as out:
        table = csv.writer(out)
        table.writerow(["epoch", "loss", "right"])
        table.writerows((epoch, f"{loss:.6f}", f"{right:.4f}") for epoch, loss, right in history)
    checkpoint.unlink(missing_ok=True)


if __name__ == "__main__":
    main(*sys.argv[1:4])
