"""Run configuration: strict, typed, validated, fingerprinted; YAML in, `--set a.b=c` over it."""

from pipeline.config.reading import (
    ConfigError,
    apply_settings,
    known_keys,
    load_config,
    nearest_key,
    parse_config,
)
from pipeline.config.run_config import RunConfig
from pipeline.config.sections import NightlySection
from pipeline.config.sources import (
    DEMO_CAPTIONS,
    DEMO_IMAGES,
    ImageSource,
    TextCorpus,
    TextSource,
)

__all__ = [
    "DEMO_CAPTIONS",
    "DEMO_IMAGES",
    "ConfigError",
    "ImageSource",
    "NightlySection",
    "RunConfig",
    "TextCorpus",
    "TextSource",
    "apply_settings",
    "known_keys",
    "load_config",
    "nearest_key",
    "parse_config",
]
