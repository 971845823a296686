"""Ray job: what models learn from each method's substitutes, or how methods compare on pairs.

`downstream` spreads its trials over the cluster; `geometry` and `compare` stay on one node.

ray job submit --working-dir . -- python jobs/evaluate.py downstream \\
    --config configs/downstream-demo.yaml --set output.path=/shared/downstream
ray job submit --working-dir . -- python jobs/evaluate.py geometry PAIRS.npz --out /shared/report
"""

from __future__ import annotations

import sys

from pipeline.cli import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
