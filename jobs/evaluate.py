"""Ray job: compare methods on pairs, or evaluations with each other; on one node, without Ray.

ray job submit --working-dir . -- python jobs/evaluate.py geometry PAIRS.npz --out /shared/report
"""

from __future__ import annotations

import sys

from pipeline.cli import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
