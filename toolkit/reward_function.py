"""A multi-scale reward model as a plain callable, for the `reward_funcs` of TRL's trainers and for anything else."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import gather_object
from peft import PeftModel
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.utils.logging import get_logger
from trl.models import prepare_deepspeed
from trl.trainer.utils import get_config_model_id

from .modeling import AutoModelForMultiScaleReward, MultiScaleRewardOutput, base_reward_model
from .tokenization import EncodedResponse, Messages, TurnParts, cut_prompt, encode_response, end_ids, turn_parts

logger = get_logger(__name__)


class ResponseScore(NamedTuple):
    """Score of one response. `R` tokens of the response as the reward model reads it, `S` scales. On the CPU."""

    reward: float
    scale_scores: Tensor  # (S,) float32
    gate: Tensor  # (S,) float32
    prefix_values: Tensor  # (R, S) float32, gate-weighted value of the response up to and including each token
    prompt_value: Tensor  # (S,) float32, gate-weighted value of the empty response
    token_scores: Tensor  # (R,) float32
    segment_scores: Tensor  # (R,) float32, 0 but at segment ends
    ends: list[int]  # of each token, where it ends in the text, in characters; empty with `same_tokens`
    same_tokens: bool  # whether the tokens are those that the policy sampled


class RewardFunction:
    """
    Scores responses as in training: same template, BOS and EOS, left-truncated prompts, batches of like length.

    An instance goes into `reward_funcs` of TRL's RLOO and GRPO trainers, of [`ReinforceTrainer`], or is called with
    lists. It is not a module, since TRL would then feed it re-decoded text without BOS and EOS, in one batch.

    Token ids that the policy sampled are scored as they are where they are ids of the reward model's tokenizer, which
    is found out by decoding them. A response whose last id is neither EOS nor the template's end of turn was cut off,
    and gets no EOS.

    Args:
        model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Folder or hub name of a multi-scale reward model or adapter, or a loaded one. A loaded one stays where it
            is; one given by name goes to `device`.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer of the reward model; loaded from the model's folder where it is not given.
        policy_processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer of the policy, needed only where it is another one.
        batch_size (`int`, *optional*, defaults to `16`):
            Rows of a forward pass.
        max_length (`int`, *optional*):
            Most tokens of a row; the model's context length where it is not given.
        device (`str` or `torch.device`, *optional*):
            Where a model given by name goes; the process's own device where it is not given.
        model_init_kwargs (`dict[str, Any]`, *optional*):
            For a model given by name: what `from_pretrained` takes, such as `dtype` or `quantization_config`.
        chat_template_kwargs (`dict[str, Any]`, *optional*):
            Further arguments of `apply_chat_template`.

    Attributes:
        last_scores (`list[ResponseScore | None]`):
            What the latest call found, for callers that want more than the reward; `None` for an empty response.
    """

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        processing_class: PreTrainedTokenizerBase | None = None,
        *,
        policy_processing_class: PreTrainedTokenizerBase | None = None,
        batch_size: int = 16,
        max_length: int | None = None,
        device: str | torch.device | None = None,
        model_init_kwargs: dict[str, Any] | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> None:
        if isinstance(model, str):
            processing_class = processing_class or AutoTokenizer.from_pretrained(model)
            model = AutoModelForMultiScaleReward.from_pretrained(model, **(model_init_kwargs or {}))
            if getattr(model, "hf_device_map", None) is None and not _is_partitioned(model):
                model = model.to(device or PartialState().device)
        base = base_reward_model(model)
        self.model = model
        # Weights in 4 bits are not parameters that DeepSpeed could partition, and a quarter of the size anyway.
        self._quantized = getattr(base, "is_quantized", False)
        self._partitioned = False
        self.settings = base.settings
        self.processing_class = processing_class or AutoTokenizer.from_pretrained(get_config_model_id(base.config))
        self.policy_processing_class = policy_processing_class
        self.batch_size = batch_size
        context_length = getattr(base.config.get_text_config(), "max_position_embeddings", None)
        self.max_length = max_length or context_length
        self.chat_template_kwargs = chat_template_kwargs or {}
        self._end_ids = end_ids(policy_processing_class or self.processing_class, **self.chat_template_kwargs)
        self.last_scores: list[ResponseScore | None] = []

    def __call__(
        self,
        prompts: list[str] | list[Messages],
        completions: list[str] | list[Messages],
        completion_ids: list[list[int]] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **kwargs: Any,
    ) -> list[float | None]:
        """
        Rewards of a batch, with TRL's signature of a reward function.

        Args:
            prompts (`list[str]` or `list[list[dict[str, str]]]`):
                Prompt of each response, plain or messages.
            completions (`list[str]` or `list[list[dict[str, str]]]`):
                Responses in the same form.
            completion_ids (`list[list[int]]`, *optional*):
                Ids that the policy sampled, up to and including its EOS. Without them every response counts as
                finished.
            log_metric (`Callable`, *optional*):
                TRL's hook for metrics; every scale's mean, the gate's, and the number of shortened prompts go there.
            kwargs:
                Other columns of the data set, not used.

        Returns:
            `list[float | None]`: Reward of each response; `None`, which TRL takes as "not scored", for an empty one.

        Raises:
            `ValueError`: If `completion_ids` come from another tokenizer and `policy_processing_class` was not given,
            or a response alone is longer than `max_length`.
        """
        ids = completion_ids or [None] * len(prompts)
        encoded = [self._encode(*row) for row in zip(prompts, completions, ids, strict=True)]
        rows, cuts = {}, 0
        for i, (row, same) in enumerate(encoded):
            if row.response_start == len(row.input_ids):
                continue
            try:
                (row,), cut = cut_prompt(self.processing_class, [row], self.max_length)
            except ValueError as error:
                raise ValueError(f"Response {i + 1} of the batch: {error}") from None
            cuts += cut > 0
            rows[i] = (row, same)
        scores = self._score(rows)
        self.last_scores = [scores.get(i) for i in range(len(prompts))]
        if cuts:
            logger.warning_once(
                f"{cuts} of {len(prompts)} prompts were shortened from the left to fit the reward model's "
                f"{self.max_length} tokens; the metric `reward_model/shortened_prompts` counts on."
            )
        if log_metric is not None and scores:
            log_metric("reward_model/shortened_prompts", float(cuts))
            for i, scale in enumerate(self.settings.scales):
                log_metric(
                    f"reward_model/{scale}", sum(s.scale_scores[i].item() for s in scores.values()) / len(scores)
                )
                log_metric(f"reward_model/gate/{scale}", sum(s.gate[i].item() for s in scores.values()) / len(scores))
        return [None if score is None else score.reward for score in self.last_scores]

    def _encode(
        self, prompt: str | Messages, completion: str | Messages, ids: list[int] | None
    ) -> tuple[EncodedResponse, bool]:
        """Row of one response, and whether its tokens are those that the policy sampled."""
        tokenizer, kwargs = self.processing_class, self.chat_template_kwargs
        text = completion if isinstance(completion, str) else completion[-1]["content"]
        parts = None if isinstance(prompt, str) else turn_parts(tokenizer, prompt, **kwargs)
        if ids is None:
            return self._encode_text(prompt, completion, parts, finished=True), False
        policy_tokenizer = self.policy_processing_class or tokenizer
        if policy_tokenizer.decode(ids, skip_special_tokens=True) != text:
            raise ValueError(
                f"The ids of a response do not decode to its text {text[:60]!r} with the tokenizer "
                f"'{policy_tokenizer.name_or_path}': the policy has another one. Give it to RewardFunction as "
                "`policy_processing_class`."
            )
        finished = bool(ids) and ids[-1] in self._end_ids
        if policy_tokenizer is not tokenizer and tokenizer.decode(ids, skip_special_tokens=True) != text:
            return self._encode_text(prompt, completion, parts, finished), False
        if parts is None:
            start, tail = tokenizer(prompt)["input_ids"], [tokenizer.eos_token_id]
        elif parts.head:  # the template writes between marker and message what the policy did not sample
            return self._encode_text(prompt, completion, parts, finished), False
        else:
            start = tokenizer(parts.prompt, add_special_tokens=False)["input_ids"]
            tail = tokenizer(parts.tail, add_special_tokens=False)["input_ids"]
        response = ids[:-1] + tail if finished else list(ids)
        return EncodedResponse(start + response, len(start), []), True

    def _encode_text(
        self, prompt: str | Messages, completion: str | Messages, parts: TurnParts | None, finished: bool
    ) -> EncodedResponse:
        row = encode_response(
            self.processing_class, prompt, completion, finished=finished, **self.chat_template_kwargs
        )
        before = len(parts.head) if parts else 0
        return row._replace(ends=[end - before for end in row.ends])

    def _score(self, rows: dict[int, tuple[EncodedResponse, bool]]) -> dict[int, ResponseScore]:
        if is_deepspeed_zero3_enabled() and not self._partitioned and not self._quantized:
            self.model, self._partitioned = prepare_deepspeed(self.model, Accelerator()), True
        training, scores = self.model.training, {}
        self.model.eval()
        # Rows of like length share a batch, so that little is padded.
        order = sorted(rows, key=lambda i: len(rows[i][0].input_ids))
        passes = math.ceil(len(order) / self.batch_size)
        if self._partitioned:
            # A forward pass gathers each layer from every process, so all must make as many, with rows left or not.
            passes = max(gather_object([passes]))
        with torch.no_grad():
            for first in range(0, passes * self.batch_size, self.batch_size):
                chunk = order[first : first + self.batch_size]
                output = self._forward([rows[i][0] for i in chunk] or [EncodedResponse([0, 0], 1, [])])
                for k, i in enumerate(chunk):
                    scores[i] = _response_score(output, k, *rows[i])
        self.model.train(training)
        return scores

    def _forward(self, rows: list[EncodedResponse]) -> MultiScaleRewardOutput:
        device, width = self.model.device, max(len(row.input_ids) for row in rows)
        input_ids = torch.full((len(rows), width), self.processing_class.pad_token_id or 0, device=device)
        attention_mask = torch.zeros_like(input_ids)
        for k, row in enumerate(rows):
            input_ids[k, : len(row.input_ids)] = torch.tensor(row.input_ids, device=device)
            attention_mask[k, : len(row.input_ids)] = 1
        start = torch.tensor([row.response_start for row in rows], device=device)
        return self.model(input_ids=input_ids, attention_mask=attention_mask, response_start=start, use_cache=False)


def _is_partitioned(model: PreTrainedModel | PeftModel) -> bool:
    """Whether the weights were partitioned as they were loaded, which Transformers does under ZeRO-3."""
    return any(hasattr(parameter, "ds_id") for parameter in model.parameters())


def _response_score(output: MultiScaleRewardOutput, k: int, row: EncodedResponse, same_tokens: bool) -> ResponseScore:
    response, gate = output.response_mask[k], output.gate[k]
    return ResponseScore(
        reward=output.logits[k, 0].item(),
        scale_scores=output.scale_scores[k].cpu(),
        gate=gate.cpu(),
        prefix_values=(output.prefix_values[k][response] * gate).cpu(),
        prompt_value=(output.prompt_value[k] * gate).cpu(),
        token_scores=output.token_scores[k][response].cpu(),
        segment_scores=output.segment_scores[k][response].cpu(),
        ends=row.ends,
        same_tokens=same_tokens,
    )
