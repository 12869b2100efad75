"""REINFORCE on what a stand-in for TRL's vLLM generation samples. vLLM itself needs a GPU and is not run here."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from trl.trainer import rloo_trainer

from tests.helpers import logged
from toolkit import ReinforceTrainer, RewardFunction


class StandIn:
    """
    Takes the place of [`trl.generation.vllm_generation.VLLMGeneration`]: the same arguments and results, and samples
    of the trainer's own model with every token's logit a little off, always in the same way.
    """

    off, logprobs_mode, silent = 0.0, "processed_logprobs", False

    def __init__(self, model, accelerator, processing_class, mode, logprobs, max_completion_length, **options):
        self.model, self.accelerator, self.mode, self.logprobs = model, accelerator, mode, logprobs
        self.end, self.length, self.syncs = processing_class.eos_token_id, max_completion_length, 0
        self.generator = torch.Generator().manual_seed(0)
        vocabulary = model.get_output_embeddings().weight.size(0)
        self.errors = self.off * torch.randn(vocabulary, generator=torch.Generator().manual_seed(1))
        info = {"model_config": {"logprobs_mode": self.logprobs_mode}}
        self.vllm_client = SimpleNamespace(get_server_info=lambda: info)

    def sync_weights(self):
        self.syncs += 1

    def log_probs(self, ids: list[int]) -> torch.Tensor:
        with torch.no_grad():
            logits = self.model(torch.tensor([ids])).logits[0].float()
        return (logits + self.errors).log_softmax(-1)

    def generate(self, prompts, images, num_generations, profiler=None):
        responses, said = [], []
        for prompt in prompts:
            ids, values = [], []
            while len(ids) < self.length and self.end not in ids:
                last = self.log_probs(prompt + ids)[-1]
                ids.append(last.exp().multinomial(1, generator=self.generator).item())
                values.append([None if self.silent else last[ids[-1]].item()])
            responses.append(ids)
            said.append(values)
        return prompts, responses, None if self.logprobs is None else said, None


@pytest.fixture
def trainer_on(monkeypatch, reinforce_config, tiny_folder, chat_pairs):
    """A trainer on a stand-in with these attributes."""

    def make(
        off: float = 0.0,
        logprobs_mode: str = "processed_logprobs",
        silent: bool = False,
        reward_funcs=None,
        **options,
    ):
        attributes = {"off": off, "logprobs_mode": logprobs_mode, "silent": silent}
        monkeypatch.setattr(rloo_trainer, "VLLMGeneration", type("StandIn", (StandIn,), attributes))

        def lengths(completions, **kwargs):
            return [float(len(completion[0]["content"])) for completion in completions]

        config = reinforce_config(use_vllm=True, **options)
        prompts = chat_pairs.select_columns(["prompt"])
        return ReinforceTrainer(tiny_folder(), reward_funcs or lengths, config, train_dataset=prompts)

    return make


def parameters_of(trainer) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}


@pytest.mark.parametrize("mode", ["sequence_truncate", "token_truncate"])
@pytest.mark.parametrize("options", [{}, {"num_iterations": 2, "beta": 0.05}], ids=["on-policy", "off-policy"])
def test_a_sampler_that_is_off_trains_and_is_measured(trainer_on, mode, options):
    trainer = trainer_on(0.1, vllm_importance_sampling_mode=mode, learning_rate=1e-5, **options)
    before = parameters_of(trainer)
    trainer.train()
    assert all(not torch.equal(value, before[name]) for name, value in trainer.model.named_parameters())
    assert all(map(math.isfinite, logged(trainer, "grad_norm")))
    # A normal error of 0.1 in each logit: |error| is 0.08 on the mean
    differences = logged(trainer, "sampling/sampling_logp_difference/mean")
    assert sum(differences) / len(differences) == pytest.approx(0.08, rel=0.3)
    assert 0 < logged(trainer, "sampling/importance_sampling_ratio/max")[0] <= 3
    assert trainer.vllm_generation.logprobs == 0


def test_the_log_probabilities_are_those_of_the_sampled_tokens(trainer_on):
    trainer = trainer_on(0.3)
    trainer.model.train()
    output = trainer._generate_and_score_completions([trainer.train_dataset[i // 2] for i in range(4)])
    said, mask = output["sampling_per_token_logps"], output["completion_mask"].bool()
    for i in range(4):
        prompt = output["prompt_ids"][i][output["prompt_mask"][i].bool()].tolist()
        response = output["completion_ids"][i][mask[i]].tolist()
        rows = trainer.vllm_generation.log_probs(prompt + response)[len(prompt) - 1 : -1]
        expected = rows[torch.arange(len(response)), response]
        torch.testing.assert_close(said[i][mask[i]], expected)
    assert not said[~mask].any()


def test_the_gradient_is_that_of_weighted_advantages(trainer_on):
    trainer = trainer_on(0.3, beta=0.0, vllm_importance_sampling_clip_max=1.1)
    trainer.model.train()
    inputs = trainer._generate_and_score_completions([trainer.train_dataset[i // 2] for i in range(4)])
    parameters = list(trainer.model.parameters())
    found = torch.autograd.grad(trainer._compute_loss(trainer.model, inputs), parameters)
    mask = inputs["completion_mask"]
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    whole = torch.cat([inputs["prompt_mask"], mask], 1)
    logps, _, _ = trainer._get_per_token_logps_and_entropies(trainer.model, ids, whole, mask.size(1))
    log_ratio = ((logps.detach() - inputs["sampling_per_token_logps"]) * mask).sum(1)
    weights = log_ratio.exp().clamp(max=1.1)
    assert len(weights.unique()) > 1
    loss = -((weights[:, None] * inputs["advantages"] * logps * mask).sum(1)).mean()
    for value, expected in zip(found, torch.autograd.grad(loss, parameters), strict=True):
        torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("case", [{"off": 0.0}, {"off": 0.3, "silent": True}], ids=["exact", "says nothing"])
def test_where_nothing_is_off_nothing_changes(trainer_on, case):
    trained = []
    for correction in (True, False):
        trainer = trainer_on(**case, vllm_importance_sampling_correction=correction, optim="sgd", learning_rate=0.1)
        trainer.train()
        trained.append(parameters_of(trainer))
        differences = logged(trainer, "sampling/sampling_logp_difference/max")
        assert max(differences, default=0.0) < 1e-5
        assert len(differences) == 3 * correction
        assert trainer.vllm_generation.logprobs == (0 if correction else None)
    for name, value in trained[0].items():
        torch.testing.assert_close(value, trained[1][name], rtol=1e-5, atol=1e-6)


def test_generations_of_vllm_get_the_same_credit(trainer_on, reward_folder):
    options = {"max_steps": 4, "num_generations": 1, "baseline": "moving_average", "prefix_baseline": True}
    options |= {"normalize_rewards": True, "beta": 0.05, "reward_funcs": RewardFunction(reward_folder())}
    trainer = trainer_on(0.1, save_strategy="steps", save_steps=2, **options)
    trainer.train()
    assert trainer.vllm_generation.syncs == 4
    assert all(map(math.isfinite, logged(trainer, "prefix/explained")))
    resumed = trainer_on(0.1, **options)
    resumed.train(resume_from_checkpoint=str(Path(trainer.args.output_dir, "checkpoint-2")))
    # the checkpoint's weights are sent before the first generation after it
    assert resumed.vllm_generation.syncs == 2
    assert len(logged(resumed, "reward")) == 4


def test_generations_of_a_run_without_correction_are_not_gone_on_with(trainer_on, caplog):
    options = {"max_steps": 3, "steps_per_generation": 4, "gradient_accumulation_steps": 1}
    without = trainer_on(
        0.1, vllm_importance_sampling_correction=False, save_strategy="steps", save_steps=2, **options
    )
    without.train()
    resumed = trainer_on(0.1, **options)
    resumed.train(resume_from_checkpoint=str(Path(without.args.output_dir, "checkpoint-2")))
    assert "lack what vLLM says of its samples: new ones" in caplog.text
    assert len(logged(resumed, "sampling/sampling_logp_difference/mean")) == 1


def test_vllm_without_log_probabilities_stops_the_run(trainer_on):
    trainer = trainer_on()
    trainer.vllm_generation.logprobs = None
    with pytest.raises(
        ValueError, match=r"vLLM gave no log-probabilities .*`vllm_importance_sampling_correction=False`"
    ):
        trainer.train()


def test_a_server_that_says_raw_log_probabilities_is_refused(trainer_on):
    with pytest.raises(ValueError, match="Start it with `--logprobs-mode processed_logprobs`"):
        trainer_on(logprobs_mode="raw_logprobs", vllm_mode="server")
    trainer_on(vllm_mode="server")
    trainer_on(logprobs_mode="raw_logprobs", vllm_mode="server", vllm_importance_sampling_correction=False)
