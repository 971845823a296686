"""Files and paths: corpora and units, shards, receipts, manifests, artifacts."""

from pipeline.storage.artifacts import (
    artifact_fingerprint,
    read_artifact,
    write_artifact,
)
from pipeline.storage.collection import Collection, collect, plan_collection
from pipeline.storage.corpus import Corpus, Unit
from pipeline.storage.duplicates import Duplicates, SharedHashes, row_hashes
from pipeline.storage.history import VersionSummary, describe, difference, rollback
from pipeline.storage.manifest import Manifest, commit, open_manifest, versions
from pipeline.storage.planning import Plan, SkippedFile, plan
from pipeline.storage.reading import read_unit
from pipeline.storage.receipts import Receipt
from pipeline.storage.shards import (
    embeddings_of,
    finished,
    read_shard,
    shard_name,
    whole,
    write_unit,
)
from pipeline.storage.verification import Problem, VerificationReport, verify

__all__ = [
    "Collection",
    "Corpus",
    "Duplicates",
    "Manifest",
    "Plan",
    "Problem",
    "Receipt",
    "SharedHashes",
    "SkippedFile",
    "Unit",
    "VerificationReport",
    "VersionSummary",
    "artifact_fingerprint",
    "collect",
    "commit",
    "describe",
    "difference",
    "embeddings_of",
    "finished",
    "open_manifest",
    "plan",
    "plan_collection",
    "read_artifact",
    "read_shard",
    "read_unit",
    "rollback",
    "row_hashes",
    "shard_name",
    "verify",
    "versions",
    "whole",
    "write_artifact",
    "write_unit",
]
