"""Files and paths: corpora and units, shards, receipts, manifests, artifacts."""

from pipeline.storage.artifacts import (
    artifact_fingerprint,
    read_artifact,
    write_artifact,
)
from pipeline.storage.corpus import Corpus, Unit
from pipeline.storage.duplicates import DuplicateIds, id_hashes
from pipeline.storage.manifest import Manifest, Receipt, commit, open_manifest, versions
from pipeline.storage.planning import Plan, SkippedFile, plan
from pipeline.storage.reading import read_unit
from pipeline.storage.shards import embeddings_of, finished, read_shard, shard_name, write_unit
from pipeline.storage.verification import Problem, VerificationReport, verify

__all__ = [
    "Corpus",
    "DuplicateIds",
    "Manifest",
    "Plan",
    "Problem",
    "Receipt",
    "SkippedFile",
    "Unit",
    "VerificationReport",
    "artifact_fingerprint",
    "commit",
    "embeddings_of",
    "finished",
    "id_hashes",
    "open_manifest",
    "plan",
    "read_artifact",
    "read_shard",
    "read_unit",
    "shard_name",
    "verify",
    "versions",
    "write_artifact",
    "write_unit",
]
