"""What the model card of a policy says."""

from typing import Any

from accelerate.utils import extract_model_from_parallel
from peft import PeftModel
from trl.trainer.utils import get_config_model_id

from ..reward.model import base_reward_model
from ..reward.scorer import RewardFunction
from ..training.cards import Card, source_of


def policy_card(trainer: Any) -> Card:
    """
    The card of the policy that a trainer has tuned so far.

    Args:
        trainer ([`ReinforceTrainer`]):
            The trainer.

    Returns:
        [`~toolkit.training.cards.Card`]
    """
    adapter = isinstance(trainer.accelerator.unwrap_model(trainer.model), PeftModel)
    data = trainer.train_dataset
    rows = len(data) if hasattr(data, "__len__") else None  # a stream has none
    plain = rows is not None and isinstance(data[0]["prompt"], str)
    logged = [row for row in trainer.state.log_history if "reward" in row]
    figures = [f"rewards/{name}/mean" for name in trainer.reward_func_names]
    figures += ["reward", "kl", "completions/mean_length"]
    first, last = (logged[0], logged[-1]) if logged else ({}, {})
    values = {
        "adapter": adapter,
        "rewards": [_named(*pair) for pair in zip(trainer.reward_funcs, trainer.reward_func_names, strict=True)],
        "rows": rows,
        "conversational": not plain and trainer._tokenizer.chat_template is not None,
        "most_tokens": trainer.args.max_completion_length,
        "first": first,
        "last": last,
        # None of a reward function that had nothing to say of a batch
        "figures": [name for name in figures if first.get(name) is not None and last.get(name) is not None],
    }
    return Card("policy.md.jinja", "peft" if adapter else "transformers", "text-generation", ["reinforce"], values)


def _named(func: Any, name: str) -> str:
    func = getattr(func, "source", func)  # the prefix baseline stands before one
    if not isinstance(func, RewardFunction) or func.model is None:  # which is in another process
        return f"`{name}`"
    model: Any = extract_model_from_parallel(func.model)  # which ZeRO-3 has divided
    source = source_of(get_config_model_id(base_reward_model(model).config))
    found = f"an adapter on {source}" if isinstance(model, PeftModel) else source
    return f"`{name}`" if source is None else f"`{name}` ({found})"
