"""Ray job: fit the aligner on both sides' embeddings.

ray job submit --working-dir . -- python jobs/fit.py CONFIG [--set KEY=VALUE ...]
"""

from __future__ import annotations

import sys

from pipeline.cli import main

if __name__ == "__main__":
    main(["fit", *sys.argv[1:]])
