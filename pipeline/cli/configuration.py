"""The commands that look at the configuration."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click

from pipeline.cli.common import Output, common_options, config_argument, set_option


@click.group()
def config() -> None:
    """Look at the configuration."""


@config.command()
@config_argument
@set_option
@common_options
def show(config: str, settings: Sequence[str], output: Output) -> dict[str, Any]:
    """Print CONFIG with every default filled in."""
    import yaml

    from pipeline.config import load_config

    values = load_config(config, settings).to_mapping()
    if not output.as_json:
        click.echo(yaml.safe_dump(values, sort_keys=False), nl=False)
    return values


@config.command()
@config_argument
@set_option
@common_options
def validate(config: str, settings: Sequence[str], output: Output) -> dict[str, Any]:
    """Check CONFIG; exit 2 says which key is wrong."""
    from pipeline.config import load_config

    fingerprint = load_config(config, settings).fingerprint()
    if not output.quiet:
        click.echo(f"{config}: OK")
    return {"valid": True, "fingerprint": fingerprint}


@config.command()
@common_options
def schema(output: Output) -> dict[str, Any]:
    """Print the JSON Schema of the configuration."""
    from pipeline.config import RunConfig

    values = RunConfig.model_json_schema()
    if not output.as_json:
        click.echo(json.dumps(values, indent=2))
    return values
