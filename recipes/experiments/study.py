"""The study: five preference models, their parts and their baselines, with seeds and intervals.

    python recipes/experiments/study.py --output_dir runs/study/sandbox
    python recipes/experiments/study.py --grid decoder --data data --decoder runs/smollm2 --output_dir runs/grid
    prefscale report runs/study/sandbox

Every cell is kept as it ends; the same command goes on where it was stopped. `--quick true` runs a small version.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from trl import TrlParser

from toolkit.experiments.study.decoder import DecoderStudy
from toolkit.experiments.study.decoder_stages import decoder_stages
from toolkit.experiments.study.encoder import encoder_stages
from toolkit.experiments.study.grid import Cell, Study, run_stages
from toolkit.experiments.study.lora import LoraStudy, lora_stages
from toolkit.experiments.study.real import RealStudy, real_stages
from toolkit.experiments.study.sandbox import SandboxStudy, sandbox_stages
from toolkit.experiments.study.text_policy import TextPolicyStudy, text_policy_stages
from toolkit.training.options import help_from_docstring


@help_from_docstring
@dataclass
class StudyArguments:
    """
    Arguments of this recipe.

    Args:
        grid (`str`, *optional*, defaults to `"sandbox"`):
            `sandbox`, `real`, `decoder`, `lora` or `text`.
        output_dir (`str`, *optional*, defaults to `"runs/study/sandbox"`):
            Folder of the study.
        data (`str`, *optional*):
            For the grids on real pairs: folder of the files that `toolkit.experiments.study` names in `real.py` and
            `tasks.py`.
        decoder (`str`, *optional*):
            Folder or hub name of a pretrained decoder: that of the decoder grid, or in place of the real grid's small
            one from scratch.
        rates (`list[float]`, *optional*):
            For the grids on real pairs: learning rates that are searched; on the real grid a pretrained decoder wants
            smaller ones.
        encoder (`str`, *optional*):
            For the real grid: folder or hub name of a pretrained encoder, for heads on it.
        gold_decoder (`str`, *optional*):
            For policies on text: folder or hub name of the gold rewards' decoder, where it is not the policy's.
        workers (`int`, *optional*, defaults to `2`):
            Cells that run side by side.
        quick (`bool`, *optional*, defaults to `False`):
            Whether to run a small grid that only shows that everything works.
    """

    grid: str = "sandbox"
    output_dir: str = "runs/study/sandbox"
    data: str | None = None
    decoder: str | None = None
    rates: list[float] | None = None
    encoder: str | None = None
    gold_decoder: str | None = None
    workers: int = 2
    quick: bool = False


GRIDS: dict[str, tuple[Any, Any, Callable[[Study], Iterator[list[Cell]]]]] = {
    "sandbox": (SandboxStudy, SandboxStudy.quick, sandbox_stages),
    "real": (RealStudy, RealStudy.quick, lambda study: chain(real_stages(study), encoder_stages(study))),
    "decoder": (DecoderStudy.of, DecoderStudy.quick, decoder_stages),
    "lora": (LoraStudy, LoraStudy.quick, lora_stages),
    "text": (TextPolicyStudy, TextPolicyStudy.quick, text_policy_stages),
}


def main(args: StudyArguments) -> None:
    if args.grid not in GRIDS:
        raise ValueError(f"`grid` is '{args.grid}'. Use one of {[*GRIDS]}.")
    given = [name for name in ("data", "decoder", "rates", "encoder") if getattr(args, name) is not None]
    if args.grid == "sandbox" and given:
        raise ValueError(f"{given} are of the grids on real pairs. Add `--grid real`, or leave them out.")
    needed = {"sandbox": [], "real": ["data"]}.get(args.grid, ["data", "decoder"])
    if missing := [name for name in needed if name not in given]:
        raise ValueError(f"{missing} are not set, and `--grid {args.grid}` reads real pairs. Give what is missing.")
    for name, grid in (("encoder", "real"), ("gold_decoder", "text")):
        if args.grid != grid and getattr(args, name) is not None:
            raise ValueError(f"`{name}` is of the {grid} grid. Leave it out.")
    whole, quick, stages = GRIDS[args.grid]
    settings = (quick if args.quick else whole)(*(getattr(args, name) for name in needed))
    own = {"real": ("decoder", "encoder"), "text": ("gold_decoder",)}.get(args.grid, ())
    settings = replace(settings, **{name: getattr(args, name) for name in own})
    study = Study(Path(args.output_dir), replace(settings, rates=args.rates) if args.rates else settings)
    run_stages(study, stages(study), args.workers)


if __name__ == "__main__":
    main(*TrlParser(StudyArguments).parse_args_and_config())
