"""Whether a saved reward model is what was saved, byte by byte and score by score."""

import math
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification
from transformers.quantizers.auto import AutoQuantizationConfig
from transformers.utils.peft_utils import find_adapter_config_file

from .adapters import load_adapter_config
from .fingerprints import ADAPTER_WEIGHTS, WHOLE_WEIGHTS, FileMark, sha256_of, weight_files
from .head import STATES, MultiScaleHead
from .loading import AutoModelForMultiScaleReward, load_tokenizer, without_load_report
from .model import base_reward_model
from .probe_scores import ProbeScores, score_rows
from .record import RECORD_NAME, Find, SavedRecord, finder, read_record
from .saved_checks import check_base_is_there, check_settings

# Another processor sums in another order, in half precision to another third digit.
TOLERANCES = {"float32": 1e-3, "float64": 1e-3}
HALF_TOLERANCE = 5e-2


class Finding(NamedTuple):
    """
    What came of a check.

    Args:
        what (`str`):
            What was looked at.
        found (`str`):
            What was seen, or what is wrong.
        good (`bool`, *optional*):
            Whether it is as it was saved; `None` for what could not be looked at.
    """

    what: str
    found: str
    good: bool | None = True


def verify(folder: str) -> list[Finding]:
    """
    Read every byte of a saved reward model and of its base, and score the rows that were scored when it was saved: as
    it is, merged where it is an adapter, and through the stock class.

    Args:
        folder (`str`):
            Folder of a reward model or adapter.

    Returns:
        `list[Finding]`

    Raises:
        `ValueError`: If there is no such folder.
    """
    if not os.path.isdir(folder):
        raise ValueError(f"There is no folder '{folder}'. Give that of a reward model or of its adapter.")
    try:
        record = read_record(finder(folder))
    except ValueError as error:
        return [Finding(RECORD_NAME, str(error), False)]
    if record is None:
        found = "missing, as in models of earlier versions: nothing to compare with. Load the model and save it again"
        return [Finding(RECORD_NAME, found, False)]
    settings = _tried("settings", "as they were saved", lambda: check_settings(folder, record, finder(folder)))
    if not settings.good:  # by which all else is read
        return [settings]
    adapter = find_adapter_config_file(folder) is not None
    return [settings, *_check_files(folder, record, adapter), *_check_scores(folder, record, adapter)]


def _check_files(folder: str, record: SavedRecord, adapter: bool) -> list[Finding]:
    find = finder(folder)
    findings = _check_bytes(record.weights, find, ADAPTER_WEIGHTS if adapter else WHOLE_WEIGHTS, "")
    if record.tokenizer is None:
        findings.append(Finding("tokenizer", "the model was saved without one", None))
    else:
        findings.append(_tried("tokenizer", "as it was saved", lambda: load_tokenizer(folder)))
    if adapter and (record.base is None or not record.base.weights):
        findings.append(Finding("base", "its weights were not found when the adapter was saved", None))
    elif record.base is not None:
        name, hub = _base_name(folder), {"revision": record.base.commit} if record.base.commit else {}
        there = _tried("base", f"'{name}'", lambda: check_base_is_there(folder, name, record.base))
        findings.append(there)
        if there.good:
            findings += _check_bytes(record.base.weights, finder(name, **hub), WHOLE_WEIGHTS, f"base '{name}', ")
    return findings


def _check_bytes(saved: dict[str, FileMark], find: Find, names: tuple[str, ...], where: str) -> list[Finding]:
    try:
        found = weight_files(find, names)
    except ValueError as error:
        return [Finding(f"{where}weights", str(error), False)]
    findings = []
    for name, mark in saved.items():
        path = found.get(name)
        if path is None:
            findings.append(Finding(f"{where}{name}", "missing", False))
        elif sha256_of(path) != mark.sha256:
            size = path.stat().st_size
            how = f"{size:,} bytes instead of {mark.size:,}" if size != mark.size else "changed since it was saved"
            findings.append(Finding(f"{where}{name}", f"{how}. Copy it again.", False))
        else:
            findings.append(Finding(f"{where}{name}", f"all {mark.size:,} bytes as they were saved"))
    findings += [
        Finding(f"{where}{name}", "was not there when it was saved", False)
        for name in sorted(found.keys() - saved.keys())
    ]
    return findings


def _check_scores(folder: str, record: SavedRecord, adapter: bool) -> list[Finding]:
    probes, options = record.probes, _options(record, adapter)
    try:
        model = AutoModelForMultiScaleReward.from_pretrained(folder, **options)
    except (ValueError, OSError, RuntimeError) as error:
        return [Finding("loading", _one_line(error), False)]
    if probes is None:
        return [Finding("scores", "none were saved, since the weights were in parts then", None)]
    findings = [_compared("scores", probes, *score_rows(model, probes.rows, probes.starts))]
    expected, layers = _response_scores(model, probes), base_reward_model(model).settings.num_hidden_layers
    if adapter and probes.quantization is not None:
        findings.append(Finding("scores, merged", "left out: merging into quantised weights rounds them", None))
    elif adapter:
        model = model.merge_and_unload()
        findings.append(_compared("scores, merged", probes, *score_rows(model, probes.rows, probes.starts)))
    del model  # before another one is loaded
    if adapter and layers is not None:
        return [*findings, Finding("stock class", f"left out: it runs more layers of the base than {layers}", None)]
    if adapter and AutoConfig.from_pretrained(_base_name(folder)).get_text_config().vocab_size != record.embeddings:
        why = "left out: it loads no adapter with tokens that its base has not"
        return [*findings, Finding("stock class", why, None)]
    return [*findings, _check_stock(folder, probes, options, expected)]


def _options(record: SavedRecord, adapter: bool) -> dict[str, Any]:
    """For loading a model as it was when it was saved."""
    if record.probes is None:
        return {}
    options: dict[str, Any] = {"dtype": getattr(torch, record.probes.dtype)}
    if adapter and record.probes.quantization is not None:  # what is saved whole has its own in config.json
        options["quantization_config"] = AutoQuantizationConfig.from_dict(record.probes.quantization)
    return options


def _check_stock(folder: str, probes: ProbeScores, options: dict[str, Any], expected: list[float]) -> Finding:
    """Whether a stock class reads the response scale."""
    try:
        with without_load_report():
            model: Any = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, **options).eval()
    except (ValueError, OSError, RuntimeError) as error:
        return Finding("stock class", _one_line(error), False)
    with torch.no_grad():
        found = [model(input_ids=torch.tensor([row], device=model.device)).logits.item() for row in probes.rows]
    off = max(map(distance, found, expected))
    good = off <= tolerance(probes)
    return Finding("stock class", f"reads the response scale{'' if good else ' otherwise'}, {off:.1e} off", good)


def _response_scores(model: Any, probes: ProbeScores) -> list[float]:
    """What a stock class should read of each row."""
    base = base_reward_model(model).eval()
    weight = next(
        module for module in reversed(list(base.score.modules())) if isinstance(module, MultiScaleHead)
    ).weight
    place = STATES.index("response")
    scores = []
    with torch.no_grad():
        for row, start in zip(probes.rows, probes.starts, strict=True):
            ids = torch.tensor([row], device=base.device)
            states = base.response_states(ids, response_start=torch.tensor([start], device=base.device))
            scores.append((states[0, 0, place] @ weight[0].float()).item())
    return scores


def _compared(what: str, probes: ProbeScores, scores: list[float], scale_scores: list[list[float]]) -> Finding:
    saved = [*probes.scores, *(score for row in probes.scale_scores for score in row)]
    found = [*scores, *(score for row in scale_scores for score in row)]
    off = max(map(distance, found, saved))
    if off <= tolerance(probes):
        return Finding(what, f"as when it was saved, {off:.1e} off at most")
    shown = ", ".join(
        f"{score:.4f} instead of {before:.4f}" for score, before in zip(scores, probes.scores, strict=True)
    )
    return Finding(what, f"not as when it was saved: {shown}", False)


def distance(found: float, saved: float) -> float:
    """Of two scores, in relation to those above 1, which have fewer digits; infinite where one is no number."""
    distance = abs(found - saved) / max(1.0, abs(saved))
    return distance if math.isfinite(distance) else math.inf


def tolerance(probes: ProbeScores) -> float:
    """Largest distance of scores that count as the same, by the dtype of the decoder's weights."""
    return TOLERANCES.get(probes.dtype, HALF_TOLERANCE)


def _base_name(folder: str) -> str:
    return str(load_adapter_config(folder).base_model_name_or_path)


def _tried(what: str, good: str, check: Callable[[], Any]) -> Finding:
    try:
        check()
    except (ValueError, OSError) as error:
        return Finding(what, _one_line(error), False)
    return Finding(what, good)


def _one_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
