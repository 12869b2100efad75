import math
from itertools import combinations_with_replacement, product
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from trl.trainer import rloo_trainer

from tests.generative.conftest import ASKED, WORDS
from tests.helpers import logged
from tests.policy.test_vllm import StandIn
from toolkit.generative.trainer import ThoughtTrainer
from toolkit.generative.turns import JudgeSettings
from toolkit.generative.weights import likelihood_weights, utilities


@pytest.fixture
def judge_trainer(thought_config, tiny_folder, chat_pairs):
    def make(train_dataset=chat_pairs, model=None, eval_dataset=None, peft_config=None, tokenizer=None, **options):
        return ThoughtTrainer(
            model or tiny_folder(),
            thought_config(**options),
            train_dataset,
            eval_dataset,
            peft_config=peft_config,
            processing_class=tokenizer,
        )

    return make


def parameters_of(trainer) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}


def moved(trainer, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, value in trainer.model.named_parameters() if not torch.equal(value, before[name])}


def generate(trainer, pairs: int = 2) -> tuple[list[dict], dict]:
    """Thoughts about so many pairs with their advantages, as a training step would draw them."""
    inputs = [trainer.train_dataset[i // trainer.num_generations] for i in range(pairs * trainer.num_generations)]
    trainer.model.train()
    return inputs, trainer._generate_and_score_completions(inputs)


def rows_of(output: dict) -> list[tuple[list[int], list[int]]]:
    """Prompt and completion of each row without their padding."""
    sides = [(output[f"{side}_ids"], output[f"{side}_mask"].bool()) for side in ("prompt", "completion")]
    return [tuple(ids[i][mask[i]].tolist() for ids, mask in sides) for i in range(len(sides[0][0]))]


def plain_log_probs(model, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """Of every token of a completion, from the logits of the row alone."""
    logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1)[torch.arange(len(completion)), completion]


OPTIONS = {
    "plain": {},
    "with a reference": {"beta": 0.1},
    "crossed": {"crossed_weights": True, "num_thoughts": 4},
    "two answers": {"two_answers": True, "swap_answers": True},
    "frozen thoughts": {"train_thoughts": False, "num_thoughts": 1},
    "pairwise": {"protocol": "pair", "label_smoothing_factor": 0.1},
    "pairwise, exchanged": {"protocol": "pair", "two_answers": True, "swap_answers": True, "beta": 0.1},
    "used twice": {"num_iterations": 2, "beta": 0.1},
    "accumulated": {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_every_way_trains(judge_trainer, options):
    trainer = judge_trainer(**options)
    before = parameters_of(trainer)
    trainer.train()
    assert moved(trainer, before) == set(before)
    keys = ["pair_loss", "accuracy", "pair_weight", "thoughts/effective", "answers/chosen", "answers/good"]
    keys += ["reward", "rewards/log_answer/mean"]
    keys += ["answers/position_bias"] * (options.get("protocol") == "pair")
    keys += ["answers/letter_bias"] * options.get("swap_answers", False) + ["kl"] * bool(options.get("beta"))
    assert len(logged(trainer, "grad_norm")) == 3
    for key in keys:
        assert len(logged(trainer, key)) == 3 if options.get("num_iterations", 1) == 1 else 2, key
        assert all(map(math.isfinite, logged(trainer, key))), key
    # a loss of log 2 would say that the answers were never looked at
    assert all(abs(loss - math.log(2)) > 1e-4 for loss in logged(trainer, "pair_loss"))


def test_a_row_is_what_was_asked_the_thought_the_question_and_the_good_answer(judge_trainer, tokenizer):
    trainer = judge_trainer(swap_answers=True)
    inputs, output = generate(trainer)
    for i, (prompt, completion) in enumerate(rows_of(output)):
        side, thought = divmod(i % 4, 2)
        letters = ("B", "A") if thought else ("A", "B")
        response = inputs[i][("chosen", "rejected")[side]][0]["content"]
        asked, said = tokenizer.decode(prompt), tokenizer.decode(completion)
        assert f"[Response]\n{response}\n\nThink" in asked
        assert f"Answer {letters[0]} for yes or {letters[1]} for no" in said
        assert said.endswith(f"<|im_start|>assistant\n{letters[0]}")
        count = int(trainer._thought_lengths[i])
        end = count - (completion[count - 1] == tokenizer.eos_token_id)
        assert tokenizer.decode(completion[end:]).startswith("<|im_end|>\n<|im_start|>user\nIs the response good?")


def test_answers_are_found_at_the_last_token(judge_trainer):
    trainer = judge_trainer()
    _, output = generate(trainer)
    for (prompt, completion), said in zip(rows_of(output), trainer._log_answers.flatten(), strict=True):
        with torch.no_grad():
            assert plain_log_probs(trainer.model, prompt, completion)[-1] == pytest.approx(said.item(), abs=1e-5)


def test_an_answer_among_the_two_is_its_share_of_both(judge_trainer):
    trainer = judge_trainer(two_answers=True)
    _, output = generate(trainer)
    ending = trainer.turns.ending(0, 0)
    for (prompt, completion), said in zip(rows_of(output), trainer._log_answers.flatten(), strict=True):
        with torch.no_grad():
            logits = trainer.model(torch.tensor([prompt + completion])).logits[0, -2]
        two = logits[[ending.answer, ending.other]].log_softmax(0)
        assert two[0].item() == pytest.approx(said.item(), abs=1e-5)


def gradient_of(trainer, output: dict) -> torch.Tensor:
    gradients = torch.autograd.grad(trainer._compute_loss(trainer.model, output), list(trainer.model.parameters()))
    return torch.cat([gradient.flatten() for gradient in gradients])


@pytest.mark.parametrize("options", [{}, {"two_answers": True}, {"swap_answers": True}, {"protocol": "pair"}], ids=str)
def test_with_frozen_thoughts_the_gradient_is_that_of_the_pair_loss(judge_trainer, options, chat_pairs):
    strength = chat_pairs.add_column("strength", [1.0 + i % 3 for i in range(len(chat_pairs))])
    trainer = judge_trainer(strength, train_thoughts=False, label_smoothing_factor=0.1, **options)
    _, output = generate(trainer)
    found = gradient_of(trainer, output)
    ending, answers = trainer.turns.ending(0, 0), []
    for prompt, completion in rows_of(output):
        logits = trainer.model(torch.tensor([prompt + completion])).logits[0, -2]
        among = [ending.answer, ending.other] if options.get("two_answers") else list(range(len(logits)))
        answers.append(logits[among].log_softmax(0)[among.index(completion[-1])])
    values = utilities(torch.stack(answers).view(2, 2, 2))
    gap = values[:, 0] - values[:, 1]
    losses = -0.9 * torch.nn.functional.logsigmoid(gap) - 0.1 * torch.nn.functional.logsigmoid(-gap)
    if options.get("protocol") == "pair":
        losses = -(0.9 * values + 0.1 * (1 - values.exp()).log()).mean(1)
    loss = (losses * torch.tensor([1.0, 2.0])).mean() / 2  # of strengths whose mean is 2
    expected = torch.autograd.grad(loss, list(trainer.model.parameters()))
    expected = torch.cat([gradient.flatten() for gradient in expected])
    assert (found - expected).norm() < 5e-6 * expected.norm()  # 2.4e-6 with AVX-512
    assert trainer._metrics["train"]["pair_loss"][-1] == pytest.approx(loss.item(), abs=1e-6)


def test_the_loss_of_a_list_is_the_mean_over_its_comparisons(judge_trainer, chat_pairs):
    texts = [*chat_pairs["chosen"][:3], *chat_pairs["rejected"][:2]]
    lists = [{"responses": texts[:3], "ranks": [1, 0, 2]}, {"responses": texts[3:], "ranks": [1, 0]}]
    data = Dataset.from_list([{"prompt": chat_pairs[i]["prompt"], **row} for i, row in enumerate(lists)])
    batch = {"per_device_train_batch_size": 6, "list_size": 3, "label_smoothing_factor": 0.1}
    trainer = judge_trainer(data, eval_dataset=data, per_device_eval_batch_size=6, **batch)
    _, output = generate(trainer)
    answers = trainer._log_answers.clone().requires_grad_()
    first, second = utilities(answers)  # of which the second has judged its last response twice
    gaps = [first[1] - first[0], first[1] - first[2], first[0] - first[2]], [second[1] - second[0]]
    soft = [0.9 * torch.nn.functional.softplus(-torch.stack(g)) for g in gaps]
    losses = [s + 0.1 * torch.nn.functional.softplus(torch.stack(g)) for s, g in zip(soft, gaps, strict=True)]
    loss = (losses[0].mean() + losses[1].mean()) / 2
    assert trainer._metrics["train"]["pair_loss"][-1] == pytest.approx(loss.item(), abs=1e-6)
    right = [(torch.stack(g) > 0).float().mean().item() for g in gaps]
    assert trainer._metrics["train"]["accuracy"][-1] == pytest.approx(sum(right) / 2)
    loss.backward()
    last = torch.arange(12), output["completion_mask"].sum(1) - 1
    found = -output["advantages"][last].view(2, 3, 2) / 12  # the loss is the mean over rows
    torch.testing.assert_close(found, answers.grad)
    assert not found[1, 2].any()
    assert not output["advantages"][10:].any()
    responses = [texts[0], texts[1], texts[2], texts[3], texts[4], texts[4]]
    for i, (prompt, _) in enumerate(rows_of(output)):
        assert responses[i // 2][0]["content"] in trainer.processing_class.decode(prompt)
    before = parameters_of(trainer)
    trainer.train()
    assert moved(trainer, before) == set(before)
    assert 0 <= trainer.evaluate()["eval_accuracy"] <= 1


def enumerated(small_judge, small_tokenizer) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities `(2, 7)` of every thought of one token on either response, and of the good answer after it."""
    log_pi, log_omega = [], []
    for response in ("red", "no"):
        messages = [{"role": "user", "content": f"red {response}"}]
        prompt = small_tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        log_pi.append(small_judge(torch.tensor([prompt])).logits[0, -1].log_softmax(-1))
        after = small_tokenizer("<end> <user> yes no <end> <judge>")["input_ids"]
        rows = [[*prompt, thought, *after[thought == 1 :]] for thought in range(len(WORDS))]
        answers = [small_judge(torch.tensor([row])).logits[0, -1].log_softmax(-1)[WORDS.index("yes")] for row in rows]
        log_omega.append(torch.stack(answers))
    return torch.stack(log_pi), torch.stack(log_omega)


@pytest.mark.parametrize("crossed", [False, True], ids=["plain", "crossed"])
def test_the_expected_gradient_of_the_trainer(judge_trainer, small_judge, small_tokenizer, crossed):
    # Every two thoughts on either response are a pair of the batch, whose strength is their probability; those that
    # differ in order alone are the same
    thoughts = list(combinations_with_replacement(range(len(WORDS)), 2))
    parameters = list(small_judge.parameters())
    log_pi, log_omega = enumerated(small_judge, small_tokenizer)

    def flat(loss):
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters, retain_graph=True)])

    utility = (log_pi + log_omega).logsumexp(1)
    exact = [flat(side) for side in utility]
    draws = torch.tensor([[*a, *b] for a, b in product(thoughts, thoughts)]).view(-1, 2, 2)
    side = torch.arange(2)[:, None]
    orders = 1 + (draws[..., 0] != draws[..., 1]).long()
    chance = log_pi.detach()[side, draws].sum((1, 2)).exp() * orders.prod(1)
    assert chance.sum().item() == pytest.approx(1.0, abs=1e-5)

    row = {"prompt": "red", "chosen": "red", "rejected": "no", "strength": 1.0}
    options = {"num_thoughts": 2, "max_completion_length": 1, **ASKED, "per_device_train_batch_size": 4 * len(draws)}
    pairs = Dataset.from_list([row] * 2)
    trainer = judge_trainer(pairs, small_judge, tokenizer=small_tokenizer, crossed_weights=crossed, **options)
    trainer._shared_prompts = False  # or thousands of thoughts about two responses would lie in two rows
    trainer._generate_single_turn = lambda *_: draws.flatten()[:, None].tolist()
    trainer.model.train()
    inputs = [{**row, "strength": c * len(draws)} for c in chance.tolist() for _ in range(4)]
    found = gradient_of(trainer, trainer._generate_and_score_completions(inputs))

    if crossed:  # a sum of the two sides' true gradients, of which each has its own length
        basis = torch.stack(exact, 1)
        lengths = torch.linalg.lstsq(basis, found[:, None]).solution
        assert lengths[0] < 0 < lengths[1]
        assert (basis @ lengths - found[:, None]).norm() < 1e-5 * found.norm()
        return
    # by hand: w of the pair, each thought's share of it, and for thoughts the share less the other one's
    drawn = log_omega.detach()[side, draws].exp()
    mean = drawn.mean(2)
    weight = mean[:, 1] / mean.sum(1)
    shares = torch.tensor([1.0, -1.0])[:, None] * weight[:, None, None] * drawn / drawn.sum(2, keepdim=True)
    surrogate = shares * log_omega[side, draws] + (shares - shares.flip(2)) * log_pi[side, draws]
    stated = flat(-(chance[:, None, None] * surrogate).sum())
    assert (found - stated).norm() < 2e-6 * stated.norm()
    true = flat(torch.nn.functional.softplus(utility[1] - utility[0]))
    off = (found - true).norm() / true.norm()
    assert 0.01 < off < 0.5  # the bias of two thoughts, which docs/judge.md states


def test_one_empty_thought_is_pair_training_of_a_classifier_of_one_token(judge_trainer, tiny_folder, chat_pairs):
    from transformers import AutoModelForCausalLM

    options = {"optim": "sgd", "learning_rate": 0.5, "max_grad_norm": 1e9, "lr_scheduler_type": "constant"}
    nothing = {"suppress_tokens": list(range(2)) + list(range(3, 400))}  # but the end of the turn
    trainer = judge_trainer(
        num_thoughts=1, train_thoughts=False, shuffle_dataset=False, generation_kwargs=nothing, **options
    )
    model, turns = AutoModelForCausalLM.from_pretrained(tiny_folder()), trainer.turns
    trainer.train()
    losses = []
    for step in range(3):
        values = []
        for pair in chat_pairs.select(range(4 * step, 4 * step + 4)):
            for side in ("chosen", "rejected"):
                asked = turns.first_turn(pair["prompt"], pair[side])
                prompt = trainer.processing_class.apply_chat_template(asked, add_generation_prompt=True)["input_ids"]
                row = torch.tensor([prompt + turns.ending(0, 0).turn])
                values.append(model(row).logits[0, -1].log_softmax(-1)[turns.ending(0, 0).answer])
        chosen, rejected = torch.stack(values).view(4, 2).unbind(1)
        loss = -torch.nn.functional.logsigmoid(chosen - rejected).mean()
        losses.append(loss.item())
        loss.backward()
        for parameter in model.parameters():
            parameter.data -= 0.5 * parameter.grad
            parameter.grad = None
    assert logged(trainer, "completions/max_length") == [1.0] * 3
    assert abs(losses[0] - losses[2]) > 0.01
    assert logged(trainer, "pair_loss") == pytest.approx(losses, abs=1e-5)


def test_divergence_is_that_of_thoughts_alone(judge_trainer):
    trainer = judge_trainer(beta=0.5, num_thoughts=3, per_device_train_batch_size=12)
    torch.manual_seed(0)
    for parameter in trainer.model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    _, output = generate(trainer)
    mask = trainer._thought_mask(output["completion_ids"])
    weights = likelihood_weights(trainer._log_answers, trainer._loss(generate_inputs(trainer)))
    with torch.no_grad():
        kl = torch.zeros(mask.shape)
        for i, row in enumerate(rows_of(output)):
            gap = plain_log_probs(trainer.model, *row) - plain_log_probs(trainer.ref_model, *row)
            kl[i, : len(gap)] = gap
    kl = kl * mask
    assert trainer._metrics["train"]["kl"][-1] == pytest.approx((kl.sum() / mask.sum()).item(), abs=1e-5)
    whole = kl.sum(1).view(-1, 3)
    others = (whole.sum(1, keepdim=True) - whole).flatten() / 2
    for i in range(12):
        count, worth = int(mask[i].sum()), 6 * weights.thoughts.flatten()[i].item()
        for t in range(count):
            expected = worth - 0.5 * kl[i, t:].sum().item() + 0.5 * others[i].item()
            assert output["advantages"][i, t].item() == pytest.approx(expected, abs=1e-4)
        rest = output["advantages"][i, count:]
        assert rest[rest != 0].tolist() == pytest.approx([6 * weights.answers.flatten()[i].item()], abs=1e-5)


def generate_inputs(trainer, pairs: int = 2) -> list[dict]:
    return [trainer.train_dataset[i // trainer.num_generations] for i in range(pairs * trainer.num_generations)]


def test_a_resumed_training_is_the_undisturbed_one_bit_for_bit(judge_trainer):
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 1, "beta": 0.05}
    options |= {"steps_per_generation": 2, "gradient_accumulation_steps": 1}
    whole = judge_trainer(**options)
    whole.train()
    for step in (1, 2):  # in the middle of what was generated, and after it
        resumed = judge_trainer(**options)
        resumed.train(resume_from_checkpoint=str(Path(whole.args.output_dir, f"checkpoint-{step}")))
        for name, value in whole.model.named_parameters():
            assert torch.equal(resumed.model.get_parameter(name), value)
        assert logged(resumed, "pair_loss")[-2:] == logged(whole, "pair_loss")[-2:]


def test_lora_trains_its_adapter_alone_and_keeps_how_to_ask(judge_trainer):
    lora = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"])
    trainer = judge_trainer(peft_config=lora, beta=0.1, learning_rate=1e-2, chat_template_kwargs='{"plain": true}')
    before = parameters_of(trainer)
    trainer.train()
    assert moved(trainer, before) == {name for name in before if "lora_" in name}
    assert logged(trainer, "kl")[0] == pytest.approx(0.0, abs=1e-6)
    trainer.save_model()
    kept = JudgeSettings.load(trainer.args.output_dir)
    assert {name: getattr(trainer.args, name) for name in vars(kept)} == vars(kept)
    assert kept.chat_template_kwargs == {"plain": True}


@pytest.mark.parametrize("protocol", ["point", "pair"])
def test_held_out_pairs_are_evaluated(judge_trainer, chat_pairs, protocol):
    trainer = judge_trainer(eval_dataset=chat_pairs.select(range(4)), protocol=protocol)
    metrics = trainer.evaluate()
    assert metrics["eval_pair_loss"] > 0
    assert 0 <= metrics["eval_accuracy"] <= 1
    assert trainer._metrics["train"] == {}


def test_vllm_samples_thoughts_and_says_nothing_of_what_is_put(judge_trainer, monkeypatch):
    monkeypatch.setattr(rloo_trainer, "VLLMGeneration", type("StandIn", (StandIn,), {"off": 0.1}))
    trainer = judge_trainer(use_vllm=True)
    asked, generation = [], trainer.vllm_generation
    once = generation.generate
    generation.generate = lambda **options: (asked.append(options["num_generations"]), once(**options))[1]
    _, output = generate(trainer)
    assert asked == [2]  # so many thoughts about a response, and two responses a pair
    assert trainer.num_generations == 4
    said = output["sampling_per_token_logps"]
    thought = trainer._thought_mask(said)
    assert (said[thought] < 0).all()
    assert said[output["completion_mask"].bool() & ~thought].isnan().all()
    trainer.train()
    assert logged(trainer, "sampling/sampling_logp_difference/mean")[0] == pytest.approx(0.08, rel=0.5)


# What is refused, or named


def test_one_thought_cannot_be_trained(thought_config):
    for options in ({}, {"train_thoughts": False, "crossed_weights": True}):
        with pytest.raises(ValueError, match="With `num_thoughts=1` a thought has no other to be compared with"):
            thought_config(num_thoughts=1, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"judge_template": "{prompt} is it good?"},
            r"`judge_template` needs the places {prompt}, {response}, and has {prompt}",
        ),
        ({"question": "Good or not?"}, r"`question` needs the places {yes}, {no}, and has none"),
        ({"question": "{yes} {no} {maybe}"}, r"needs the places {yes}, {no}, and has {maybe}, {no}, {yes}"),
        ({"question": "{yes} {no"}, "`question` cannot be filled in"),
        ({"answers": ["A", "A"]}, "Give two that differ"),
        ({"protocol": "list"}, "`protocol` is 'list'"),
        ({"swap_answers": True, "num_thoughts": 3, "per_device_train_batch_size": 6}, "Make `num_thoughts` even"),
        ({"num_generations_eval": 6, "swap_answers": True, "per_device_eval_batch_size": 6}, "a multiple of 4"),
        ({"num_generations": 8}, "`num_generations` is 8, and a group has 4 thoughts"),
        (
            {"list_size": 3, "protocol": "pair", "per_device_train_batch_size": 6},
            "`list_size` is 3, and `protocol='pair'`",
        ),
        ({"rationale_weight": 0.1, "list_size": 3, "per_device_train_batch_size": 6}, "goes with pairs"),
        ({"normalize_rewards": True}, "`normalize_rewards=True` does not apply"),
        ({"mask_truncated_completions": True}, "`mask_truncated_completions=True` does not apply"),
        ({"beta": 0.1, "train_thoughts": False}, "`beta` is 0.1, and thoughts that are not trained do not depart"),
    ],
    ids=str,
)
def test_options_that_would_do_nothing_are_refused(thought_config, options, message):
    with pytest.raises(ValueError, match=message):
        thought_config(**options)


def test_what_the_model_or_the_pairs_do_not_allow_is_refused(judge_trainer, chat_pairs, tiny_folder):
    with pytest.raises(ValueError, match="'very good' is not one token where the answer begins"):
        judge_trainer(answers=["very good", "B"])
    margins = chat_pairs.add_column("margin", [1.0] * len(chat_pairs))
    with pytest.raises(ValueError, match="no gap to hold a `margin` to"):
        judge_trainer(margins, protocol="pair")
    with pytest.raises(ValueError, match="`list_size` is 4, and 'train' has at most 2 responses to a prompt"):
        judge_trainer(list_size=4)
    with pytest.raises(ValueError, match=r"`max_completion_length=100` are more than 256, and GPT2LMHeadModel has"):
        judge_trainer(model=tiny_folder("gpt2"), max_completion_length=100).train()
    with pytest.raises(ValueError, match="Every prompt has more tokens than `max_prompt_length=10`"):
        judge_trainer(max_prompt_length=10)


def test_a_thought_that_is_cut_off_is_ended_and_counted(judge_trainer, tokenizer):
    trainer = judge_trainer(max_completion_length=3, generation_kwargs={"suppress_tokens": [tokenizer.eos_token_id]})
    _, output = generate(trainer)
    assert trainer._metrics["train"]["completions/clipped_ratio"] == [1.0]
    assert trainer._thought_lengths.tolist() == [3] * 8
    assert [completion[3] for _, completion in rows_of(output)] == [tokenizer.eos_token_id] * 8


def test_a_judge_that_always_says_yes_is_named(judge_trainer, small_judge, small_tokenizer):
    # the answer's logit is raised by far for whatever it is asked
    pairs = Dataset.from_list([{"prompt": "red", "chosen": "red", "rejected": "no"}] * 4)
    trainer = judge_trainer(pairs, small_judge, tokenizer=small_tokenizer, **ASKED)
    trainer._get_per_token_logps_and_entropies = says_yes(trainer)
    generate(trainer)
    metrics = trainer._metrics["train"]
    assert metrics["answers/good"] == [1.0]
    assert metrics["accuracy"] == [0.5]
    assert metrics["answers/chosen"] == metrics["answers/rejected"] == [pytest.approx(0.99)]


def says_yes(trainer):
    def logps(model, input_ids, attention_mask, logits_to_keep, *args, **kwargs):
        found = torch.full((len(input_ids), logits_to_keep), math.log(0.99))
        trainer._frozen_logps.append(found)
        return found, None, None

    return logps


# Thoughts that are given


def with_rationales(chat_pairs, protocol="point"):
    """Every second pair has one of its preferred response alone."""
    texts = [None if i % 2 else f"It names {i} of them." for i in range(len(chat_pairs))]
    given = texts if protocol == "pair" else [{"chosen": text, "rejected": None} for text in texts]
    return chat_pairs.add_column("rationale", given)


@pytest.mark.parametrize("options", [{}, {"protocol": "pair"}, {"two_answers": True}], ids=str)
def test_a_given_thought_costs_its_mean_nats(judge_trainer, chat_pairs, options):
    pairs = with_rationales(chat_pairs, options.get("protocol"))
    options = {**options, "max_completion_length": 20}
    with_them, without = judge_trainer(pairs, rationale_weight=0.3, **options), judge_trainer(pairs, **options)
    tokenizer = with_them.processing_class
    (_, output), (_, same) = (torch.manual_seed(0) and generate(trainer) for trainer in (with_them, without))
    found = gradient_of(with_them, output)
    for name in ("completion_ids", "advantages"):
        assert torch.equal(same[name], output[name])
    costs = []  # by hand, of the first pair's: of two pairs with two responses each, or with two orders
    sides = 2 if options.get("protocol") == "pair" else 1
    for side in range(sides):
        asked = with_them._first_turn(pairs[0], side)
        prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True)["input_ids"]
        ids = [*tokenizer("It names 0 of them.")["input_ids"], tokenizer.eos_token_id]
        costs.append(-plain_log_probs(with_them.model, prompt, ids).mean())
    assert with_them._metrics["train"]["rationale_loss"] == pytest.approx([sum(costs).item() / sides], abs=1e-5)
    expected = torch.autograd.grad(0.3 * sum(costs) / 4, list(with_them.model.parameters()))
    expected = torch.cat([gradient.flatten() for gradient in expected]) + gradient_of(without, same)
    assert (found - expected).norm() < 1e-5 * expected.norm()


def test_given_thoughts_are_learnt(judge_trainer, chat_pairs):
    pairs = with_rationales(chat_pairs)
    trainer = judge_trainer(pairs, rationale_weight=1.0, max_steps=12, learning_rate=3e-3, max_completion_length=20)
    trainer.train()
    losses = logged(trainer, "rationale_loss")
    assert losses[-1] < losses[0] - 0.5


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        (None, {}, "`rationale_weight` is 1.0, and the pairs have no column `rationale`"),
        ("Because.", {}, r"Row 1: `rationale` is 'Because\.'\. Write texts under `chosen` and `rejected`"),
        ({"chosen": "a", "rejected": "b"}, {"protocol": "pair"}, r"Row 1: .* Write one text"),
        ({"chosen": "word " * 40, "rejected": "b"}, {}, r"Row 1: `rationale` has \d+ tokens"),
    ],
    ids=str,
)
def test_given_thoughts_that_cannot_be_read_are_refused(judge_trainer, chat_pairs, given, options, message):
    pairs = chat_pairs if given is None else chat_pairs.add_column("rationale", [given] * len(chat_pairs))
    with pytest.raises(ValueError, match=message):
        judge_trainer(pairs, rationale_weight=1.0, **options)
