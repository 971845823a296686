"""The commands about a dataset's versions: list, show, diff, rollback, gc."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Mapping
from typing import Any

import click

from pipeline.cli.common import Output, common_options

_FILES_SHOWN = 40
_PATH_SHOWN = 36


@click.group()
def versions() -> None:
    """Look at the versions of a dataset."""


@versions.command(name="list")
@click.argument("dataset")
@common_options
def list_versions(dataset: str, output: Output) -> dict[str, Any]:
    """List the versions of DATASET, oldest first."""
    from pipeline.storage.history import describe

    with output.reporter.counted("reading manifests") as show:
        found = describe(dataset, progress=show)
    rows = [
        [
            f"{one.version} *" if one.current else one.version,
            _text(one.created)[:19] if one.problem is None else "damaged",
            *(_count(number) for number in (one.rows, one.units, one.added, one.removed)),
            _count(one.rejected),
            _text(one.aligner or "-")[:8],
            _drift(one.drift),
        ]
        for one in found
    ]
    title = f"Versions of {_place(dataset)} (* is the current one)"
    columns = ["version", "created", "rows", "units", "added", "removed", "rejected"]
    output.reporter.table(title, [*columns, "aligner", "drift"], rows)
    for one in found:
        if one.problem is not None:
            click.echo(f"{one.version}: {_text(one.problem)}", err=True)
    if not any(one.current for one in found):
        click.echo("no version is current; `anisoalign rollback` makes one so", err=True)
    return {"versions": [dataclasses.asdict(one) for one in found]}


@versions.command(name="show")
@click.argument("dataset")
@click.argument("version", required=False)
@common_options
def show_version(dataset: str, version: str | None, output: Output) -> dict[str, Any]:
    """Show what VERSION of DATASET, the current one by default, holds and was made with."""
    from pipeline.storage.history import summarised
    from pipeline.storage.manifest import open_manifest, read_pointer

    manifest = open_manifest(dataset, version)
    current = manifest.version == read_pointer(dataset).version
    summary = dataclasses.asdict(summarised(manifest, current))
    del summary["problem"]
    result = {
        **summary,
        "kind": manifest.names.instead(manifest.kind),
        "names": dataclasses.asdict(manifest.names),
        "dimension": manifest.dimension,
        "dtype": manifest.dtype,
        "quarantined": manifest.quarantined,
        "duplicate_units": len(manifest.duplicate_units),
        "skipped_files": [dict(one) for one in manifest.skipped_files],
        "source": manifest.source,
        "encoder": manifest.encoder,
        "aligner": manifest.aligner,
        "config": manifest.config,
        "software": manifest.software,
    }
    shown = {name: value for name, value in result.items() if name != "config"}
    for name, value in _flat("", shown):
        click.echo(f"{_text(name)}: {_value(value)}")
    return result


@versions.command(name="diff")
@click.argument("dataset")
@click.argument("older")
@click.argument("newer", required=False)
@common_options
def diff_versions(dataset: str, older: str, newer: str | None, output: Output) -> dict[str, Any]:
    """Show what NEWER, the current version by default, has otherwise than OLDER."""
    from pipeline.storage.history import Change, difference

    found = difference(dataset, older, newer)

    def row(name: str, change: Change) -> list[str]:
        units = (change.added_units, change.removed_units, change.kept_units)
        rows = (change.added_rows, change.removed_rows, change.kept_rows)
        return [name, *map(_count, (*units, *rows))]

    changed = {
        path: change
        for path, change in found.files.items()
        if change.added_units or change.removed_units
    }
    rows = [row("all", found.total)]
    rows += [row(_end(_text(path)), change) for path, change in [*changed.items()][:_FILES_SHOWN]]
    columns = ["units +", "units -", "units =", "rows +", "rows -", "rows ="]
    title = f"From {found.older} to {found.newer}: added (+), removed (-), kept (=)"
    output.reporter.table(title, ["source", *columns], rows)
    if len(changed) > _FILES_SHOWN:
        click.echo(f"and {len(changed) - _FILES_SHOWN} more source files (--json has all)")
    if found.rewritten_units:
        click.echo(f"{found.rewritten_units} of the kept units were written anew")
    for name, (before, after) in found.settings.items():
        click.echo(f"{_text(name)}: {_value(before)} -> {_value(after)}")
    return dataclasses.asdict(found)


@click.command()
@click.argument("dataset")
@click.argument("version")
@common_options
def rollback(dataset: str, version: str, output: Output) -> dict[str, Any]:
    """Make VERSION the current one of DATASET again; nothing is deleted."""
    from pipeline.storage.history import rollback as run_rollback

    output.reporter.say(f"looking for the shards of {version}")
    manifest = run_rollback(dataset, version, _run_id("rollback"))
    click.echo(
        f"{_place(dataset)}: version {manifest.version} is current, {manifest.units} shards, "
        f"{manifest.rows} rows"
    )
    return {"version": manifest.version, "units": manifest.units, "rows": manifest.rows}


@click.command()
@click.argument("dataset")
@click.option(
    "--keep",
    type=click.IntRange(min=1),
    required=True,
    help="How many versions stay: the current one and the newest others.",
)
@click.option("--delete", is_flag=True, help="Delete; without it nothing is.")
@click.option("--dry-run", is_flag=True, help="Only show what would go (the default).")
@common_options
def gc(dataset: str, keep: int, delete: bool, dry_run: bool, output: Output) -> dict[str, Any]:
    """Show, or delete, what only old versions of DATASET need, or none.

    Shards go that no kept version names; so do those of a run that failed and was not finished,
    which the next run would have gone on from. Files of other names are left alone.
    """
    from pipeline.storage.collection import collect, plan_collection

    if delete and dry_run:
        raise click.UsageError("--delete and --dry-run contradict each other; give one")
    if delete:
        with output.reporter.counted("deleting") as show:
            found = collect(dataset, keep, _run_id("gc"), progress=show)
    else:
        output.reporter.say("listing the dataset")
        found = plan_collection(dataset, keep)
    megabytes = f"{found.bytes / 1e6:,.1f} MB"
    rows = [[name, "kept"] for name in found.kept] + [[name, "dropped"] for name in found.dropped]
    output.reporter.table("Versions", ["version", ""], sorted(rows))
    gone = f"{len(found.dropped)} versions and {len(found.files)} files ({megabytes})"
    if delete:
        told = f"{gone} were deleted, and {found.leftovers} leftovers of killed processes"
    else:
        told = f"{gone} would go; nothing was deleted, give --delete to do it"
    click.echo(f"{_place(dataset)}: {told}")
    return {**dataclasses.asdict(found), "deleted": delete}


def _run_id(command: str) -> str:
    return f"{command}-{secrets.token_hex(4)}"


def _place(dataset: str) -> str:
    from pipeline.storage.places import redact_url

    return _text(redact_url(dataset))


def _text(value: object) -> str:
    """Return what a manifest says, safe to print."""
    from pipeline.storage.receipts import printable

    return printable(str(value))


def _count(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"


def _value(value: object) -> str:
    return _text("-" if value is None else value)


def _end(path: str) -> str:
    """Return the end of a path: a table that is too wide would cut the figures."""
    return path if len(path) <= _PATH_SHOWN else f"…{path[1 - _PATH_SHOWN :]}"


def _drift(drift: Mapping[str, Any] | None) -> str:
    if drift is None:
        return "-"
    exceeded = drift.get("exceeded")
    return f"{len(exceeded)} too far" if isinstance(exceeded, list) and exceeded else "within"


def _flat(prefix: str, value: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return the leaves of nested values by their dotted names."""
    found: list[tuple[str, Any]] = []
    for key, one in value.items():
        if isinstance(one, Mapping) and one:
            found += _flat(f"{prefix}{key}.", one)
        elif one not in ({}, [], ()):
            found.append((f"{prefix}{key}", one))
    return found
