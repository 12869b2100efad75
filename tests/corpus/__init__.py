"""Bad inputs as data, by class of fault, and what must come of each; `python -m tests.corpus` counts the outcomes."""

from tests.corpus import data_files, data_rows, options

CLASSES = {
    "files of data": data_files.CASES,
    "rows of data": data_rows.CASES,
    "options": options.CASES,
}
