"""The card of an export: what it is, how it was made, how it is read."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline import __version__
from pipeline.export.layout import Layout
from pipeline.names import Names
from pipeline.storage.manifest import Manifest

CARD = "README.md"
_SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
    (100_000_000, "10M<n<100M"),
    (1_000_000_000, "100M<n<1B"),
)
_METRICS = {
    "delta_mu": "delta_mu",
    "m_z": "M_Z",
    "m_x": "M_X",
    "phi": "Phi",
    "psi": "Psi",
    "omega": "Omega",
    "a_r": "A_r",
    "retrieval_r1": "R@1",
    "paired_cosine": "paired cosine",
}
_LICENSE_NAME = re.compile(r"[a-z0-9][a-z0-9.-]*")


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What the card says and the dataset does not know.

    `metrics` is what `evaluate geometry --out` wrote as metrics.json.

    Raises:
        ValueError: if `metrics` is not that.
    """

    name: str | None = None
    license: str | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        methods = self.metrics.get("methods", {})
        if not isinstance(methods, Mapping) or not all(
            isinstance(values, Mapping) for values in methods.values()
        ):
            raise ValueError("methods are not an object of objects: these are no metrics")

    def to_mapping(self) -> dict[str, Any]:
        """Return the facts as plain values; of the metrics those that the card shows."""
        return {"name": self.name, "license": self.license, "metrics": self.table()}

    def table(self) -> dict[str, dict[str, float]]:
        """Return the finite metrics that the card shows, by method."""
        return {
            str(method): {
                metric: values[metric] for metric in _METRICS if _is_number(values.get(metric))
            }
            for method, values in self.metrics.get("methods", {}).items()
        }


def card(manifest: Manifest, layout: Layout, facts: CardFacts) -> str:
    """Return the README.md of an export; the front matter is for the Hugging Face Hub."""
    name = facts.name or f"Substitute {manifest.names.target} embeddings"
    sections = [
        _front_matter(manifest, layout, facts, name),
        f"# {_line(name)}\n\n{_introduction(manifest)}",
        f"## Reading it\n\nThese are the files of {layout.title}.\n\n{layout.reading}\n"
        "`sha256sum -c checksums.sha256` checks every file.\n",
        f"## How it was made\n\n{_making(manifest)}",
    ]
    if table := facts.table():
        sections.append(f"## Alignment\n\n{_metrics_table(table, facts.metrics, manifest.names)}")
    rejects = _counts(manifest.quarantined) or "None.\n"
    sections.append(f"## Rows left out\n\n{rejects}")
    sections.append(f"## Licence\n\n{_licence(facts, manifest.names)}")
    return "\n".join(sections)


def _front_matter(manifest: Manifest, layout: Layout, facts: CardFacts, name: str) -> str:
    size = next((label for most, label in _SIZES if manifest.rows < most), "n>1B")
    lines = ["---", f"pretty_name: {json.dumps(name)}"]
    if facts.license is None:
        lines.append("license: unknown")
    elif _LICENSE_NAME.fullmatch(facts.license.lower()):
        lines.append(f"license: {json.dumps(facts.license.lower())}")
    else:
        lines += ["license: other", f"license_name: {json.dumps(facts.license)}"]
    lines += ["size_categories:", f"- {size}"]
    clip = ["- clip"] if manifest.names.default else []
    lines += ["tags:", "- embeddings", "- multimodal", *clip, "- anisoalign"]
    if layout.name == "hf":
        lines += ["configs:", "- config_name: default", "  data_files:"]
        lines += ["  - split: train", "    path: data/train-*.parquet"]
    return "\n".join([*lines, "---\n"])


def _introduction(manifest: Manifest) -> str:
    norm = "of unit norm" if manifest.unit_rows else "not normalised"
    width = f"{manifest.dimension}-dimensional {manifest.dtype}"
    names = manifest.names
    if not names.default:
        return (
            f"{manifest.rows:,} rows of {names.source} with, for each, an embedding that stands in "
            f"for one of {names.target}: its {names.source} embedding, moved into the cloud of "
            f"{names.target} embeddings. What takes {names.target} embeddings can be trained on "
            f"them without any {names.target}, and used with real {names.target} embeddings "
            "afterwards.\n\n"
            "Each row has an `id`, the column `text` (empty where the input had none) and a "
            f"{width} embedding, {norm}.\n"
        )
    return (
        f"{manifest.rows:,} captions with, for each, an embedding that stands in for that of a "
        "picture: the caption's text embedding, moved into the cloud of image embeddings of the "
        "same encoder. A multimodal language model can be trained on them without any picture, "
        "and used with real image embeddings afterwards.\n\n"
        f"Each row has an `id`, its text and a {width} embedding, {norm}.\n"
    )


def _making(manifest: Manifest) -> str:
    encoder, aligner = manifest.encoder, manifest.aligner or {}
    software = ", ".join(f"{name} {number}" for name, number in sorted(manifest.software.items()))
    rows = {
        "encoder": encoder.get("model", "unknown"),
        "weights of the encoder": encoder.get("pretrained"),
        "fingerprint of the encoder": encoder.get("fingerprint"),
        "aligner": aligner.get("method", "unknown"),
        "fingerprint of the aligner": aligner.get("fingerprint"),
        "version of the dataset": f"{manifest.version} of {manifest.created}",
        "rows": f"{manifest.rows:,} in {manifest.units:,} shards",
        "source": _name(manifest.source.get("path")),
        "software": software or None,
        "exported by": f"anisoalign {__version__}",
    }
    shown = [f"| {what} | {_cell(value)} |\n" for what, value in rows.items() if value is not None]
    return "| | |\n|---|---|\n" + "".join(shown)


def _name(path: Any) -> str | None:
    """Return the last part of a path: a card is published, all of it tells of a machine."""
    return str(path).rstrip("/").rsplit("/", 1)[-1] if path else None


def _metrics_table(
    table: Mapping[str, Mapping[str, float]], metrics: Mapping[str, Any], sides: Names
) -> str:
    names = [name for name in _METRICS if any(name in values for values in table.values())]
    pairs = metrics.get("n")
    where = f" on {pairs:,} held-out pairs" if type(pairs) is int else ""
    lines = [
        f"Geometry of the moved {sides.source} against real {sides.target} embeddings{where}, by "
        "method.\n",
        f"| method | {' | '.join(_METRICS[name] for name in names)} |",
        f"|---|{'---|' * len(names)}",
    ]
    for method, values in table.items():
        cells = [f"{values[name]:.4g}" if name in values else "-" for name in names]
        lines.append(f"| {_cell(method)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _counts(counts: Mapping[str, int]) -> str:
    return "".join(f"- {_line(reason)}: {count:,}\n" for reason, count in sorted(counts.items()))


def _licence(facts: CardFacts, names: Names) -> str:
    if facts.license is None:
        made_of = "captions" if names.default else names.source
        return (
            f"None was stated. The rights in the {made_of}, and the terms of the encoder, hold for "
            "what was made of them.\n"
        )
    return f"{_line(facts.license)}\n"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _line(value: object) -> str:
    return " ".join(str(value).split())


def _cell(value: object) -> str:
    return _line(value).replace("|", "\\|")
