"""A multi-scale reward model as a plain callable, for the `reward_funcs` of TRL's trainers and for anything else."""

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import extract_model_from_parallel, gather_object
from peft import PeftModel
from tqdm.auto import tqdm
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.utils.logging import get_logger
from trl.models import prepare_deepspeed
from trl.trainer.utils import get_config_model_id

from ..data.kernels import on_cpu
from ..data.messages import Messages, check_alike, text_of
from ..data.packing import fill_batches, grouped_inputs, groups_to_share, packed_lengths
from ..data.sampled import PromptParts, SampledResponse, encode_sampled, prompt_parts
from ..data.templates import TEMPLATE_COLUMNS, row_template_kwargs
from ..data.tokens import EncodedResponse, cut_prompt, encode_response, end_ids
from ..training.command_line import as_name, check_path
from ..training.options import check_number
from .head import MultiScaleSettings
from .loading import AutoModelForMultiScaleReward, check_place, is_partitioned, load_tokenizer, loading_options
from .model import base_reward_model
from .output import MultiScaleRewardOutput
from .scores import Reader, ResponseScore, reader_inputs, report_scores, response_score, rewards_of

logger = get_logger(__name__)


class _Row(NamedTuple):
    """A response as it is fed to the model."""

    encoded: EncodedResponse
    followed: EncodedResponse | None  # the ids as they were sampled, where the row has others
    same_tokens: bool
    head_tokens: int
    cut_tokens: int = 0


_NOTHING = EncodedResponse([0, 0], 1, [])  # a row for a pass that only other processes have rows for


class RewardFunction:
    """
    Scores responses as in training: same template, BOS and EOS, left-truncated prompts. Rows of like length share a
    batch, and responses to one prompt share its tokens where the decoder allows it.

    An instance goes into `reward_funcs` of TRL's RLOO and GRPO trainers, of [`ReinforceTrainer`], or is called with
    lists. It is not a module, since TRL would then feed it re-decoded text without BOS and EOS, in one batch.

    A response that was sampled as token ids has the score of what it says: its row is tokenized as in training, and
    where the policy has cut the text into other tokens, the values of its prefixes are read from a second row with
    these. A response whose last id is none of the ids that end one was cut off, and gets no EOS.

    Plain text given to a model that was trained on conversations is read as the user's message and the assistant's,
    which a warning says.

    Args:
        model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Folder or hub name of a multi-scale reward model or adapter, or a loaded one. A loaded one stays where it
            is; one given by name goes to `device`.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer of the reward model. Where it is not given, the one beside the model or adapter, else its base's.
        policy_processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer of the policy, needed only where it is another one.
        batch_size (`int`, *optional*, defaults to `16`):
            Most responses of a forward pass.
        max_tokens_per_batch (`int`, *optional*):
            Most tokens of a forward pass, padding included; a row that has more goes alone.
        max_length (`int`, *optional*):
            Most tokens of a row; the model's context length where it is not given.
        device (`str` or `torch.device`, *optional*):
            Where a model given by name goes; the process's own device where it is not given.
        model_init_kwargs (`dict[str, Any]`, *optional*):
            For a model given by name: what `from_pretrained` takes, such as `dtype` or `quantization_config`. Where
            `dtype` is not given, the type in which the model was saved, and bfloat16 on a GPU: half the memory, and
            the fast kernels. The head is in float32 in any case.
        chat_template_kwargs (`dict[str, Any]`, *optional*):
            Further arguments of `apply_chat_template`.
        stop_token_ids (`list[int]`, *optional*):
            Ids with which the policy ends a response, beside its tokenizer's EOS and padding, the template's end of
            turn and those with which the model that the reward model began from stopped. [`ReinforceTrainer`] adds its
            own; for TRL's trainers give those of the policy's `generation_config` where it is another model.
        reader (`str`, `int`, `dict[str, float]` or `list[float]`, *optional*):
            Of a model with several outputs, whose score it is: an annotator's by name, a mix of attributes by what
            each weighs, or of the outputs in their order. Else it is read as the weights that all share read it.
    """

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        processing_class: PreTrainedTokenizerBase | None = None,
        *,
        policy_processing_class: PreTrainedTokenizerBase | None = None,
        batch_size: int = 16,
        max_tokens_per_batch: int | None = None,
        max_length: int | None = None,
        device: str | torch.device | None = None,
        model_init_kwargs: dict[str, Any] | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
        stop_token_ids: Sequence[int] = (),
        reader: Reader | None = None,
    ) -> None:
        check_number("batch_size", batch_size, 1, whole=True)
        check_number("max_tokens_per_batch", max_tokens_per_batch, 1, whole=True)
        check_number("max_length", max_length, 2, whole=True)
        check_place(device, (model_init_kwargs or {}).get("dtype"))
        loaded: Any = (model := as_name(model))
        if isinstance(model, str):
            check_path(model, "reward model")
            options = loading_options(model_init_kwargs or {}, torch.device(device or PartialState().device))
            processing_class = processing_class or load_tokenizer(model, **options)
            loaded = AutoModelForMultiScaleReward.from_pretrained(model, **options)
            if getattr(loaded, "hf_device_map", None) is None and not is_partitioned(loaded):
                loaded.to(device or PartialState().device)
        base = base_reward_model(loaded)
        self.model = loaded
        # Weights in 4 bits are not parameters that DeepSpeed could partition, and a quarter of the size anyway.
        self._quantized = getattr(base, "is_quantized", False)
        self._partitioned = False
        self.settings: MultiScaleSettings = base.settings
        self.processing_class = processing_class or AutoTokenizer.from_pretrained(get_config_model_id(base.config))
        self.policy_processing_class = policy_processing_class
        reader_inputs(self.settings, reader, 0)  # refuses what is not there
        self.reader = reader
        self.batch_size = batch_size
        self.max_tokens_per_batch = max_tokens_per_batch
        context_length = getattr(base.config.get_text_config(), "max_position_embeddings", None)
        self.max_length = max_length or context_length
        self.chat_template_kwargs = chat_template_kwargs or {}
        self.end_ids = end_ids(policy_processing_class or self.processing_class, **self.chat_template_kwargs)
        if policy_processing_class is None:  # else these are ids of another tokenizer
            of_config = base.config.get_text_config().eos_token_id or []
            self.add_stop_token_ids([of_config] if isinstance(of_config, int) else of_config)
            self.add_stop_token_ids(self.settings.stop_token_ids)
        self.add_stop_token_ids(stop_token_ids)

    def add_stop_token_ids(self, ids: Sequence[int]) -> None:
        """
        Let further ids end a response.

        Args:
            ids (`list[int]`):
                Ids of the policy's tokenizer with which its generation stops.
        """
        self.end_ids |= set(ids)

    def __call__(
        self,
        prompts: Sequence[str | Messages],
        completions: Sequence[str | Messages],
        completion_ids: list[list[int]] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """
        Rewards of a batch, with TRL's signature of a reward function.

        Arguments and errors as in [`score`].

        Args:
            log_metric (`Callable`, *optional*):
                TRL's hook for metrics, for [`report`].

        Returns:
            `list[float | None]`: Reward of each response; `None`, which TRL takes as "not scored", for an empty one.
        """
        rows = self._rows(prompts, completions, completion_ids, columns)
        found = self._score_rows({i: row._replace(followed=None) for i, row in rows.items()})
        scores = self._of_batch(prompts, found)
        if log_metric is not None:
            self.report(scores, log_metric)
        return rewards_of(scores)

    def score(
        self,
        prompts: Sequence[str | Messages],
        completions: Sequence[str | Messages],
        completion_ids: list[list[int]] | None = None,
        **columns: Any,
    ) -> list[ResponseScore | None]:
        """
        Scores of a batch, with all that the model says of each response.

        Args:
            prompts (`list[str]` or `list[list[dict[str, str]]]`):
                Prompt of each response, plain or messages.
            completions (`list[str]` or `list[list[dict[str, str]]]`):
                Responses in the same form.
            completion_ids (`list[list[int]]`, *optional*):
                Ids that the policy sampled, up to and including its EOS. Without them every response counts as
                finished.
            columns:
                Other columns of the data set. `tools` and `chat_template_kwargs` go to the chat template, as in
                training.

        Returns:
            `list[ResponseScore | None]`: Score of each response; `None` for an empty one.

        Raises:
            `ValueError`: If `completion_ids` come from another tokenizer and `policy_processing_class` was not given,
            or a response alone is longer than `max_length`.
        """
        scores = self._score_rows(self._rows(prompts, completions, completion_ids, columns))
        return self._of_batch(prompts, scores)

    def _of_batch(self, prompts: Sequence[Any], found: dict[int, ResponseScore]) -> list[ResponseScore | None]:
        return [found.get(i) for i in range(len(prompts))]

    def report(self, scores: list[ResponseScore | None], log_metric: Callable[[str, float], None]) -> None:
        """
        Report the mean of every scale, that of its weight, and the number of shortened prompts.

        Args:
            scores (`list[ResponseScore | None]`):
                Scores of a batch.
            log_metric (`Callable`):
                TRL's hook for metrics: called with a name and a number.
        """
        report_scores([score for score in scores if score is not None], self.settings.scales, log_metric)

    def encode(self, prompt: str | Messages, response: str | Messages) -> EncodedResponse:
        """
        The row of a response as the model reads it, before its prompt is shortened.

        Args:
            prompt (`str` or `list[dict[str, str]]`):
                Prompt, plain or messages.
            response (`str` or `list[dict[str, str]]`):
                Response in the same form, which has come to its end.

        Returns:
            [`~toolkit.data.tokens.EncodedResponse`]

        Raises:
            `ValueError`: If the model was trained on plain text and this is a conversation, or the tokenizer cannot
                make the row.
        """
        prompt, response = self._in_form_of_training(prompt, response)
        return encode_response(self.processing_class, prompt, response, **self.chat_template_kwargs)

    def _in_form_of_training(
        self, prompt: str | Messages, completion: str | Messages
    ) -> tuple[str | Messages, str | Messages]:
        check_alike(prompt, completion)
        if isinstance(prompt, str) and self.settings.conversational:
            logger.warning_once(
                "The reward model was trained on conversations, and prompts are plain text: each is read as the "
                "user's message, and its response as the assistant's. Give messages where that is not meant."
            )
            return [{"role": "user", "content": prompt}], [{"role": "assistant", "content": text_of(completion)}]
        if not isinstance(prompt, str) and self.settings.conversational is False:
            raise ValueError(
                "The reward model was trained on plain text, and the prompts are messages: it has not seen the chat "
                "template's text around them. Give prompts and responses as plain text, or a model that was trained "
                "on conversations."
            )
        return prompt, completion

    def _rows(
        self,
        prompts: Sequence[str | Messages],
        completions: Sequence[str | Messages],
        completion_ids: list[list[int]] | None,
        columns: dict[str, Any],
    ) -> dict[int, _Row]:
        """Row of each response that has a token, by its place in the batch."""
        counts = [len(prompts), len(completions), *([len(completion_ids)] if completion_ids else [])]
        if len(set(counts)) > 1:
            raise ValueError(
                f"`prompts`, `completions` and `completion_ids` must have one entry a response, got {counts}. "
                "Repeat a prompt for each of its responses."
            )
        ids: Sequence[list[int] | None] = completion_ids or [None] * len(prompts)
        columns = {name: columns[name] for name in TEMPLATE_COLUMNS if name in columns}
        around: dict[str, PromptParts] = {}
        rows: dict[int, _Row] = {}
        for i, (prompt, completion, row_ids) in enumerate(zip(prompts, completions, ids, strict=True)):
            options = row_template_kwargs({name: column[i] for name, column in columns.items()})
            prompt, completion = self._in_form_of_training(prompt, completion)
            key = json.dumps([prompt, options])  # several responses have the same
            if key not in around:
                around[key] = prompt_parts(self.processing_class, prompt, self.chat_template_kwargs | options)
            row = self._encode(prompt, around[key], completion, row_ids)
            if row.encoded.response_start < len(row.encoded.input_ids):
                rows[i] = self._cut(row, i)
        if cuts := sum(row.cut_tokens > 0 for row in rows.values()):
            logger.warning_once(
                f"{cuts} of {len(prompts)} prompts were shortened from the left to fit the reward model's "
                f"{self.max_length} tokens; the metric `reward_model/shortened_prompts` counts on."
            )
        return rows

    def _encode(
        self, prompt: str | Messages, around: PromptParts, completion: str | Messages, ids: list[int] | None
    ) -> _Row:
        """Row of one response, and beside it the ids that the policy sampled where they are of this tokenizer."""
        tokenizer, text = self.processing_class, text_of(completion)
        policy_tokenizer, finished = self.policy_processing_class or tokenizer, True
        if ids is not None:
            if policy_tokenizer.decode(ids, skip_special_tokens=True) != text:
                raise ValueError(
                    f"The ids of a response do not decode to its text {text[:60]!r} with the tokenizer "
                    f"'{policy_tokenizer.name_or_path}': the policy has another one. Give it to RewardFunction as "
                    "`policy_processing_class`."
                )
            finished = self._is_finished(ids, policy_tokenizer)
        if ids is None or (
            policy_tokenizer is not tokenizer and tokenizer.decode(ids, skip_special_tokens=True) != text
        ):
            row = encode_response(tokenizer, prompt, completion, finished=finished, turn=around.turn, **around.options)
            return _Row(row, None, False, 0)
        found: SampledResponse = encode_sampled(tokenizer, prompt, around, completion, ids, finished=finished)
        return _Row(found.row, found.followed, True, found.head_tokens)

    def _is_finished(self, ids: list[int], tokenizer: PreTrainedTokenizerBase) -> bool:
        if not ids or ids[-1] in self.end_ids:
            return bool(ids)
        if ids[-1] in tokenizer.all_special_ids:
            logger.warning_once(
                f"A response stops at {tokenizer.decode(ids[-1:])!r}, which is not among the ids that end one, so it "
                "counts as cut off. If the policy's generation stops there, give RewardFunction its id in "
                "`stop_token_ids`."
            )
        return False

    def _cut(self, row: _Row, index: int) -> _Row:
        try:
            (encoded,), cut = cut_prompt(self.processing_class, [row.encoded], self.max_length)
            if row.followed is not None:  # on its own, for a score must not hang on how the policy cut the text
                (followed,), _ = cut_prompt(self.processing_class, [row.followed], self.max_length)
                row = row._replace(followed=followed)
        except ValueError as error:
            raise ValueError(f"Response {index + 1} of the batch: {error}") from None
        return row._replace(encoded=encoded, cut_tokens=cut)

    def _score_rows(self, rows: dict[int, _Row]) -> dict[int, ResponseScore]:
        fed = [row.encoded for row in rows.values()] + [row.followed for row in rows.values() if row.followed]
        found = self.score_encoded(fed)
        followed, scores = iter(found[len(rows) :]), dict[int, ResponseScore]()
        for (i, row), score in zip(rows.items(), found, strict=False):
            if row.followed is not None:
                sampled = next(followed)
                score = score._replace(prefix_values=sampled.prefix_values, prompt_value=sampled.prompt_value)
            scores[i] = score._replace(
                same_tokens=row.same_tokens, head_tokens=row.head_tokens, cut_tokens=row.cut_tokens
            )
        return scores

    @torch.no_grad()
    def score_encoded(self, rows: Sequence[EncodedResponse]) -> list[ResponseScore]:
        """
        Scores of rows of token ids, as [`encode`] makes them and no longer than `max_length`.

        Args:
            rows (`Sequence[EncodedResponse]`):
                `N` rows.

        Returns:
            `list[ResponseScore]`: `N` scores. Under ZeRO-3 every process must call it alike.
        """
        if is_deepspeed_zero3_enabled() and not self._partitioned and not self._quantized:
            self.model, self._partitioned = prepare_deepspeed(self.model, Accelerator()), True
        training, scores = self.model.training, dict[int, ResponseScore]()
        chunks = self._chunks(rows)
        # A forward pass gathers each layer from every process, so all must make as many, with rows left or not
        passes = max(gather_object([len(chunks)])) if self._partitioned else len(chunks)
        self.model.eval()
        try:
            # Seen only where scoring takes its time, as it does not in a training step
            for chunk in tqdm(chunks + [[]] * (passes - len(chunks)), desc="Scoring", delay=10, leave=False):
                output = self._forward([[rows[k] for k in group] for group in chunk] or [[_NOTHING]])
                for place, k in enumerate(k for group in chunk for k in group):
                    scores[k] = response_score(output, place, rows[k].ends)
        finally:
            self.model.train(training)
        return [scores[k] for k in range(len(rows))]

    def _chunks(self, rows: Sequence[EncodedResponse]) -> list[list[list[int]]]:
        """Forward passes, each of groups of like length, each of responses to one prompt that share its tokens."""
        ids, shared = [row.input_ids for row in rows], [row.response_start for row in rows]
        model = base_reward_model(extract_model_from_parallel(self.model))
        groups = groups_to_share(model, ids, shared, self.batch_size)
        lengths = packed_lengths(groups, ids, shared)
        batches = fill_batches(lengths, list(map(len, groups)), self.batch_size, self.max_tokens_per_batch)
        return [[groups[k] for k in batch] for batch in batches]

    def _forward(self, groups: list[list[EncodedResponse]]) -> MultiScaleRewardOutput:
        """Output for the rows in the order of the groups, on the CPU."""
        ids = [[row.input_ids for row in group] for group in groups]
        starts = [[row.response_start for row in group] for group in groups]
        inputs = grouped_inputs(ids, starts, self.processing_class.pad_token_id or 0)
        inputs |= reader_inputs(self.settings, self.reader, len(inputs["response_start"]))
        output = self.model(**{key: value.to(self.model.device) for key, value in inputs.items()}, use_cache=False)
        return MultiScaleRewardOutput(**dict(zip(output.keys(), on_cpu(output.values()), strict=True)))
