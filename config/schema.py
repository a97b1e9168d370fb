"""The JSON Schema of the config file, for editors and for `turnout check --schema`.

`turnout check --schema > config/schema.json` keeps the copy in the repository current.
"""

import json
from pathlib import Path

from config.settings import Settings

SCHEMA_FILE = Path(__file__).with_name("schema.json")


def schema_text() -> str:
    """Return the schema as indented JSON, the same for the same settings."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return json.dumps(schema | Settings.model_json_schema(), indent=2) + "\n"
