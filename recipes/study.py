"""The study: five preference models, their parts and their baselines, with seeds and intervals.

    accelerate launch recipes/study.py --output_dir runs/study/sandbox
    accelerate launch recipes/study.py --grid real --data data --output_dir runs/study/real
    prefscale report runs/study/sandbox

Every cell of the grid is kept as it ends; the same command goes on where it was stopped. docs/study.md defines the
figures. `--quick true` runs the same grid in little.
"""

from dataclasses import dataclass, field
from pathlib import Path

from trl import TrlParser

from toolkit.study import Study, run_stages
from toolkit.study_real import RealStudy, real_stages
from toolkit.study_sandbox import SandboxStudy, sandbox_stages


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
            For the real grid: folder of the files that `toolkit.study_real.REAL_TASKS` names.
        workers (`int`, *optional*, defaults to `2`):
            Cells that run side by side; set `OMP_NUM_THREADS` to the threads of each.
        quick (`bool`, *optional*, defaults to `False`):
            Whether to run a small grid that only shows that everything works.
    """

    grid: str = field(default="sandbox", metadata={"help": "'sandbox' or 'real'."})
    output_dir: str = field(default="runs/study/sandbox", metadata={"help": "Folder of the study."})
    data: str | None = field(
        default=None, metadata={"help": "For the real grid: folder of the files of `study_real.REAL_TASKS`."}
    )
    workers: int = field(default=2, metadata={"help": "Cells that run side by side."})
    quick: bool = field(default=False, metadata={"help": "Whether to run a small grid that shows that all works."})


def main(args: StudyArguments) -> None:
    if args.grid not in ("sandbox", "real"):
        raise ValueError(f"`grid` is '{args.grid}'. Use 'sandbox' or 'real'.")
    if (args.grid == "real") != (args.data is not None):
        raise ValueError("`data` is the folder of the real pairs. Give it with `--grid real`, and only there.")
    if args.grid == "sandbox":
        settings, stages = SandboxStudy.quick() if args.quick else SandboxStudy(), sandbox_stages
    else:
        settings, stages = RealStudy.quick(args.data) if args.quick else RealStudy(args.data), real_stages
    study = Study(Path(args.output_dir), settings)
    run_stages(study, stages(study), args.workers)


if __name__ == "__main__":
    main(*TrlParser(StudyArguments).parse_args_and_config())
