"""Every chat template that TRL ships, with tokenizers of the main kinds: does each way of scoring read the row of
training?"""

import re
from collections.abc import Iterator, Sequence
from importlib import resources
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast, Qwen3Config

from ..data.batches import MultiScaleCollator
from ..data.markers import response_marker_ids
from ..data.messages import Messages
from ..data.preparation import tokenize_pairs
from ..data.templates import render
from ..data.tokens import segment_boundary_ids, turn_parts
from ..reward.head import MultiScaleSettings
from ..reward.model import reward_model_class
from ..reward.scorer import RewardFunction

TOKENIZERS = ("byte-level", "SentencePiece, space in front", "SentencePiece, no space", "byte-level, appends EOS")
WAYS = ("text", "sampled ids", "sampled ids, cut off", "without `response_start`")
TOLERANCE = 1e-5  # of a difference, in spreads of the scores

ANSWERS = [
    ("How do I boil an egg?", "Put it into boiling water.\nWait eight minutes, then cool it.", "No idea."),
    ("Why is the sky blue?", "Air scatters blue light most, in all directions.", "It is not; it is black at night!"),
    ("How far is the moon?", "About 384,000 kilometres away.", "Far, far away ... very far."),
    ("Name a river.", "The Amazon", "A river is a natural stream of water - Ärger, naïve, 河."),
]
THOUGHT = "<think>\nLet me see.\n</think>\n\n"
SYSTEM = {"role": "system", "content": "Be brief."}
EARLIER = [{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Hi. What is it?"}]


class Case(NamedTuple):
    """One template with one tokenizer and one form of conversations."""

    template: str
    tokenizer: str
    conversation: str
    differences: dict[str, float]  # of each way of scoring from the trainer's, in spreads of the scores
    refused: dict[str, str]  # why a way, or `every way`, was refused

    @property
    def wrong(self) -> list[str]:
        """Ways that gave another score than in training."""
        return [way for way, difference in self.differences.items() if not difference <= TOLERANCE]


def shipped_templates() -> dict[str, str]:
    """Chat templates in TRL's package by name, but for those of models that take images."""
    folder = resources.files("trl").joinpath("chat_templates")
    files = sorted(file.name for file in folder.iterdir() if file.name.endswith(".jinja"))
    texts = {name.removesuffix(".jinja"): folder.joinpath(name).read_text(encoding="utf-8") for name in files}
    images = re.compile("idefics|llava|smolvlm|_vl(_|$)")
    return {name: text for name, text in texts.items() if not images.search(name)}


def conversations() -> dict[str, Dataset]:
    """Pairs of the forms that templates treat differently."""
    forms: dict[str, tuple[Messages, str]] = {
        "plain": ([], ""),
        "several turns": (EARLIER, ""),
        "system message": ([SYSTEM], ""),
        "thought": ([], THOUGHT),
        "thought and system message": ([SYSTEM, *EARLIER], THOUGHT),
    }

    def pair(before: Messages, thought: str, question: str, good: str, bad: str) -> dict[str, Messages]:
        prompt = [*before, {"role": "user", "content": question}]
        chosen, rejected = ([{"role": "assistant", "content": thought + answer}] for answer in (good, bad))
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected}

    return {name: Dataset.from_list([pair(*form, *row) for row in ANSWERS]) for name, form in forms.items()}


def new_tokenizer(kind: str, template: str) -> PreTrainedTokenizerFast:
    """
    A small tokenizer of a kind that knows the special tokens which a template writes.

    Args:
        kind (`str`):
            One of `TOKENIZERS`.
        template (`str`):
            The chat template.

    Returns:
        [`~transformers.PreTrainedTokenizerFast`]
    """
    special = ["<pad>", "<unk>", "<s>", "</s>"]
    texts = [text for row in ANSWERS for text in row] + ["user\nassistant\n\nsystem\n", THOUGHT]
    if kind.startswith("byte-level"):
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
        scheme = "first" if kind.endswith("in front") else "never"
        # As those of Llama and Gemma, which never join a line break with a word
        lines, words = pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Metaspace(prepend_scheme=scheme)
        backend.pre_tokenizer = pre_tokenizers.Sequence([lines, words])
        parts: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        backend.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)] if scheme == "first" else parts)
        special += [f"<0x{i:02X}>" for i in range(256)]
        alphabet = ["\n"]
    trainer = trainers.BpeTrainer(
        vocab_size=len(special) + len(alphabet) + 200,
        special_tokens=special,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    backend.train_from_iterator(texts * 3, trainer)
    sequence = "$A </s>" if kind.endswith("EOS") else "<s> $A"
    backend.post_processor = processors.TemplateProcessing(single=sequence, special_tokens=[("<s>", 2), ("</s>", 3)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    written = sorted(set(re.findall(r"<[|｜/a-zA-Z_▁0-9]+>|\[/?[A-Z_]+\]", template)))
    marks = [mark for mark in written if mark not in special and "think" not in mark]
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    tokenizer.add_tokens([mark for mark in written if "think" in mark])
    tokenizer.chat_template = template
    return tokenizer


def new_reward_model(tokenizer: PreTrainedTokenizerFast) -> Any:
    """A tiny reward model with random weights, whose scores differ from row to row."""
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        initializer_range=0.2,
        pad_token_id=tokenizer.pad_token_id,
    )
    config.num_labels = 1
    config.multi_scale = vars(MultiScaleSettings())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = reward_model_class(Qwen3Config)(config).eval().double()  # so that only what differs is seen
        for parameter in model.score.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    model.set_layout(response_marker_ids(tokenizer), segment_boundary_ids(tokenizer), conversational=True)
    return model


def examine(template: str, source: str, kinds: Sequence[str] = TOKENIZERS) -> Iterator[Case]:
    """
    Score the same responses in every way, with tokenizers of every kind.

    Args:
        template (`str`):
            Name of the chat template.
        source (`str`):
            Its text.
        kinds (`Sequence[str]`, *optional*, defaults to `TOKENIZERS`):
            Kinds of tokenizers.

    Yields:
        [`Case`]
    """
    for kind in kinds:
        tokenizer = new_tokenizer(kind, source)
        try:
            reward = RewardFunction(new_reward_model(tokenizer), tokenizer)
        except ValueError as error:
            yield Case(template, kind, "every form", {}, {"every way": str(error)})
            continue
        for form, pairs in conversations().items():
            differences, refused = dict[str, float](), dict[str, str]()
            try:
                rows, expected = _as_trained(reward, pairs)
            except ValueError as error:
                yield Case(template, kind, form, {}, {"every way": str(error)})
                continue
            spread = max(float(expected.std()), 1e-12)
            for way in WAYS:
                try:
                    found, wanted = _score(way, reward, pairs, rows, expected)
                    differences[way] = float((found - wanted).abs().max()) / spread
                except ValueError as error:
                    refused[way] = str(error)
            yield Case(template, kind, form, differences, refused)


@torch.no_grad()
def _as_trained(reward: RewardFunction, pairs: Dataset) -> tuple[list[tuple[list[int], int]], torch.Tensor]:
    """Rows of training, all chosen first, each with its response's beginning, and their scores."""
    options = {"max_length": None, "needs_prompt": True, "drop_long": False, "length_column_name": "length"}
    prepared = tokenize_pairs(pairs, "pairs", reward.processing_class, **options)  # type: ignore[arg-type]
    collator = MultiScaleCollator(pad_token_id=reward.processing_class.pad_token_id)
    batch = collator([dict(row) for row in prepared])
    names = ("input_ids", "attention_mask", "response_start")
    scores = reward.model(**{name: batch[name] for name in names}).logits[:, 0]
    sides = ("chosen", "rejected")
    return [(row[f"{side}_ids"], row[f"{side}_start"]) for side in sides for row in prepared], scores


@torch.no_grad()
def _score(
    way: str, reward: RewardFunction, pairs: Dataset, rows: list[tuple[list[int], int]], expected: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores of all responses in one way, and what they should be."""
    tokenizer, model = reward.processing_class, reward.model
    prompts = list(pairs["prompt"]) * 2
    answers = [*pairs["chosen"], *pairs["rejected"]]
    if way == "text":
        return torch.tensor(reward(prompts, answers)), expected
    if way.startswith("without"):
        return torch.cat([model(torch.tensor([ids])).logits[:, 0] for ids, _ in rows]), expected
    sampled, wanted = list[list[int]](), list[torch.Tensor]()
    for prompt, answer, (ids, start) in zip(prompts, answers, rows, strict=True):
        written = _policy_writes(tokenizer, prompt, answer)
        tail = tokenizer(turn_parts(tokenizer, prompt).tail, add_special_tokens=False)["input_ids"]
        whole = len(ids) - len(tail)
        if way == "sampled ids":
            sampled.append([*written, (tail or [tokenizer.eos_token_id])[0]])
            continue
        sampled.append(written)
        row, at = torch.tensor([ids[:whole]]), torch.tensor([start])
        wanted.append(model(row, response_start=at).logits[0, 0])
    decoded = [str(tokenizer.decode(ids, skip_special_tokens=True)) for ids in sampled]
    texts = [[{"role": "assistant", "content": text}] for text in decoded]
    found = torch.tensor(reward(prompts, texts, completion_ids=sampled))
    return found, torch.stack(wanted) if wanted else expected


def _policy_writes(tokenizer: PreTrainedTokenizerBase, prompt: Messages, answer: Messages) -> list[int]:
    """
    Ids with which a policy goes on from its prompt to write the answer as the template writes it, without the end.
    Where a template takes back what it gave the policy, the opening of a thought, the policy closes it.
    """
    opened = render(tokenizer, prompt, add_generation_prompt=True)
    whole = render(tokenizer, [*prompt, *answer])
    tail, said = turn_parts(tokenizer, prompt).tail, answer[0]["content"]
    if not whole.startswith(opened):
        said = said.removeprefix("<think>\n") if "</think>" in said else f"</think>{said}"
    text = whole.removesuffix(tail) if whole.startswith(opened) else opened + said
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    tokens = list(zip(encoding["input_ids"], encoding["offset_mapping"], strict=True))
    spans = [end for _, (start, end) in tokens if start < len(opened) < end]
    # What is left of a token that began in the prompt, which the policy was given
    first = tokenizer(text[len(opened) : max(spans)], add_special_tokens=False)["input_ids"] if spans else []
    return [*first, *(i for i, (start, end) in tokens if start >= len(opened) and end > start)]


def table_of(cases: list[Case]) -> str:
    """
    What was found as a table in Markdown: a line a template, a column a way of scoring.

    Args:
        cases (`list[Case]`):
            What [`examine`] found of each template.

    Returns:
        `str`: In each cell the largest difference from the trainer's scores, in their spreads, over all tokenizers and
        conversations, and for how many of them the way was refused.
    """
    lines = ["| template | " + " | ".join(WAYS) + " | refused because |", "|---" * (len(WAYS) + 2) + "|"]
    for template in dict.fromkeys(case.template for case in cases):
        own = [case for case in cases if case.template == template]
        cells = [_cell(way, own) for way in WAYS]
        refused = [reason for case in own for reason in case.refused.values()]
        reasons = dict.fromkeys(reason.split(". ")[0].removeprefix("Data set 'pairs', row 1: ") for reason in refused)
        lines.append(f"| {template} | " + " | ".join(cells) + f" | {'; '.join(reasons)} |")
    return "\n".join(lines)


def _cell(way: str, cases: list[Case]) -> str:
    found = [case.differences[way] for case in cases if way in case.differences]
    refused = sum(way in case.refused or "every way" in case.refused for case in cases)
    worst = f"{max(found):.0e}" if found else ""
    return worst + (f", {refused} of {len(cases)} refused" if refused else "")
