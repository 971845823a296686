"""Ray job: write the dataset of substitutes with an existing aligner.

ray job submit --working-dir . -- python jobs/synthesize.py CONFIG [--set KEY=VALUE ...]
"""

from __future__ import annotations

import sys

from pipeline.cli import main

if __name__ == "__main__":
    main(["synthesize", *sys.argv[1:]])
