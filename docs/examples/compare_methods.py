"""Compare methods on pairs of your own: PAIRS.npz (`image` and `text`, both (n, d)) METHOD..."""

import sys

from pipeline.evaluation.comparison import compare, fit_methods
from pipeline.evaluation.pairs import read_pairs, split_pairs, split_rows

METRICS = ("delta_mu", "m_z", "m_x", "phi", "psi", "omega", "a_r", "retrieval_r1")

pairs = read_pairs(sys.argv[1])
methods = sys.argv[2:] or ["centroid", "realign", "bures-gromov"]
fitting, held_out = split_pairs(pairs, split_rows(pairs.image.shape[0], share=0.5, seed=0))
aligners = fit_methods(methods, fitting, seed=0)  # sees no pair
found = compare(aligners, held_out).metrics

print(" ".join(["method".ljust(20), *(name.rjust(12) for name in METRICS)]))
for name, values in found["methods"].items():
    print(" ".join([name.ljust(20), *(f"{values[metric]:12.3f}" for metric in METRICS)]))
