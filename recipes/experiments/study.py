"""The study: five preference models, their parts and their baselines, with seeds and intervals.

    python recipes/experiments/study.py --output_dir runs/study/sandbox
    python recipes/experiments/study.py --grid real --data data --output_dir runs/study/real
    prefscale report runs/study/sandbox

Every cell of the grid is kept as it ends; the same command goes on where it was stopped. docs/study.md defines the
figures. `--quick true` runs a small version of the grid.
"""

from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from trl import TrlParser

from toolkit.experiments.study.encoder import encoder_stages
from toolkit.experiments.study.grid import Study, run_stages
from toolkit.experiments.study.real import RealStudy, real_stages
from toolkit.experiments.study.sandbox import SandboxStudy, sandbox_stages
from toolkit.training.options import help_from_docstring


@help_from_docstring
@dataclass
class StudyArguments:
    """
    Arguments of this recipe.

    Args:
        grid (`str`, *optional*, defaults to `"sandbox"`):
            `sandbox` or `real`.
        output_dir (`str`, *optional*, defaults to `"runs/study/sandbox"`):
            Folder of the study.
        data (`str`, *optional*):
            For the real grid: folder of the files that `toolkit.experiments.study.real.REAL_TASKS` names.
        decoder (`str`, *optional*):
            For the real grid: folder or hub name of a pretrained decoder, in place of a small one from scratch.
        rates (`list[float]`, *optional*):
            For the real grid: learning rates that are searched; a pretrained decoder wants smaller ones.
        encoder (`str`, *optional*):
            For the real grid: folder or hub name of a pretrained encoder, for heads on it.
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
    workers: int = 2
    quick: bool = False


def main(args: StudyArguments) -> None:
    if args.grid not in ("sandbox", "real"):
        raise ValueError(f"`grid` is '{args.grid}'. Use 'sandbox' or 'real'.")
    given = [name for name in ("data", "decoder", "rates", "encoder") if getattr(args, name) is not None]
    if args.grid == "sandbox" and given:
        raise ValueError(f"{given} are of the real pairs. Add `--grid real`, or leave them out.")
    if args.grid == "real" and args.data is None:
        raise ValueError("`data` is not set. Give the folder of the real pairs.")
    if args.grid == "sandbox":
        study = Study(Path(args.output_dir), SandboxStudy.quick() if args.quick else SandboxStudy())
        stages = sandbox_stages(study)
    else:
        settings = RealStudy.quick(args.data) if args.quick else RealStudy(args.data)
        settings = replace(settings, decoder=args.decoder, encoder=args.encoder, rates=args.rates or settings.rates)
        study = Study(Path(args.output_dir), settings)
        stages = chain(real_stages(study), encoder_stages(study))
    run_stages(study, stages, args.workers)


if __name__ == "__main__":
    main(*TrlParser(StudyArguments).parse_args_and_config())
