"""Align text embeddings to image embeddings: IMAGES.npy (n, d) TEXTS.npy (k, d) OUT.npy."""

import sys

import numpy as np
import torch

from pipeline.align import BuresGromov

image, text = (torch.from_numpy(np.load(path)).float() for path in sys.argv[1:3])  # unpaired
image, text = (torch.nn.functional.normalize(rows, dim=1) for rows in (image, text))
aligner = BuresGromov(seed=0).fit(image, text)
np.save(sys.argv[3], aligner.transform(text).numpy())  # substitutes (k, d), unit rows
aligner.save(f"{sys.argv[3]}.aligner")  # pipeline.align.load_aligner reads it
