"""One architecture, tried in all that the toolkit does with a decoder."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, GenerationConfig
from trl.trainer.utils import add_fused_lm_head

from ...data.packing import pack_rows, why_not_shared
from ...data.probes import VOCABULARY, gap, randomize
from ...data.rotary import longest_fixed_row
from ...policy.passes import prefill_once, response_log_probs, why_not_prefilled
from ...reward.adapters import save_adapter_settings
from ...reward.head import MultiScaleSettings
from ...reward.loading import AutoModelForMultiScaleReward
from ...reward.model import reward_model_class
from ...reward.scales import SCALES
from .configs import full_config, tiny_config

# Of scores and log-probabilities, relative to their spread
TOLERANCE = 1e-4
PROMPTS, RESPONSES = (7, 12), ((15, 9, 22), (11, 20, 5))  # tokens
BOUNDARY = 5  # id that ends a segment
SETTINGS = MultiScaleSettings(segment_boundary_ids=[BOUNDARY])
ASPECTS = ("padding", "packing", "reload", "stock class", "LoRA", "policy", "generation")


def random_rows(seed: int = 0) -> list[list[tuple[list[int], list[int]]]]:
    """
    Prompts with several responses each.

    Args:
        seed (`int`, *optional*, defaults to `0`):
            Seed.

    Returns:
        `list[list[tuple[list[int], list[int]]]]`: A group for each prompt, with prompt and response of each row.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(length: int) -> list[int]:
        return torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()

    return [
        [(prompt, draw(length)) for length in lengths]
        for prompt, lengths in zip(map(draw, PROMPTS), RESPONSES, strict=True)
    ]


def batch_of(rows: list[tuple[list[int], list[int]]], left: bool = False, extra: int = 0) -> dict[str, Tensor]:
    """
    Rows as a batch of a reward model.

    Args:
        rows (`list[tuple[list[int], list[int]]]`):
            Prompt and response of each.
        left (`bool`, *optional*, defaults to `False`):
            Whether padding comes first.
        extra (`int`, *optional*, defaults to `0`):
            Padding tokens more than the longest row needs.

    Returns:
        `dict[str, torch.Tensor]`
    """
    width = max(len(prompt) + len(response) for prompt, response in rows) + extra
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask, starts = torch.zeros_like(ids), []
    for i, (prompt, response) in enumerate(rows):
        length = len(prompt) + len(response)
        first = width - length if left else 0
        ids[i, first : first + length] = torch.tensor(prompt + response)
        mask[i, first : first + length] = 1
        starts.append(first + len(prompt))
    return {"input_ids": ids, "attention_mask": mask, "response_start": torch.tensor(starts)}


def apart(found: Tensor, expected: Tensor) -> str | None:
    """How far two results are apart, where that is more than rounding."""
    worst = gap(found, expected)
    return None if worst <= TOLERANCE else f"{worst:.1g} of the spread apart"


def try_architecture(kind: str, options: dict[str, Any], folder: Path) -> dict[str, str]:
    """
    Try an architecture in every aspect.

    Args:
        kind (`str`):
            Model type.
        options (`dict[str, Any]`):
            Of its configuration.
        folder (`pathlib.Path`):
            An empty one, for what is saved.

    Returns:
        `dict[str, str]`: By aspect "right", or "refused: " or "wrong: " with the reason; the aspect "model" alone
        where the model is refused as a whole.
    """
    try:
        with torch.device("meta"):  # most encoders end here, since their head is of another kind
            whole = full_config(kind, num_labels=1, multi_scale=asdict(SETTINGS))
            config_class: Any = type(whole)
            reward_model_class(config_class)(whole)
        config = tiny_config(kind, **options)
        model = begin_reward_model(config, folder)
    except ImportError as error:
        return {"model": f"refused: {str(error).strip().partition('. ')[0]}"}
    except ValueError as error:
        return {"model": f"refused: {str(error).replace(str(folder), '…')}"}
    return try_reward_model(model, folder) | try_policy(config)


def begin_reward_model(config: Any, folder: Path) -> Any:
    """
    A reward model with random weights, by way of a saved base.

    Args:
        config ([`~transformers.PreTrainedConfig`]):
            Of a tiny model.
        folder (`pathlib.Path`):
            Where base and reward model are saved.

    Returns:
        [`~transformers.PreTrainedModel`]: In evaluation mode.

    Raises:
        `ValueError`: If it is refused.
    """
    stock_class: Any = AutoModelForSequenceClassification._model_mapping[type(config)]
    torch.manual_seed(0)
    base = stock_class(config)
    randomize(base)
    base.save_pretrained(folder / "base")
    model = AutoModelForMultiScaleReward.from_pretrained(str(folder / "base"), SETTINGS).eval()
    for parameter in model.score.parameters():
        nn.init.normal_(parameter)
    model.save_pretrained(folder / "reward")
    return model


def try_reward_model(model: Any, folder: Path) -> dict[str, str]:
    """
    Try a reward model.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            From [`begin_reward_model`].
        folder (`pathlib.Path`):
            Where it is saved.

    Returns:
        `dict[str, str]`: By aspect "right", or "refused: " or "wrong: " with the reason.
    """
    groups = random_rows()
    rows = [row for group in groups for row in group]
    with torch.no_grad():
        alone = torch.cat([model(**batch_of([row])).logits for row in rows])
        found = {
            "padding": _padding(model, rows, alone),
            "packing": _packing(model, groups, alone),
            "reload": _verdict(apart(_loaded(folder / "reward")(**batch_of(rows)).logits, alone)),
            "stock class": _stock(model, folder / "reward", rows),
        }
    return found | {"LoRA": _lora(folder, rows)}


def _verdict(difference: str | None) -> str:
    return "right" if difference is None else f"wrong: {difference}"


def _loaded(folder: Path) -> Any:
    return AutoModelForMultiScaleReward.from_pretrained(str(folder)).eval()


def _padding(model: Any, rows: list[Any], alone: Tensor) -> str:
    for left, extra in ((False, 0), (False, 5), (True, 0), (True, 5)):
        if difference := apart(model(**batch_of(rows, left, extra)).logits, alone):
            return f"wrong: padded on the {'left' if left else 'right'}, {difference}"
    return "right"


def _packing(model: Any, groups: list[Any], alone: Tensor) -> str:
    if reason := why_not_shared(model):
        return f"refused: {reason}"
    ids = [[prompt + response for prompt, response in group] for group in groups]
    packed = pack_rows(ids, [len(group[0][0]) for group in groups], 0)
    starts = torch.tensor([len(prompt) for group in groups for prompt, _ in group])
    return _verdict(apart(model(**packed._asdict(), response_start=starts, use_cache=False).logits, alone))


def _stock(model: Any, folder: Path, rows: list[Any]) -> str:
    batch = batch_of(rows)
    expected = model(**batch).scale_scores[:, list(SCALES).index("response")]
    stock: Any = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    difference = apart(stock(**inputs).logits[:, 0], expected)
    if difference and longest_fixed_row(model.config) is not None:
        return "refused: its rotary frequencies are those of the longest row in a batch"
    return _verdict(difference)


def _lora(folder: Path, rows: list[Any]) -> str:
    """A step of LoRA, saved and loaded again."""
    base = _loaded(folder / "reward")
    # Some routers are linear layers that return more than one tensor, which PEFT cannot add to
    others = [
        name
        for name, module in base.named_modules()
        if isinstance(module, nn.Linear) and "Router" in repr(type(module))
    ]
    excluded = others or None
    lora = LoraConfig(task_type="SEQ_CLS", r=4, target_modules="all-linear", exclude_modules=excluded)
    model: Any = get_peft_model(base, lora)
    before, batch = model(**batch_of(rows), use_cache=False).logits, batch_of(rows)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    (before * torch.linspace(-1, 1, len(rows))[:, None]).sum().backward()
    optimizer.step()
    model.eval().save_pretrained(folder / "adapter")
    save_adapter_settings(base.settings, str(folder / "adapter"))
    with torch.no_grad():
        after = model(**batch).logits
        if apart(after, before) is None:
            return "wrong: a step moves nothing"
        return _verdict(apart(_loaded(folder / "adapter")(**batch).logits, after))


def try_policy(config: Any) -> dict[str, str]:
    """
    Try a policy.

    Args:
        config ([`~transformers.PreTrainedConfig`]):
            Of a tiny model.

    Returns:
        `dict[str, str]`: By aspect "right", or "refused: " or "wrong: " with the reason; none where Transformers has
        no causal language model of this kind.
    """
    if type(config) not in AutoModelForCausalLM._model_mapping:
        return {}
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config).eval()
    randomize(model)
    rows = [row for group in random_rows(1) for row in group]
    with torch.no_grad():
        return {"generation": _generation(model, rows), "policy": _log_probs(model, rows)}


def _log_probs(model: Any, rows: list[Any]) -> str:
    prompts, responses = [prompt for prompt, _ in rows], [response for _, response in rows]
    if longest_fixed_row(model.config) is not None:
        return "refused: what it sampled is not what its rotary frequencies of a longer row make of it"
    exact = []
    for prompt, response in rows:
        logits = model(torch.tensor([prompt + response]), use_cache=False).logits[0, len(prompt) - 1 : -1]
        exact.append(logits.float().log_softmax(-1).gather(1, torch.tensor(response)[:, None])[:, 0])
    add_fused_lm_head(model)
    width = max(map(len, responses))
    for share in (False, True) if why_not_shared(model) is None else (False,):
        found, _ = response_log_probs(
            model, prompts, responses, width=width, batch_size=len(rows), pad_token_id=0, share=share
        )
        read = torch.cat([row[: len(response)] for row, response in zip(found, responses, strict=True)])
        if difference := apart(read, torch.cat(exact)):
            return f"wrong: {'shared' if share else 'unshared'}, {difference}"
    return "right"


def _generation(model: Any, rows: list[Any]) -> str:
    if reason := why_not_prefilled(model):
        return f"refused: {reason}"
    batch = batch_of([(prompt, []) for prompt, _ in rows], left=True)
    model.generation_config.eos_token_id = None  # so that no row ends early
    config = GenerationConfig(max_new_tokens=24, do_sample=False, pad_token_id=0, disable_compile=True)
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "generation_config": config}
    plain = model.generate(**inputs)
    prefill_once(model)
    other = (model.generate(**inputs) != plain).any(1).sum().item()
    return "right" if other == 0 else f"wrong: {other} of {len(rows)} greedy responses are others"
