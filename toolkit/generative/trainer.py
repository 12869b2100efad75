"""A judge that thinks, trained on preference pairs by their likelihood: Dual-Weighted Reinforcement Learning."""

from functools import cached_property, partial
from statistics import fmean
from typing import Any

import torch
from accelerate.utils import gather
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..data.batches import SIDES
from ..data.formats import pairs_of_one_prompt
from ..data.positions import last_kept
from ..policy.reductions import mean_and_std
from ..policy.returns import leave_one_out_baseline, reward_to_go
from ..policy.setup import check_prompts
from ..policy.trainer import ReinforceTrainer
from ..reward.comparisons import compared_loss, comparison_weights, list_loss
from ..reward.losses import pairwise_logistic_loss
from .config import ThoughtConfig
from .turns import JudgeTurns
from .weights import Loss, ThoughtWeights, crossed_weights, likelihood_weights, slopes, utilities, verdict_loss


class ThoughtTrainer(ReinforceTrainer):
    """
    [`ReinforceTrainer`] of a generative judge: it thinks about a response, then says whether it is good, and the
    probability of that answer is trained to rank pairs. https://huggingface.co/papers/2510.15242

    A pair is a group of `2 * num_thoughts` samples, of which the first half judges the chosen response; a ranked list
    has `num_thoughts` about each of its responses. After every
    thought the question and the good answer are put as tokens; the answer is one more action, with a weight of its
    own. Sampling, vLLM, LoRA, ZeRO, shared prompts and exact resume are the parent's.

    Args:
        model, args, kw:
            As of [`ReinforceTrainer`], with a [`ThoughtConfig`], a chat template, and no reward functions.
        train_dataset, eval_dataset ([`~datasets.Dataset`]):
            Pairs in any of TRL's preference formats, with optional columns `margin` and `strength`; or ranked lists.

    Raises:
        `ValueError`: As there; or if pairs are refused, a judge of pairs has a margin, or an answer is not one token.
    """

    _name = "Thought"
    num_generations_eval: int

    def __init__(
        self, model: Any, args: ThoughtConfig, train_dataset: Any, eval_dataset: Any = None, **kw: Any
    ) -> None:
        normalize = partial(_normalized, size=args.list_size)
        train = normalize(train_dataset, "train")
        if isinstance(eval_dataset, dict):
            eval_dataset = {name: normalize(part, name) for name, part in eval_dataset.items()}
        elif eval_dataset is not None:
            eval_dataset = normalize(eval_dataset, "eval")
        if "margin" in train.column_names and args.protocol == "pair":
            raise ValueError(
                "A verdict has no gap to hold a `margin` to. Remove the column, or use `protocol='point'`."
            )
        weighs = args.weight_by_strength and "strength" in train.column_names
        self._mean_strength = fmean(train["strength"][:]) if weighs else None
        self._thought_lengths = torch.empty(0)
        super().__init__(model, self.log_answer, args, train_dataset=train, eval_dataset=eval_dataset, **kw)
        if args.rationale_weight:
            self._check_rationales(train)
        _ = self.turns  # which refuses answers of several tokens

    @cached_property
    def turns(self) -> JudgeTurns:
        """The judge's two turns in its own tokens."""
        return JudgeTurns(self.args, self.processing_class, self.eos_token_ids)

    def log_answer(self, completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
        """Log-probability of the good answer after each thought: what TRL logs as its reward."""
        last = torch.tensor([len(ids) - 1 for ids in completion_ids])
        return self._frozen_logps[0].cpu()[torch.arange(len(last)), last].tolist()

    @property
    def _num_thoughts(self) -> int:
        group = self.num_generations if self.model.training else self.num_generations_eval
        return int(group // self.args.list_size)

    def _places(self, count: int) -> list[tuple[int, int]]:
        """Side and number of each of this process's thoughts, which follow from its place in its group."""
        first, each = self.accelerator.process_index * count, self._num_thoughts
        return [divmod(place % (self.args.list_size * each), each) for place in range(first, first + count)]

    def _first_turn(self, row: dict[str, Any], side: int) -> Any:
        if self.args.list_size > 2:
            return self.turns.first_turn(row["prompt"], row["responses"][min(side, len(row["responses"]) - 1)])
        one, other = (row["chosen"], row["rejected"])[:: -1 if side else 1]
        return self.turns.first_turn(row["prompt"], one, *([other] if self.args.protocol == "pair" else []))

    def _prompt_lengths(self, rows: dict[str, list[Any]]) -> list[int]:
        pairs = [dict(zip(rows, values, strict=True)) for values in zip(*rows.values(), strict=True)]
        both = [[self._first_turn(pair, side) for pair in pairs] for side in range(self.args.list_size)]
        return [max(map(len, ids)) for ids in zip(*(self._tokenize_prompts(side)[0] for side in both), strict=True)]

    def _generate_single_turn(self, prompt_ids: Any, *args: Any, **kwargs: Any) -> Any:
        asked = [[*ids, *self.turns.ending(0, 0).turn, 0] for ids in prompt_ids]  # in both turns, with the answer
        check_prompts(self._decoder, asked, self.args.max_completion_length)
        given, size = (self.num_generations, self.num_generations_eval), self.args.list_size
        # A server of vLLM is sent each prompt once, and takes this for how often each stands there
        self.num_generations, self.num_generations_eval = given[0] // size, given[1] // size
        try:
            return super()._generate_single_turn(prompt_ids, *args, **kwargs)
        finally:
            self.num_generations, self.num_generations_eval = given

    def _generate(self, prompts: list[Any]) -> Any:
        prompt_ids, thoughts, texts = super()._generate(prompts)
        endings = [self.turns.ending(*place) for place in self._places(len(prompts))]
        self._thought_lengths = torch.tensor(list(map(len, thoughts)), device=self.accelerator.device)
        return prompt_ids, list(map(self.turns.complete, thoughts, endings)), texts

    def _get_per_token_logps_and_entropies(  # type: ignore[override]  # which names what is passed on here
        self, model: Any, ids: Tensor, mask: Tensor, width: int, batch_size: int | None = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The parent's, whose pass without gradient is always needed; of an answer among the two, if so wanted."""
        compute, kwargs = super()._get_per_token_logps_and_entropies, {**kwargs, "compute_entropy": True}
        if not self.args.two_answers:
            return compute(model, ids, mask, width, batch_size, **kwargs)
        last, ending, others = last_kept(mask), self.turns.ending(0, 0), ids.clone()
        rows = torch.arange(len(ids), device=last.device)
        others[rows, last] = ending.answer + ending.other - ids[rows, last]
        both = torch.cat([ids, others]), mask.repeat(2, 1)
        logps, entropies, aux_loss = compute(model, *both, width, batch_size and 2 * batch_size, **kwargs)
        mine, its = logps.chunk(2)
        is_answer = torch.arange(ids.size(1) - width, ids.size(1), device=last.device) == last[:, None]
        logps = torch.where(is_answer, mine - torch.logaddexp(mine, its), mine)
        if not torch.is_grad_enabled():
            self._frozen_logps[-1] = logps
        return logps, None if entropies is None else entropies[: len(ids)], aux_loss

    def _thought_mask(self, completions: Tensor) -> Tensor:
        """Tokens `(B, T)` that were sampled, and not put."""
        return torch.arange(completions.size(1), device=completions.device) < self._thought_lengths[:, None]

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        places = self._places(len(inputs))
        rows = [{**row, "prompt": self._first_turn(row, side)} for row, (side, _) in zip(inputs, places, strict=True)]
        output = super()._generate_and_score_completions(rows)
        if self._sampled is not None:  # which says nothing of what was put
            put = output["completion_mask"].bool() & ~self._thought_mask(output["completion_ids"])
            output["sampling_per_token_logps"].masked_fill_(put, torch.nan)
        if not self.model.training:
            self._log_judgements(inputs, self._loss(inputs))
        elif self.args.rationale_weight:
            output |= self._rationales(inputs, places)
        return output

    def _token_advantages(self, inputs: list[dict[str, Any]], output: dict[str, Any], kl: Tensor) -> Tensor:
        """Advantages `(B, T)` of this process's thoughts and answers, so that the loss is the mean over pairs."""
        local = slice(self.accelerator.process_index * len(inputs), (self.accelerator.process_index + 1) * len(inputs))
        loss, metrics = self._loss(inputs), self._metrics["train"]
        self._log_judgements(inputs, loss)
        thoughts, answers = (w[0].numel() * w.flatten()[local] for w in self._weights(loss))
        mask, last = self._thought_mask(kl), last_kept(output["completion_mask"])
        advantages = reward_to_go(thoughts * self.args.train_thoughts, kl, mask, self.beta)
        if self.beta:
            costs = gather(-self.beta * (kl * mask).sum(1))
            advantages = advantages - leave_one_out_baseline(costs, self._num_thoughts)[local][:, None] * mask
            metrics["kl"][-1] = mean_and_std(kl, mask)[0].item()  # TRL's counts what was put, too
        metrics["advantage_std"].append(mean_and_std(advantages, mask)[1].item())
        self._log_advantages(advantages[:, 0])
        advantages[torch.arange(len(last), device=last.device), last] = answers
        return advantages

    @property
    def _log_answers(self) -> Tensor:
        """What was last said of every process's pairs or lists, `(P, K, N)`."""
        return self._rewards[:, 0].view(-1, self.args.list_size, self._num_thoughts)

    def _weights(self, loss: Loss) -> ThoughtWeights:
        return (crossed_weights if self.args.crossed_weights else likelihood_weights)(self._log_answers, loss)

    def _rationale(self, row: dict[str, Any], side: int) -> str | None:
        """The thought that is given about a response, or about both in this order."""
        given = row["rationale"]
        if self.args.protocol == "point" and given is not None:
            given = given[SIDES[side]]
        return given or None

    def _check_rationales(self, pairs: Any) -> None:
        if "rationale" not in pairs.column_names:
            found = f"`rationale_weight` is {self.args.rationale_weight}, and the pairs have no column `rationale`"
            raise ValueError(f"{found}. Add it, or leave the option out.")
        most = int(self.args.max_completion_length or 0)
        for number, row in enumerate(pairs.select_columns("rationale")):
            try:
                given = [self._rationale(row, side) or "" for side in (0, 1)]
                lengths = [len(self.turns.written(text)) for text in given]
            except (TypeError, KeyError, ValueError):
                wanted = "one text" if self.args.protocol == "pair" else "texts under `chosen` and `rejected`"
                raise ValueError(f"Row {number + 1}: `rationale` is {row['rationale']!r}. Write {wanted}.") from None
            if max(lengths) > most:
                found = f"`rationale` has {max(lengths)} tokens, and `max_completion_length` is {most}"
                raise ValueError(f"Row {number + 1}: {found}. Make it shorter, or raise the option.")

    def _rationales(self, inputs: list[dict[str, Any]], places: list[tuple[int, int]]) -> dict[str, Tensor]:
        """
        Token ids `(B, T)` of thoughts that are given, and 1 over their number: one a response, in a row of its own.

        Where there is none the end of a turn stands, and weighs nothing.
        """
        texts = [
            self._rationale(row, side) if thought == 0 else None
            for row, (side, thought) in zip(inputs, places, strict=True)
        ]
        ids = [torch.tensor(self.turns.written(text or "")) for text in texts]
        weights = [torch.full(own.shape, 1 / len(own) if text else 0.0) for own, text in zip(ids, texts, strict=True)]
        found = {"rationale_ids": ids, "rationale_mask": list(map(torch.ones_like, ids)), "rationale_weights": weights}
        return {name: pad_sequence(rows, True).to(self.accelerator.device) for name, rows in found.items()}

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        loss: Tensor = super()._compute_loss(model, inputs)
        if (weights := inputs.get("rationale_weights")) is None:
            return loss
        rows = weights.sum(1).nonzero()[:, 0]
        rows = rows if len(rows) else rows.new_zeros(1)  # under ZeRO-3 every process passes as often
        ids, mask = (
            torch.cat([inputs[f"prompt_{kind}"], inputs[f"rationale_{kind}"]], dim=1)[rows] for kind in ("ids", "mask")
        )
        logps = super()._get_per_token_logps_and_entropies(model, ids, mask, weights.size(1))[0]
        total: Tensor = -(weights[rows] * logps).sum()
        count, said = self.accelerator.reduce(torch.stack([weights.sum(), total.detach()]))
        if count:
            self._metrics["train"]["rationale_loss"].append((said / count).item())
        loss = loss + self.args.rationale_weight * self._num_thoughts * total / len(weights)
        return loss

    def _ranks(self, inputs: list[dict[str, Any]]) -> Tensor:
        """Ranks `(P, K)` of the responses to every process's prompts, -1 in places that a list leaves empty."""
        size = self.args.list_size
        rows = [(row["ranks"] + [-1] * size)[:size] if size > 2 else [0, 1] for row in inputs]
        ranks = torch.as_tensor(gather(torch.tensor(rows, device=self.accelerator.device)))
        return ranks.view(-1, size * self._num_thoughts, size)[:, 0]

    def _loss(self, inputs: list[dict[str, Any]]) -> Loss:
        """Loss of the utilities of every process's pairs or lists."""

        def column(name: str) -> Tensor | None:
            if inputs[0].get(name) is None:
                return None
            values = gather(torch.tensor([row[name] for row in inputs], device=self.accelerator.device))
            return torch.as_tensor(values).float().view(-1, self.args.list_size * self._num_thoughts)[:, 0]

        strength, margin, smoothing = column("strength"), column("margin"), self.args.label_smoothing_factor
        weight = 1.0 if strength is None or self._mean_strength is None else strength / self._mean_strength
        if self.args.list_size > 2:
            ranks = self._ranks(inputs)
            return lambda values: weight * list_loss(values, ranks, label_smoothing=smoothing)
        if self.args.protocol == "pair":
            return lambda values: weight * verdict_loss(values, smoothing)
        return lambda values: weight * pairwise_logistic_loss(values[:, 0], values[:, 1], margin, smoothing)

    def _log_judgements(self, inputs: list[dict[str, Any]], loss: Loss) -> None:
        log_answers, metrics = self._log_answers, self._metrics["train" if self.model.training else "eval"]
        values, omega, shares = utilities(log_answers), log_answers.exp(), log_answers.softmax(-1)
        point, ranks, said = self.args.protocol == "point", self._ranks(inputs), omega.mean(2)
        scores = values if point else (values.exp().sum(1) - 1)[:, None] * torch.tensor([1, 0], device=values.device)
        compared = comparison_weights(ranks)
        found = {
            "pair_loss": loss(values).mean(),
            "accuracy": compared_loss(scores, compared / compared.sum((1, 2), keepdim=True), _right).mean(),
            "pair_weight": slopes(loss, values).abs().sum(1).mean() / 2,
            "thoughts/effective": (1 / shares.square().sum(-1)).mean(),
            "answers/chosen": said[ranks == 0].mean(),
            "answers/rejected": said[ranks > 0].mean(),
            "answers/good": (omega > 0.5).float().mean(),
        }
        if not point:
            found["answers/position_bias"] = found["answers/chosen"] - found["answers/rejected"]
        if self.args.swap_answers:
            bias = (omega[..., ::2] - omega[..., 1::2]).mean((0, 2))  # (sides,), as written less exchanged
            found["answers/letter_bias"] = bias.mean() if point else (bias[0] - bias[1]) / 2
        for name, value in found.items():
            metrics[name].append(value.item())

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        self.args.save_settings(output_dir or self.args.output_dir)


def _normalized(dataset: Any, name: str, size: int) -> Any:
    """Pairs, or whole lists of up to so many responses."""
    rows = pairs_of_one_prompt(dataset, name, "a thinking judge reads", whole_lists=size > 2)
    if size > 2:
        most = max(map(len, rows["responses"])) if "responses" in rows.column_names else 2
        if not 2 < most <= size:
            raise ValueError(
                f"`list_size` is {size}, and '{name}' has at most {most} responses to a prompt. Set it to that."
            )
    return rows


def _right(better: Tensor, worse: Tensor) -> Tensor:
    """1 where the better response has the higher score, ½ where the two are equal."""
    return (better > worse).float() + (better == worse).float() / 2
