"""Ray job: encode captions and images to datasets of embeddings.

ray job submit --working-dir . -- python jobs/encode.py CONFIG [--set KEY=VALUE ...]
"""

from __future__ import annotations

import sys

from pipeline.cli import main

if __name__ == "__main__":
    main(["encode", *sys.argv[1:]])
