"""The configuration of a run: YAML files, validated into typed models."""

from privmem.cluster.config.loader import (
    config_from_plain,
    config_to_plain,
    config_to_yaml,
    json_schema,
    load_config,
)
from privmem.cluster.config.models import Config

__all__ = ["Config", "config_from_plain", "config_to_plain", "config_to_yaml", "json_schema", "load_config"]
