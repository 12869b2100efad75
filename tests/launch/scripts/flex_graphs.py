"""
Count what is compiled for FlexAttention over 50 batches: `flex_graphs.py FOLDER [BACKEND [FILE]]`, of a causal LM.

Prints the graphs of reward models, packed and plain, and of policies together, and how far they are from SDPA's. The
backend is `eager`, which compiles as often as any and makes no kernels, or `inductor`, which takes minutes. Lengths
are drawn, or those in words of the pairs in a file.
"""

import json
import sys
from collections.abc import Iterator
from functools import partial
from itertools import islice

import torch
from torch._dynamo.utils import counters
from transformers import AutoModelForCausalLM

from tests.tiny import spread_head
from toolkit import AutoModelForMultiScaleReward, MultiScaleSettings
from toolkit.data.batches import MultiScaleCollator
from toolkit.data.loading import load_pairs
from toolkit.data.messages import text_of
from toolkit.data.packing import grouped_inputs
from toolkit.policy.passes import policy_batch

BATCHES, INPUTS = 50, ("input_ids", "attention_mask", "response_start", "position_ids", "branch_ids", "token_index")


def drawn_lengths(generator: torch.Generator) -> Iterator[tuple[int, ...]]:
    """Lengths of prompts and responses, 2 to 150 tokens, 20 at the median and 80 at the 95th percentile."""
    while True:
        yield tuple(torch.normal(3.0, 0.85, (3,), generator=generator).exp().clamp(2, 150).int().tolist())


def lengths_of(file: str, generator: torch.Generator) -> Iterator[tuple[int, ...]]:
    """Words of the prompts and responses of a file's pairs, in random order."""
    rows = load_pairs(file)
    for i in torch.randperm(len(rows), generator=generator).tolist():
        texts = (text_of(rows[i][side]) for side in ("prompt", "chosen", "rejected"))
        yield tuple(max(2, len(text.split())) for text in texts)


def pairs(count: int, lengths: Iterator[tuple[int, ...]], generator: torch.Generator) -> list[dict]:
    """Tokenized pairs of the next lengths."""
    made = []
    for of_each in islice(lengths, count):
        prompt, *both = (torch.randint(5, 300, (length,), generator=generator).tolist() for length in of_each)
        sides = {"chosen_ids": [*prompt, 3, *both[0]], "rejected_ids": [*prompt, 4, *both[1]]}
        starts = dict.fromkeys(("chosen_start", "rejected_start", "shared_tokens"), len(prompt))
        made.append(sides | starts)
    return made


def off(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference, relative to the largest value where that is above 1."""
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1))


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    torch.compile = partial(torch.compile, backend=sys.argv[2] if len(sys.argv) > 2 else "eager")
    generator, worst = torch.Generator().manual_seed(0), 0.0
    kinds = [{"attn_implementation": kind} for kind in ("flex_attention", "sdpa")]
    settings = MultiScaleSettings(context="gate", segment_boundary_ids=[7])
    models = [AutoModelForMultiScaleReward.from_pretrained(sys.argv[1], settings, **kind) for kind in kinds]
    policies = [AutoModelForCausalLM.from_pretrained(sys.argv[1], **kind) for kind in kinds]
    flex, sdpa = (spread_head(model).eval() for model in models)
    lengths = lengths_of(sys.argv[3], generator) if len(sys.argv) > 3 else drawn_lengths(generator)
    collate = MultiScaleCollator(pad_token_id=0, shared_prompts=True)
    for step in range(BATCHES):
        some = pairs(
            (2, 2, 1, 1, 3)[step % 5], lengths, generator
        )  # as where tokens are counted, and at an epoch's end
        prompts, responses = zip(*((pair["chosen_ids"][:2], pair["chosen_ids"][2:]) for pair in some), strict=True)
        packed, plain = collate(some), grouped_inputs([[p["chosen_ids"]] for p in some], [[2]] * len(some), 0)
        for inputs in ({name: packed[name] for name in INPUTS}, plain):
            found, expected = flex(**inputs), sdpa(**inputs)
            worst = max(worst, *(off(found[key].float(), expected[key].float()) for key in expected))
        logits = []
        for policy in policies:
            batch = policy_batch(policy, list(prompts), list(responses), 0, share=True)
            del batch.inputs["shift_labels"]
            logits.append(policy(**batch.inputs).logits.flatten(0, 1)[batch.read][batch.index[batch.index >= 0]])
        worst = max(worst, off(*logits))
    print(json.dumps({"graphs": counters["stats"]["unique_graphs"], "worst": worst}))


if __name__ == "__main__":
    main()
