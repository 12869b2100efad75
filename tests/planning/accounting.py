"""Plans beside PyTorch's own count on tensors without content: `python -m tests.planning.accounting`.

The models have the shapes of real ones, and hold nothing. What a step holds grows by the same bytes with every layer,
so that 2 and 4 of them say what all would.
"""

from typing import NamedTuple
from unittest.mock import patch

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import Qwen3Config
from trl.kernels import chunked_logprob

from toolkit.experiments.benchmarks.memory import Peaks, training_peaks
from toolkit.pages.tables import print_table
from toolkit.planning.plan import Run, build_model, plan_memory


class Shape(NamedTuple):
    """A decoder of the Qwen3 family."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    tied: bool


SHAPES = {
    "0.6B": Shape(1024, 28, 16, 8, 128, 3072, 151_936, True),
    "8B": Shape(4096, 36, 32, 8, 128, 12288, 151_936, False),
    "32B": Shape(5120, 64, 64, 8, 128, 25600, 151_936, False),
}
# Weights and adapters: float32 under autocast as TRL loads them, bfloat16, and LoRA on bfloat16
WAYS = {"float32": (torch.float32, 0), "bfloat16": (torch.bfloat16, 0), "LoRA": (torch.bfloat16, 16)}

KERNELS = ("_forward_tile", "_backward_tile", "_addmm_fp32")


def config_of(shape: Shape, layers: int) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        num_hidden_layers=layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        intermediate_size=shape.intermediate,
        tie_word_embeddings=shape.tied,
        pad_token_id=0,
        eos_token_id=1,
        num_labels=1,
    )


def counted(shape: Shape, layers: int, reward: bool, way: str, run: Run) -> Peaks:
    """Bytes of a step at their most, of so many layers, by PyTorch's count."""
    dtype, rank = WAYS[way]
    model = build_model(config_of(shape, layers), reward, dtype, rank)
    # What TRL's head does to its tiles, a GPU's kernels do in their place, without copies
    in_place = patch.multiple(chunked_logprob, **dict.fromkeys(KERNELS, lambda *args, **kwargs: None))
    with in_place, FakeTensorMode(allow_non_fake_inputs=True):  # the model is on the meta device
        model = model.to_empty(device="cpu")
        model.tie_weights()
        return training_peaks(model, run, "cpu")


def compare(shape: Shape, reward: bool, way: str, run: Run) -> tuple[int, int]:
    """Planned and counted bytes of all layers."""
    few, more = (torch.tensor(counted(shape, layers, reward, way, run)) for layers in (2, 4))
    whole = few + (shape.layers - 2) * (more - few) // 2
    dtype, rank = WAYS[way]
    plan = plan_memory(build_model(config_of(shape, shape.layers), reward, dtype, rank), run)
    planned = plan.weights + plan.gradients + plan.optimizer + plan.activations
    return planned, int(whole.max())


def main() -> None:
    rows = []
    for name, shape in SHAPES.items():
        for reward in (True, False):
            for way in WAYS:
                # On the CPU TRL's head works on all tokens of a row, so that all are counted as sampled
                run = Run(rows=8, length=2048, completion_length=0 if reward else 2047, generated_rows=8)
                planned, found = compare(shape, reward, way, run)
                figures = (f"{planned / 1e9:.2f}", f"{found / 1e9:.2f}", f"{planned / found - 1:+.1%}")
                rows.append((f"{name} {'reward' if reward else 'policy'}, {way}", *figures))
                print(*rows[-1], flush=True)
    print_table("8 rows of 2,048 tokens, gradient checkpointing, GB", ("", "plan", "PyTorch", "plan is off by"), rows)


if __name__ == "__main__":
    main()
