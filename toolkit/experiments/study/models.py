"""The preference models that the study compares, and what it keeps of their training."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from datasets import Dataset
from peft import PeftConfig
from torch import Tensor
from transformers import PreTrainedModel
from trl import SFTConfig, SFTTrainer

from ...reward.config import PREFERENCE_MODELS, MultiScaleRewardConfig
from ...reward.trainer import MultiScaleRewardTrainer
from ...stats.metrics import PairScores
from ...training.manifests import last_complete_checkpoint

MULTI_SCALE = PREFERENCE_MODELS["multi-scale"]

# The multi-scale model with a part changed or taken away; each is options of the reward trainer.
ABLATIONS: dict[str, dict[str, Any]] = {
    **{
        " + ".join(scales): MULTI_SCALE | {"scales": scales}
        for scales in (["token"], ["segment"], ["token", "segment"], ["token", "response"], ["segment", "response"])
    },
    "no deep supervision": MULTI_SCALE | {"scale_loss_weight": 0.0},
    "with a gate": MULTI_SCALE | {"context": "gate"},
    "no weights": MULTI_SCALE | {"weight_by_strength": False},
    "no coarse warmup": MULTI_SCALE | {"coarse_warmup": 0.0},
}  # the response scale alone is "weighted"

STUDY_MODELS = PREFERENCE_MODELS | ABLATIONS


def attention() -> str:
    """The implementation of attention that is fastest at bfloat16 matrix products where the study runs."""
    # On a CPU a step with SDPA gains nothing from bfloat16, and one with eager attention takes half the time
    return "sdpa" if torch.cuda.is_available() or not is_bfloat16_fast() else "eager"


def is_bfloat16_fast() -> bool:
    """Whether what the study runs on has instructions for bfloat16; without them float32 takes a sixth of the time."""
    return torch.cuda.is_available() or bool(torch.cpu.get_capabilities().get("avx512_bf16"))


def trainer_options(folder: Path, name: str, seed: int, bf16: bool | None = None) -> dict[str, Any]:
    """Options that all trainers of the study share; `name` is that of the cell, and of its model's folder."""
    return {
        "output_dir": str(folder / "models" / name),
        "seed": seed,
        "lr_scheduler_type": "cosine",
        "weight_decay": 0.01,
        "use_cpu": not torch.cuda.is_available(),
        "bf16": is_bfloat16_fast() if bf16 is None else bf16,
        "activation_checkpointing": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def train_decoder(decoder: PreTrainedModel, tokenizer: Any, rows: Dataset, **options: Any) -> Any:
    """The decoder after supervised fine-tuning, which is also saved where the options say."""
    config = SFTConfig(warmup_steps=20, **options)
    trainer = SFTTrainer(decoder, config, train_dataset=rows, processing_class=tokenizer)
    trainer.train()
    trainer.save_model()
    return trainer.model


def reward_config(model: str, *, pairs_per_step: int, batches: int, **options: Any) -> MultiScaleRewardConfig:
    """Options of a reward model's training, each step in `batches` of rows of like length, with less padding."""
    return MultiScaleRewardConfig(
        per_device_train_batch_size=pairs_per_step // batches,
        gradient_accumulation_steps=batches,
        train_sampling_strategy="batch_rebalance",
        logging_steps=20,
        model_init_kwargs={"attn_implementation": attention()},
        **STUDY_MODELS[model],
        **options,
    )


def train_reward_model(
    start: str, config: MultiScaleRewardConfig, train: Dataset, test: Dataset, peft_config: PeftConfig | None = None
) -> tuple[MultiScaleRewardTrainer, dict[str, Any]]:
    """
    Train a reward model from the decoder `start` and rank `P` held-out pairs with it.

    A training that left a checkpoint goes on from it.

    What the study keeps, beside the trainer: `steps`, `tokens`, `bf16`, `metrics`, `gaps` (score of chosen less
    rejected, `P` numbers), `scale_gaps` (of each scale `P` numbers) and `longer` (response tokens of chosen less
    rejected, `P`).
    """
    trainer = MultiScaleRewardTrainer(start, config, train_dataset=train, eval_dataset=test, peft_config=peft_config)
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(str(config.output_dir)))
    # What evaluation prepared is that of `eval_dataset`
    prepared: Any = trainer.eval_dataset
    prediction = trainer.predict(prepared)
    pairs = PairScores(*map(torch.as_tensor, prediction.predictions))
    scale_gaps = pairs.scale_chosen - pairs.scale_rejected
    return trainer, {
        "steps": trainer.state.global_step,
        "tokens": next(row["num_tokens"] for row in reversed(trainer.state.log_history) if "num_tokens" in row),
        "bf16": bool(config.bf16),
        "metrics": prediction.metrics,
        "gaps": four_digits(pairs.chosen - pairs.rejected),
        "scale_gaps": [four_digits(column) for column in scale_gaps.T],
        "longer": (pairs.chosen_length - pairs.rejected_length).tolist(),
    }


def four_digits(values: Tensor) -> list[float]:
    """Numbers for JSON, to four digits."""
    return [float(f"{value:.4g}") for value in values.tolist()]


def best_rate(results: Mapping[float, Sequence[Mapping[str, Any]]]) -> float:
    """The learning rate of the search whose models rank most pairs right, from their results by rate."""
    return max(results, key=lambda rate: mean(ranked_right(cell["gaps"]).mean().item() for cell in results[rate]))


def ranked_right(gaps: list[float]) -> Tensor:
    """Whether pairs are ranked right, by score of chosen less rejected: 1, 0, a tie one half; `(P,)` float64."""
    return (torch.tensor(gaps, dtype=torch.float64).sign() + 1) / 2
