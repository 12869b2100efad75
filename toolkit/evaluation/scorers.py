"""Scores of the same responses by models of every kind: ours, stock ones, judges, the likelihood of a causal LM."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from peft import PeftModel, load_peft_weights
from torch import Tensor
from tqdm.auto import tqdm
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerBase,
)
from transformers.utils.logging import get_logger
from trl.trainer.utils import selective_log_softmax

from ..data.messages import Messages, text_of
from ..data.packing import fill_batches, grouped_inputs
from ..data.templates import row_template_kwargs
from ..data.tokens import EncodedResponse, cut_prompt, encode_response
from ..generative.reward import ThoughtReward
from ..generative.turns import is_judge
from ..reward.adapters import adapter_folder, check_reachable, fit_vocabulary, load_adapter_config
from ..reward.fingerprints import read_json
from ..reward.loading import load_tokenizer, loading_options, options_of_base, without_load_report
from ..reward.record import ADAPTER_PREFIX, ADAPTER_SETTINGS_NAME
from ..reward.scorer import RewardFunction
from ..training.command_line import check_path
from .multi_scale import MultiScaleScorer
from .pairs import Scored, ScoredPairs

logger = get_logger(__name__)

OURS, STOCK, CAUSAL, RULE = "multi-scale reward model", "stock reward model", "causal LM", "rule"
JUDGE = "judge that thinks"
SCORE, SUM, MEAN = "score", "log-probability", "log-probability per token"
BATCHES_AT_ONCE = 16  # in a block, which one process scores; the same blocks whatever the number of processes

# Scores of some responses by name, from prompts, responses and the template's columns
Scorer = Callable[[Sequence[str | Messages], Sequence[str | Messages], dict[str, list[Any]]], dict[str, list[float]]]
# The same from a model, rows and their padded inputs
Read = Callable[[Any, list[EncodedResponse], dict[str, Tensor]], dict[str, list[float]]]


def score(name: str, label: str, pairs: ScoredPairs, scorer: Scorer, kind: str, batch_size: int) -> list[Scored]:
    """
    Score all responses with one model, each process some of them.

    Args:
        name (`str`), label (`str`), kind (`str`):
            The model as it was given, what tables call it, and what it is.
        pairs ([`~toolkit.evaluation.pairs.ScoredPairs`]):
            The responses.
        scorer (`Callable`):
            The model.
        batch_size (`int`):
            Its rows in a forward pass. Blocks of [`BATCHES_AT_ONCE`] batches are dealt out, so that the rows of a
            pass, and with them the last bits of a score, are the same for any number of processes.

    Returns:
        `list[Scored]`: On every process. A causal LM has two scores, a model whose reader compares responses one more,
        others one.

    Raises:
        `ValueError`: If a response cannot be scored, naming the model and its place.
    """
    state, count = PartialState(), len(pairs.responses)
    starts = range(0, count, BATCHES_AT_ONCE * batch_size)
    mine = []
    for start in tqdm(starts[state.process_index :: state.num_processes], desc=label, delay=5, leave=False):
        some = slice(start, start + BATCHES_AT_ONCE * batch_size)
        columns = {name: values[some] for name, values in pairs.columns.items()}
        try:
            mine.append((start, scorer(pairs.prompts[some], pairs.responses[some], columns)))
        except ValueError as error:
            raise ValueError(f"Model '{name}', responses from number {start + 1} on: {error}") from error
    found = dict(gather_object(mine))
    names = list(found[0])
    scores = {k: torch.tensor([x for start in starts for x in found[start][k]], dtype=torch.float64) for k in names}
    for key, values in scores.items():
        if not bool(values.isfinite().all()):
            raise ValueError(f"Model '{name}' gives {key} {values[~values.isfinite()][0].item()} to a response.")
    if kind == CAUSAL:
        return [Scored(f"{label} ({key})", kind, values, {}) for key, values in scores.items()]
    whole = Scored(label, kind, scores.pop(names[0]), scores)
    return scorer.with_reader(whole, pairs) if isinstance(scorer, MultiScaleScorer) else [whole]


def longer_wins(pairs: ScoredPairs) -> Scored:
    """The logarithm of the length in characters as a score: what a model must beat."""
    return Scored("longer wins", RULE, pairs.lengths.double().log(), {})


def kind_of(name: str) -> str:
    """
    What a model is, by its configuration.

    Args:
        name (`str`):
            Folder or hub name of a model or an adapter.

    Returns:
        `str`: `OURS`, `STOCK`, `JUDGE` or `CAUSAL`.

    Raises:
        `ValueError`: If there is no such folder, or it is none of these.
    """
    check_path(name, "model")
    if is_judge(name):
        return JUDGE
    folder = adapter_folder(name)
    if folder is not None:
        if os.path.isfile(os.path.join(folder, ADAPTER_SETTINGS_NAME)):
            return OURS
        task = load_adapter_config(folder).task_type
        kinds = {"SEQ_CLS": STOCK, "CAUSAL_LM": CAUSAL}
        if task not in kinds:
            raise ValueError(
                f"The adapter in '{name}' is for the task {task!r}. Give one of {list(kinds)}, or of ours."
            )
        return kinds[task]
    if os.path.isdir(name):
        read_json(os.path.join(name, "config.json"))  # one line where it is damaged
    config: Any = AutoConfig.from_pretrained(name)
    architectures = config.architectures or []
    if getattr(config, "multi_scale", None) is not None:
        return OURS
    if any(each.endswith("ForSequenceClassification") for each in architectures):
        if config.num_labels != 1:
            found = f"'{name}' is a classifier with {config.num_labels} labels"
            raise ValueError(f"{found}, and a reward model has one. Give a reward model, or a causal LM.")
        return STOCK
    if any(each.endswith(("ForCausalLM", "LMHeadModel")) for each in architectures):
        return CAUSAL
    raise ValueError(
        f"'{name}' has the architectures {architectures} in its config.json: neither a multi-scale reward model nor "
        "`…ForSequenceClassification` nor `…ForCausalLM`. Correct the name."
    )


def open_scorer(
    name: str, kind: str, batch_size: int, max_length: int | None, dtype: str | None, plain_text: bool
) -> Scorer:
    """
    Load a model as a scorer.

    Args:
        name (`str`), kind (`str`):
            Folder or hub name, and what [`kind_of`] says of it.
        batch_size (`int`):
            Rows of a forward pass.
        max_length (`int`, *optional*):
            Most tokens of a row; the model's context length by default.
        dtype (`str`, *optional*):
            Type of the weights.
        plain_text (`bool`):
            Whether plain text is scored as it is by stock models and causal LMs that have a chat template.

    Returns:
        `Callable`

    Raises:
        `ValueError`: If the folder is damaged, weights are missing, or an option does not apply to a judge.
    """
    if kind == JUDGE:
        if max_length is not None or dtype is not None:
            raise ValueError(f"The judge '{name}' reads whole texts with its own weights. Leave out length and type.")
        judge = ThoughtReward(name, batch_size=batch_size)
        return lambda prompts, responses, columns: {SCORE: judge(prompts, responses)}
    device = PartialState().device
    options = loading_options({} if dtype is None else {"dtype": dtype}, device)
    if kind == OURS:
        reward = RewardFunction(name, batch_size=batch_size, max_length=max_length, model_init_kwargs=options)
        return MultiScaleScorer(reward)
    auto: Any = AutoModelForSequenceClassification if kind == STOCK else AutoModelForCausalLM
    model = _load(auto, name, options).to(device).eval()
    tokenizer = load_tokenizer(name)
    # As TRL's RewardTrainer has it: a stock class finds the last token by the padding's id
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    text_config = model.config.get_text_config()
    text_config.pad_token_id = tokenizer.pad_token_id
    max_length = max_length or getattr(text_config, "max_position_embeddings", None)
    read = _pooled if kind == STOCK else _log_probabilities
    return StockScorer(model, tokenizer, read, batch_size, max_length, plain_text)


class StockScorer:
    """
    Scores rows that are made as those of TRL's `RewardTrainer` are, padded on the right whatever the tokenizer says.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Model in evaluation mode.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer, with a padding token.
        read (`Callable`):
            Takes the model, rows and their inputs, and returns scores by name.
        batch_size (`int`):
            Rows of a forward pass.
        max_length (`int`, *optional*):
            Most tokens of a row, to which prompts are shortened from their left.
        plain_text (`bool`):
            Whether plain text is not read as messages where the tokenizer has a chat template.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        read: Read,
        batch_size: int,
        max_length: int | None,
        plain_text: bool,
    ) -> None:
        self.model, self.tokenizer, self.read = model, tokenizer, read
        self.batch_size, self.max_length = batch_size, max_length
        self.as_messages = tokenizer.chat_template is not None and not plain_text

    def __call__(
        self,
        prompts: Sequence[str | Messages],
        responses: Sequence[str | Messages],
        columns: dict[str, list[Any]],
    ) -> dict[str, list[float]]:
        """Scores by name, in the order of the responses."""
        rows = [
            self._row(prompt, response, {name: values[i] for name, values in columns.items()})
            for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True))
        ]
        found: dict[str, list[float]] = {}
        for batch in fill_batches([len(row.input_ids) for row in rows], [1] * len(rows), self.batch_size):
            some = [rows[i] for i in batch]
            starts = [[row.response_start] for row in some]
            inputs = grouped_inputs([[row.input_ids] for row in some], starts, self.tokenizer.pad_token_id)
            inputs = {key: inputs[key].to(self.model.device) for key in ("input_ids", "attention_mask")}
            with torch.no_grad():
                scores = self.read(self.model, some, inputs)
            for name, values in scores.items():
                places = found.setdefault(name, [0.0] * len(rows))
                for i, value in zip(batch, values, strict=True):
                    places[i] = value
        return found

    def _row(self, prompt: Any, response: Any, columns: dict[str, Any]) -> EncodedResponse:
        if isinstance(prompt, str) and self.as_messages:
            logger.warning_once(
                "Prompts are plain text and a model's tokenizer has a chat template: each is read as the user's "
                "message, and its response as the assistant's. `--plain_text true` scores the text as it is."
            )
            prompt = [{"role": "user", "content": prompt}]
            response = [{"role": "assistant", "content": text_of(response)}]
        row = encode_response(self.tokenizer, prompt, response, **row_template_kwargs(columns))
        (row,), cut = cut_prompt(self.tokenizer, [row], self.max_length)
        if cut:
            logger.warning_once(f"Some prompts are shortened from the left to fit into {self.max_length} tokens.")
        return row


def _pooled(model: Any, rows: list[EncodedResponse], inputs: dict[str, Tensor]) -> dict[str, list[float]]:
    return {SCORE: model(**inputs, use_cache=False).logits[:, 0].float().tolist()}


def _log_probabilities(model: Any, rows: list[EncodedResponse], inputs: dict[str, Tensor]) -> dict[str, list[float]]:
    """Sum over the tokens of each response, its end included, and mean; a first token without context has none."""
    ids = inputs["input_ids"]
    starts = [max(1, row.response_start) for row in rows]
    first = min(starts)
    logits = model(**inputs, use_cache=False, logits_to_keep=ids.size(1) - first + 1).logits[:, :-1]
    found = selective_log_softmax(logits.float(), ids[:, first:]).double()
    each = [found[i, start - first : len(rows[i].input_ids) - first] for i, start in enumerate(starts)]
    return {SUM: [row.sum().item() for row in each], MEAN: [row.mean().item() for row in each]}


def _load(auto: Any, name: str, options: dict[str, Any]) -> Any:
    """A model whose every weight is read from a file, or an adapter with the base that it was trained on."""
    folder = adapter_folder(name)
    own = set[str]()
    base, of_base = name, options
    if folder is not None:
        base = load_adapter_config(folder).base_model_name_or_path
        of_base = options_of_base(name, folder, options)
        of_base |= {"num_labels": 1} if auto is AutoModelForSequenceClassification else {}
        check_path(base, f"base of the adapter '{name}'")
        check_reachable(base, f"base of the adapter '{name}'")
        own = {key.removeprefix(ADAPTER_PREFIX) for key in load_peft_weights(folder, device="cpu")}
    with without_load_report():
        model, info = auto.from_pretrained(base, output_loading_info=True, **of_base)
    if missing := sorted(set(info["missing_keys"]) - own):
        raise ValueError(
            f"The weights of '{name}' lack {', '.join(missing[:5])}, which would be random. Copy the folder again; an "
            "adapter keeps its reward head where it is trained with `task_type='SEQ_CLS'`."
        )
    if folder is None:
        return model
    fit_vocabulary(model, folder)
    return PeftModel.from_pretrained(model, folder)
