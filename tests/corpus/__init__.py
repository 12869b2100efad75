"""Bad inputs as data, by class of fault, and what must come of each; `python -m tests.corpus` counts the outcomes."""

from tests.corpus import (
    commands,
    data_files,
    data_rows,
    loaded_models,
    options,
    reports,
    reward_functions,
    run_folders,
    saved_models,
    tokenizers,
    trainers,
)

CLASSES = {
    "files of data": data_files.CASES,
    "rows of data": data_rows.CASES,
    "options": options.CASES,
    "tokenizers and templates": tokenizers.CASES,
    "trainers": trainers.CASES,
    "saved models": saved_models.CASES + loaded_models.CASES,
    "folders of runs": run_folders.CASES,
    "reward functions": reward_functions.CASES,
    "reports and explanations": reports.CASES,
    "commands": commands.CASES,
}
