"""A saved reward model in other forms: merged, for stock classes, and for engines that return every token's rows."""

import copy
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from huggingface_hub import EvalResult
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from ..stats.metrics import summarize_pairs
from ..training.cards import write_card
from ..training.command_line import check_path
from .cards import LONGER, MIX, accuracy_results, export_card, mixture, told_card, told_results
from .evaluation import evaluate_pairs
from .head import MultiScaleSettings
from .loading import AutoModelForMultiScaleReward, load_tokenizer, without_load_report
from .model import base_reward_model
from .pooling import STATE, read_pooled, save_pooled_head, stack_head
from .probe_scores import ProbeScores, probe, score_rows
from .record import add_tokenizer, finder, read_record, shared_weights
from .scorer import RewardFunction
from .verification import distance, tolerance

FORMS = ("merged", "stock", "pooling")


class Exported(NamedTuple):
    """
    What was exported.

    Args:
        reads (`str`):
            What is read of the folder.
        off (`float`):
            Largest distance between what was read of it and what the model says, over a few fixed rows; in relation to
            scores above 1.
        results (`list[EvalResult]`):
            Accuracies of what is read and of the model's score; none where they are not known.
        notes (`list[str]`):
            What else must be known of it.
    """

    reads: str
    off: float
    results: list[EvalResult]
    notes: list[str]


def export(name_or_path: str, folder: str | Path, form: str, pairs: Dataset | None = None) -> Exported:
    """
    Write a reward model into a new folder, in another form.

    What was written is loaded again by what will read it, and scores fixed rows as the model does, before the folder
    gets its name.

    Args:
        name_or_path (`str`):
            Folder or hub name of a multi-scale reward model or adapter.
        folder (`str` or `Path`):
            Folder to make.
        form (`str`):
            `"merged"`: an adapter merged into its base, as a reward model of its own. `"stock"`: the response scale
            alone, for [`~transformers.AutoModelForSequenceClassification`]. `"pooling"`: every map of the head in one
            `score.weight`, for engines that return what it reads at every token; `toolkit.reward.pooling` makes
            the score of that.
        pairs (`datasets.Dataset`, *optional*):
            Held-out pairs to measure it on. Without them the accuracies are those on the model's own card.

    Returns:
        [`Exported`]

    Raises:
        `ValueError`: If the folder exists, the model cannot be had in that form, or what was written does not score as
            the model.
    """
    folder = Path(folder)
    if form not in FORMS:
        raise ValueError(f"`form` is '{form}'. Use one of {list(FORMS)}.")
    if folder.exists():
        raise ValueError(f"'{folder}' exists, and nothing is written over. Name a folder that is not there.")
    check_path(name_or_path, "reward model")
    tokenizer, model = load_tokenizer(name_or_path), AutoModelForMultiScaleReward.from_pretrained(name_or_path)
    adapter, settings = isinstance(model, PeftModel), base_reward_model(model).settings
    if (reason := _why_not(form, settings, adapter)) is not None:
        raise ValueError(f"'{name_or_path}' cannot be exported as {form}: {reason}.")
    probes, notes = probe(model), []
    if adapter:
        model = model.merge_and_unload(safe_merge=True)
        notes = _notes_of_merging(name_or_path, model)
    card = told_card(name_or_path)
    results = told_results(card) if pairs is None else _measured(model, tokenizer, pairs)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{folder.name}.", suffix=".part", dir=folder.parent) as place:
        part = Path(place, folder.name)
        part.mkdir()  # with the rights that any folder has
        tokenizer.save_pretrained(part)
        found = _WRITERS[form](model, tokenizer, probes, part)
        if found.off > tolerance(probes):
            raise ValueError(
                f"'{name_or_path}' exported as {form} would score otherwise, by {found.off:.1e} on fixed rows, and is "
                "not written: its base is quantised, or its decoder is not read as its stock class reads it."
            )
        wanted = (MIX, "response", LONGER) if form == "stock" else [one.metric_name for one in results]
        results = [one for one in results if one.metric_name in wanted]
        exported = found._replace(results=results, notes=[*notes, *found.notes])
        conversational = settings.conversational is not False
        write_card(export_card(form, name_or_path, card, conversational, exported), part, folder.name)
        part.rename(folder)
    return exported


def _why_not(form: str, settings: MultiScaleSettings, adapter: bool) -> str | None:
    if form == "merged" and not adapter:
        return "it is whole, and has no adapter to merge. Use it as it is, or another form"
    if form == "stock" and "response" not in settings.scales:
        scales = " and ".join(settings.scales)
        return f"stock classes read the last token, and its score is of means ({scales}). Use the form 'pooling'"
    if form == "pooling" and settings.outputs > 1:
        return f"its head has {settings.outputs} outputs, and that form is of one. Use another form"
    if form == "stock" and settings.reader_weights == "prompt":
        return "its reader's weights hang on the prompt, which no linear map of the last token says"
    if form == "stock" and (settings.context == "head" or settings.centre_by_prompt):
        why = "its response scale is conditioned on the prompt, which no linear map of the last token says"
        return f"{why}. Use the form 'pooling'"
    return None


def _notes_of_merging(name: str, merged: Any) -> list[str]:
    record = read_record(finder(name))
    trained = None if record is None else record.probes
    if trained is None or trained.quantization is None:
        return []
    off = max(map(distance, score_rows(merged, trained.rows, trained.starts)[0], trained.scores))
    found = f"on fixed rows scores are up to {off:.1e} off those of training"
    return [f"The adapter was trained on a quantised base, and is merged into weights that are not: {found}."]


def _measured(model: Any, tokenizer: PreTrainedTokenizerBase, pairs: Dataset) -> list[EvalResult]:
    scales = model.settings.scales
    return accuracy_results(
        summarize_pairs(evaluate_pairs(RewardFunction(model, tokenizer), pairs), scales), scales, ""
    )


def _write_merged(model: Any, tokenizer: Any, probes: ProbeScores, part: Path) -> Exported:
    model.save_pretrained(part)
    add_tokenizer(part)
    scores = score_rows(AutoModelForMultiScaleReward.from_pretrained(str(part)), probes.rows, probes.starts)[0]
    return Exported(f"The score, {mixture(model.settings)}.", max(map(distance, scores, probes.scores)), [], [])


def _write_stock(model: Any, tokenizer: Any, probes: ProbeScores, part: Path) -> Exported:
    scales, notes = model.settings.scales, []
    place = scales.index("response")
    _save_with_rows(model, model.state_dict()["score.weight"], ["response"], part)
    stock = _stock(part)
    with torch.no_grad():
        found = [stock(input_ids=torch.tensor([row])).logits.item() for row in probes.rows]
    reads = "The score, read at the last token."
    if len(scales) > 1:
        reads = (
            f"The response scale alone, read at the last token. The model's own score is {mixture(model.settings)}; "
            "scales of tokens and segments are means over positions, which no linear map of the last token says."
        )
    if model.settings.outputs > 1:
        notes.append(f"It is read by {shared_weights(model.settings)}.")
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        why = "The padding token is EOS, and stock classes look for the last token that is not padding"
        notes.append(f"{why}: of a row that ends with EOS they read the token before it, and another score.")
    return Exported(reads, max(map(distance, found, (row[place] for row in probes.scale_scores))), [], notes)


def _write_pooling(model: Any, tokenizer: Any, probes: ProbeScores, part: Path) -> Exported:
    settings = model.settings
    stacked, head = stack_head(model.score, settings)
    _save_with_rows(model, stacked, [f"{name}/{i}" for name, size in head.rows.items() for i in range(size)], part)
    save_pooled_head(head, part)
    stock, scores = _stock(part), []
    for row, start in zip(probes.rows, probes.starts, strict=True):
        ids = torch.tensor([row])
        with torch.no_grad():
            states = getattr(stock, stock.base_model_prefix)(ids).last_hidden_state
            logits = stock.score.float()(states.float())  # in float32, as vLLM has it
        found: Any = read_pooled(logits, ids, head, response_start=torch.tensor([start]))
        scores.append(found.logits.item())
    rows = ", ".join(f"{size} {name}" for name, size in head.rows.items())
    reads = f"At every token {len(stacked)} rows ({rows}), of which a client makes the score, {mixture(settings)}."
    notes = ["Without that arithmetic no row is the score, and with an engine's activation none can be made of them."]
    if STATE in head.rows:
        what = f"The gate reads the prompt's state at length 1, so that all its {head.rows[STATE]} dimensions are"
        notes.append(
            f"{what} returned of every token, as much as the decoder's states. Without a gate it is a row a scale."
        )
    return Exported(reads, max(map(distance, scores, probes.scores)), [], notes)


_WRITERS = {"merged": _write_merged, "stock": _write_stock, "pooling": _write_pooling}


def _save_with_rows(model: Any, weight: Tensor, names: list[str], folder: Path) -> None:
    """Save the decoder with another linear head, as the architecture's own class."""
    model.score = nn.Linear(weight.size(1), weight.size(0), bias=False, dtype=weight.dtype)
    model.score.weight.data = weight.contiguous()
    config = model.config = copy.deepcopy(model.config)
    del config.multi_scale
    config.id2label = dict(enumerate(names))
    config.label2id = {name: i for i, name in enumerate(names)}
    config.problem_type = "regression"  # for which vLLM puts no softmax or sigmoid over the rows
    PreTrainedModel.save_pretrained(model, folder)  # ours would add the record of a multi-scale model


def _stock(folder: Path) -> Any:
    with without_load_report():
        return AutoModelForSequenceClassification.from_pretrained(folder).eval()
