"""What the model card of a reward model says."""

import re
from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from peft import PeftModel
from transformers.utils.hub import cached_file

from ..data.batches import has_lists
from ..training.cards import CARD_NAME, Card, data_source_of, source_of
from .record import shared_weights, what_stock_reads

TASK = "Held-out preference pairs"  # by which results are found again in a card
MIX, LONGER = "mix", "longer wins"
_EVALUATED = re.compile(r"(eval_.*)accuracy_low")  # logs of training have it under no prefix


def reward_card(trainer: Any) -> Card:
    """
    The card of what a trainer has trained so far.

    Args:
        trainer ([`MultiScaleRewardTrainer`]):
            The trainer.

    Returns:
        [`~toolkit.training.cards.Card`]
    """
    model, settings = trainer.reward_model, trainer.reward_model.settings
    adapter = isinstance(trainer.accelerator.unwrap_model(trainer.model), PeftModel)
    data = trainer.train_dataset
    by_prompt = "response_pairs" in data.column_names
    found = held_out_metrics(trainer.state, trainer.args.load_best_model_at_end)
    values = {
        "mixed": mixture(settings),
        "adapter": adapter,
        "rows": sum(map(len, data["response_pairs"])) if by_prompt else len(data),
        "what": "ranked lists" if has_lists(data) else "preference pairs",
        "conversational": settings.conversational is not False,
        "stock": what_stock_reads(model, adapter),
        "chosen": bool(found) and trainer.args.load_best_model_at_end,
    }
    # Not `transformers`, whose snippet on the hub would read one scale; without a library there is none
    return Card(
        "reward_model.md.jinja",
        "prefscale",
        "text-classification",
        ["reward-model"],
        values,
        [one for prefix, metrics in found.items() for one in accuracy_results(metrics, settings.scales, prefix)],
    )


def mixture(settings: Any) -> str:
    """What a score is made of, in words."""
    centred = ", less its value for an empty response" if settings.centre_by_prompt else ""
    outputs = "" if settings.outputs == 1 else f"; {settings.outputs} outputs are read by {shared_weights(settings)}"
    if settings.scales == ["response"]:
        conditioned = ", conditioned on the prompt" if settings.context == "head" else ""
        return f"read at the response's last token{conditioned}{centred}{outputs}"
    how = "weighed by the prompt" if settings.context == "gate" else "averaged"
    of_response = ", that of the response" * bool(centred)
    return f"a mix of the scales {', '.join(settings.scales)}, {how}{of_response}{centred}{outputs}"


def held_out_metrics(state: Any, best: bool) -> dict[str, Mapping[str, float]]:
    """
    The last evaluations of the weights that a trainer has now.

    Args:
        state ([`~transformers.TrainerState`]):
            State of the trainer, whose log has the evaluations.
        best (`bool`):
            Whether the best checkpoint's weights are loaded when training ends.

    Returns:
        `dict[str, Mapping[str, float]]`: Metrics of each evaluated set, by their prefix: `eval_` of the only one,
        `eval_<name>_` of several.
    """
    log: list[dict[str, float]] = state.log_history
    end = max((i for i, row in enumerate(log) if "train_runtime" in row), default=None)
    step = state.best_global_step if best and end is not None else state.global_step
    evaluations: dict[str, Mapping[str, float]] = {}
    for i, row in enumerate(log):
        prefix = next((found[1] for key in row if (found := _EVALUATED.fullmatch(key))), None)
        if prefix is not None and (row["step"] == step or (end is not None and i > end)):
            evaluations[prefix] = row
    return evaluations


def accuracy_results(metrics: Mapping[str, float], scales: list[str], prefix: str = "eval_") -> list[EvalResult]:
    """
    Accuracies in the form that the hub has for cards.

    Args:
        metrics (`Mapping[str, float]`):
            From [`~toolkit.stats.metrics.summarize_pairs`], or a trainer's evaluation.
        scales (`list[str]`):
            Scales of the model.
        prefix (`str`, *optional*, defaults to `"eval_"`):
            What the names of the metrics begin with; it has the name of the set, where there are several.

    Returns:
        `list[EvalResult]`: Of the mix, each scale and of preferring the longer response.
    """
    names = {MIX: "", **({scale: f"/{scale}" for scale in scales} if len(scales) > 1 else {}), LONGER: "/longer_wins"}
    return [
        EvalResult(
            task_type="text-classification",
            task_name=TASK,
            dataset_type="held-out-pairs",
            dataset_name=f"held-out pairs {prefix.removeprefix('eval').strip('_')}".strip(),
            metric_type="accuracy",
            metric_name=name,
            metric_value=round(metrics[f"{prefix}accuracy{suffix}"], 6),
            metric_args={
                "low": round(metrics[f"{prefix}accuracy_low{suffix}"], 6),
                "high": round(metrics[f"{prefix}accuracy_high{suffix}"], 6),
                "pairs": int(metrics[f"{prefix}pairs"]),
            },
        )
        for name, suffix in names.items()
    ]


def told_card(name_or_path: str) -> ModelCard | None:
    """
    The card of a saved model.

    Args:
        name_or_path (`str`):
            Folder or hub name of a model or an adapter.

    Returns:
        `huggingface_hub.ModelCard`, or `None` where it has none.
    """
    path = cached_file(name_or_path, CARD_NAME, _raise_exceptions_for_missing_entries=False)
    return None if path is None else ModelCard.load(path)


def told_results(card: ModelCard | None) -> list[EvalResult]:
    """Accuracies that a card of [`reward_card`] tells, of the first of its sets of pairs; none where it has none."""
    told: Any = None if card is None else card.data
    found = [one for one in (told and told.eval_results) or [] if one.task_name == TASK]
    return [one for one in found if one.dataset_name == found[0].dataset_name]


def export_card(form: str, origin: str, card: ModelCard | None, conversational: bool, exported: Any) -> Card:
    """
    The card of an exported folder.

    Args:
        form (`str`):
            One of `toolkit.reward.export.FORMS`.
        origin (`str`):
            Folder or hub name of the model that was exported.
        card (`huggingface_hub.ModelCard`, *optional*):
            Its card.
        conversational (`bool`):
            Whether it takes messages.
        exported ([`~toolkit.reward.export.Exported`]):
            What is read of the folder.

    Returns:
        [`~toolkit.training.cards.Card`]
    """
    own = source_of(origin)
    told: Any = ModelCardData() if card is None else card.data
    values = {"form": form, "origin": own, "conversational": conversational}
    return Card(
        "export.md.jinja",
        "prefscale" if form == "merged" else "transformers",
        "text-classification",
        ["prefscale", "reward-model", form],
        {**values, "reads": exported.reads, "notes": exported.notes},
        exported.results,
        own if own is not None and own.is_hub else source_of(told.base_model),
        data_source_of(told.datasets[0]) if told.datasets else None,
    )
