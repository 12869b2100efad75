"""`prefscale export`: a reward model merged, for stock classes, or for engines that pool."""

import argparse

# As `toolkit.reward.export` has them, which is not imported before it is needed
FORMS = {
    "merged": "an adapter merged into its base, as a reward model of its own",
    "stock": "the response scale alone, for AutoModelForSequenceClassification",
    "pooling": "all maps of the head in one, for vLLM's pooling, with pooling.json for its clients",
}


def add_export(command: argparse.ArgumentParser) -> None:
    """Add what the command takes, and what it does."""
    command.add_argument("model", help="folder or hub name of a multi-scale reward model or adapter")
    command.add_argument("folder", help="folder to make")
    forms = "; ".join(f"{form}: {what}" for form, what in FORMS.items())
    command.add_argument("--form", choices=FORMS, required=True, help=forms)
    command.add_argument(
        "--dataset_name", help="held-out pairs to measure it on; by default what the model's own card says is repeated"
    )
    command.add_argument("--dataset_config", help="with --dataset_name: configuration of a hub data set")
    command.add_argument("--dataset_split", help="with --dataset_name: split of a hub data set or folder")
    command.set_defaults(run=_export)


def _export(args: argparse.Namespace) -> None:
    import datasets
    from transformers import logging

    from ..data.loading import load_pairs
    from ..reward.export import export

    name = args.dataset_name
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    try:
        pairs = None if name is None else load_pairs(name, args.dataset_split, args.dataset_config)
        found = export(args.model, args.folder, args.form, pairs)
    finally:
        logging.enable_progress_bar()
        datasets.enable_progress_bars()
    print(f"{args.folder}: {args.form}, on fixed rows {found.off:.1e} off the model at most")
    print(found.reads)
    for one in found.results:
        interval = one.metric_args or {}
        low, high = (100 * interval[end] for end in ("low", "high"))
        what = f"{100 * one.metric_value:.1f}% ({low:.1f} to {high:.1f})"
        print(f"{one.metric_name}: {what} of {interval['pairs']} {one.dataset_name} ranked right")
    if not found.results:
        print("How good that is is not known: the model's card has no accuracies. `--dataset_name` measures them.")
    for note in found.notes:
        print(note)
