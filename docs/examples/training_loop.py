"""Train a projector on a corpus of substitutes: DATASET [--steps N] [--state FILE]."""

import argparse
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader

from pipeline.readers import SubstituteDataset
from pipeline.storage import open_manifest

parser = argparse.ArgumentParser()
parser.add_argument("dataset", help="folder or URL of a finished dataset")
parser.add_argument("--steps", type=int, default=100)
parser.add_argument("--batch-size", type=int, default=64)
parser.add_argument("--workers", type=int, default=2)
parser.add_argument("--state", type=Path, help="where to keep the state, and to go on from")
arguments = parser.parse_args()
shape = {"batch_size": arguments.batch_size, "num_workers": arguments.workers}

torch.manual_seed(0)
corpus = SubstituteDataset(arguments.dataset, dtype=torch.float32, seed=0)
width, tokens = open_manifest(arguments.dataset).dimension, 4
projector = nn.Sequential(nn.Linear(width, 256), nn.GELU(), nn.Linear(256, tokens * 64))
# In place of a frozen language model: says how many words a caption has from its visual tokens.
model = nn.Sequential(projector, nn.GELU(), nn.Linear(tokens * 64, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

taken = 0  # batches of this epoch
if arguments.state and arguments.state.exists():
    saved = torch.load(arguments.state, weights_only=True)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    corpus.load_state_dict(saved["corpus"])  # the very next row
    taken = saved["taken"]

until = taken + arguments.steps
for batch in DataLoader(corpus, **shape):
    words = torch.tensor([float(len(text.split())) for text in batch["text"]])
    loss = nn.functional.mse_loss(model(batch["embedding"]).squeeze(1), words)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    taken += 1
    if taken % 25 == 0 or taken == until:
        print(f"step {taken}: loss {loss.item():.3f}, first row {batch['id'][0]}")
    if taken == until:
        break
if arguments.state:
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "taken": taken}
    state["corpus"] = corpus.state_after(batches=taken, **shape)
    torch.save(state, arguments.state)
