"""YAML files that come with the project, in a clone and in an installed package."""

import os
from pathlib import Path

CONFIGS, LAUNCHES = "recipes/configs", "deepspeed_configs"


def shipped_file(name: str, folder: str) -> str:
    """
    A file by its path, or one that comes with the project by its name, with or without `.yaml`.

    Args:
        name (`str`):
            Path or name.
        folder (`str`):
            `CONFIGS` or `LAUNCHES`.

    Returns:
        `str`: The path of the file that comes with the project where there is none of that path; else `name`.
    """
    if os.path.exists(name) or Path(name).name != name:
        return name
    found = shipped_folder(folder) / (name if name.endswith(".yaml") else f"{name}.yaml")
    return str(found) if found.is_file() else name


def shipped_folder(folder: str) -> Path:
    """Where `CONFIGS` or `LAUNCHES` are: in an installed package inside of it, in a clone beside it."""
    package = Path(__file__).parents[1]
    return package / folder if (package / folder).is_dir() else package.parent / folder
