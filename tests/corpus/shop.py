"""Tokenizers, models, folders and trainers that are made once, when a case first asks for them."""

import copy
import shutil
from functools import cached_property
from pathlib import Path
from typing import Any

from tests.helpers import PAIRS

# What trainers need where there is no GPU, and what keeps them quiet
QUIET = {
    "use_cpu": True,
    "bf16": False,
    "activation_checkpointing": False,
    "report_to": "none",
    "disable_tqdm": True,
    "logging_steps": 1,
}


class Shop:
    """
    What cases share.

    Args:
        folder (`Path`):
            An empty folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def tokenizer(self) -> Any:
        from tests.tiny import corpus, train_tokenizer

        return train_tokenizer(corpus(), 400)

    @cached_property
    def other_tokenizer(self) -> Any:
        """Other merges."""
        from tests.tiny import OTHER_SENTENCES, train_tokenizer

        return train_tokenizer(OTHER_SENTENCES, 340)

    @cached_property
    def tokenizer_folder(self) -> str:
        self.tokenizer.save_pretrained(self.folder / "tokenizer")
        return str(self.folder / "tokenizer")

    def tokenizer_with(self, **changes: Any) -> Any:
        """The tokenizer with another template, or another special token."""
        other = copy.deepcopy(self.tokenizer)
        for name, value in changes.items():
            setattr(other, name, value)
        return other

    @cached_property
    def chat_pairs(self) -> Any:
        from datasets import Dataset

        roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
        return Dataset.from_list(
            [
                {side: [{"role": roles[side], "content": text}] for side, text in zip(roles, pair, strict=True)}
                for pair in PAIRS
            ]
        )

    def causal(self, architecture: str = "qwen3", **options: Any) -> str:
        """Folder of a causal model with its tokenizer."""
        import torch
        from transformers import AutoModelForCausalLM

        from tests.tiny import decoder_config

        folder = self.folder / "-".join([architecture, *map(str, options.values())])
        if not folder.exists():
            torch.manual_seed(0)
            AutoModelForCausalLM.from_config(decoder_config(self.tokenizer, architecture, **options)).save_pretrained(
                folder
            )
            self.tokenizer.save_pretrained(folder)
        return str(folder)

    def reward_config(self, **options: Any) -> Any:
        from toolkit import MultiScaleRewardConfig

        defaults = {"output_dir": str(self.folder / "reward"), "max_steps": 2, "per_device_train_batch_size": 4}
        if "scales" not in options:
            defaults["context"] = "gate"  # which has all there is to save
        return MultiScaleRewardConfig(**{**QUIET, "save_strategy": "no", **defaults, **options})

    def reinforce_config(self, **options: Any) -> Any:
        from toolkit import ReinforceConfig

        defaults = {"output_dir": str(self.folder / "policy"), "max_steps": 2, "per_device_train_batch_size": 4}
        defaults |= {"num_generations": 2, "max_completion_length": 8}
        return ReinforceConfig(**{**QUIET, "save_strategy": "no", **defaults, **options})

    @cached_property
    def saved(self) -> Path:
        """A base, a reward model and an adapter on that base, as the trainer saves them."""
        from peft import LoraConfig

        from tests.tiny import spread_head
        from toolkit import MultiScaleRewardTrainer

        work = self.folder / "saved"
        shutil.copytree(self.causal(), work / "base")
        lora = LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["q_proj", "v_proj"])
        for form, peft_config in (("whole", None), ("adapter", lora)):
            config = self.reward_config(output_dir=str(work / form))
            trainer = MultiScaleRewardTrainer(str(work / "base"), config, self.chat_pairs, peft_config=peft_config)
            spread_head(trainer.reward_model)
            trainer.save_model()
        return work

    @cached_property
    def reward_trainer(self) -> Any:
        """A trainer that has saved a checkpoint at each of its two steps."""
        from toolkit import MultiScaleRewardTrainer

        config = self.reward_config(save_strategy="steps", save_steps=1, output_dir=str(self.folder / "run"))
        trainer = MultiScaleRewardTrainer(self.causal(), config, self.chat_pairs)
        trainer.train()
        return trainer

    @cached_property
    def policy_trainer(self) -> Any:
        """A trainer of a policy, whose reward functions cases may replace."""
        from toolkit import ReinforceTrainer

        prompts = self.chat_pairs.select_columns("prompt")
        return ReinforceTrainer(self.causal(), lengths, self.reinforce_config(beta=0.0), train_dataset=prompts)


def lengths(completions: list[Any], **columns: Any) -> list[float]:
    """A reward function: how long each response is."""
    return [float(len(str(completion))) for completion in completions]
