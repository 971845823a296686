"""The card of a dataset: what people, and `datasets.load_dataset`, find in its folder first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.storage import locations

if TYPE_CHECKING:
    from pipeline.storage.manifest import Manifest

CARD = "README.md"


def write_card(root: str, manifest: Manifest) -> None:
    """Write the README.md that shows a version to people and to `datasets.load_dataset`."""
    locations.write_bytes(locations.join(root, CARD), _card(manifest).encode())


def _sides(manifest: Manifest) -> str:
    names = manifest.names
    if manifest.kind != "substitutes":
        return ""
    return (
        f"Substitute {names.target} embeddings: those of {names.source}, moved into the cloud of "
        f"{names.target} embeddings.\n\n"
    )


def _card(manifest: Manifest) -> str:
    made = manifest.encoder.get("model", "unknown")
    # Named one by one: data/ may hold shards of other versions too.
    files = "".join(f"  - {receipt.path}\n" for receipt in manifest.receipts)
    return (
        f"---\nconfigs:\n- config_name: default\n  data_files:\n{files}---\n"
        f"# {manifest.names.instead(manifest.kind)}\n\n{_sides(manifest)}"
        f"Version {manifest.version}, {manifest.rows} rows in {manifest.units} shards, "
        f"{manifest.dimension}-dimensional {manifest.dtype} embeddings "
        f"{'of unit norm' if manifest.unit_rows else 'not normalised'} "
        f"(encoder: {made}), written by anisoalign on {manifest.created}.\n\n"
        "`current.json` names the current version; `versions/` lists the shards of each; "
        "`data/` may hold shards of other versions too. "
        "Rows that could not be used are in `quarantine/` with the reason.\n"
    )
