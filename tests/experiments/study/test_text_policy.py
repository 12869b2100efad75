"""REINFORCE on real text: no prompt has two roles, figures of a course by hand, and it runs and goes on."""

from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM

from tests.experiments.study.test_decoder import HALVES, write
from toolkit import RewardFunction, SharedBaseRewardFunction
from toolkit.experiments.study.grid import Study
from toolkit.experiments.study.page import write_study_report
from toolkit.experiments.study.text_policy import (
    ARMS,
    PROXY,
    RLOO,
    AsFinished,
    TextPolicyStudy,
    course,
    divergences,
    parts,
    policy_cell,
    policy_name,
    prompts_of,
    reward_name,
    rewards,
    text_policy_stages,
)
from toolkit.experiments.study.text_policy_page import JUDGES, Way, at_divergence, end_table, fallen, way_figures
from toolkit.policy.sampling import Sampled


@pytest.fixture
def settings(tmp_path, tiny_folder, monkeypatch):
    monkeypatch.setattr("toolkit.experiments.study.text_policy.TASKS", [replace(HALVES, name="HH helpful")])
    write(tmp_path, "halves", 310, 1)
    # The rate is 0 in the first step, and the divergence is that before a step
    return replace(TextPolicyStudy.quick(str(tmp_path), tiny_folder("qwen3")), rates=[0.5], steps=3)


def test_no_prompt_has_two_roles(settings):
    pairs, of_role = parts(settings)
    assert set(of_role) == {"gold", "proxy", "policy", "evaluation"}
    clusters = [{pairs.division.clusters[i] for i in numbers} for numbers in of_role.values()]
    assert len(set.union(*clusters)) == sum(map(len, clusters))
    prompts = prompts_of(pairs, of_role["policy"])
    assert len(prompts) == len({prompt[0]["content"] for prompt in prompts}) > 40


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_gold_at_a_divergence_by_hand():
    gold, divergence = numbers(1.0, 3.0, 2.5), numbers(0.0, 2.0, 4.0)
    for level, expected in ((1.0, 2.0), (3.0, 2.75), (0.0, 1.0), (5.0, 2.5)):
        assert at_divergence(divergence, gold, torch.tensor(level)).item() == pytest.approx(expected)


def test_a_fall_is_read_from_the_prompts_that_did_not_choose_the_step():
    gold = numbers([0.0, 0.0], [4.0, 1.0], [1.0, 3.0])  # of two prompts, each with its own luck
    # By the first the step is 1, where the second has 1 and then 3; by the second it is 2, the end of the first
    assert fallen(gold, numbers(0.5, 0.5)).item() == pytest.approx((1 - 3 + 1 - 1) / 2)
    assert fallen(gold, numbers(1.0, 0.0)).item() == 0
    both = numbers([0.0, 0.0], [4.0, 5.0], [1.0, 3.0])
    assert fallen(both, numbers(0.5, 0.5)).item() == pytest.approx((3 + 2) / 2)


def test_figures_of_a_course_by_hand():
    def way(gold, divergence):
        judged = {name: numbers(gold).repeat(2, 1).unsqueeze(-1).repeat(1, 1, 2) for name in JUDGES}
        each = numbers(divergence).repeat(2, 1).unsqueeze(-1).repeat(1, 1, 2)
        return Way(judged, each, numbers([0.0, 5.0, 10.0]).repeat(2, 1))

    ways = {RLOO: way([1.0, 2.0, 3.0], [0.0, 1.0, 2.0]), "other": way([1.0, 4.0, 3.5], [0.0, 2.0, 4.0])}
    found = way_figures(ways, numbers(0.5, 0.5), numbers(0.5, 0.5))
    assert {name: value.item() for name, value in found["other"].items()} == pytest.approx(
        {
            "KL at the end": 4,
            "gold (simple contrast) above RLOO's at equal KL": 1,  # 4 and 3 where both are 2 away from the start
            "gold (multi-scale) above RLOO's at equal KL": 1,
            "thousand tokens to RLOO's end": 5,
            "gold (simple contrast), fallen": 0.5,
            "gold (multi-scale), fallen": 0.5,
        }
    )
    assert found[RLOO]["gold (simple contrast) above RLOO's at equal KL"].item() == 0
    assert found[RLOO]["thousand tokens to RLOO's end"].item() == 10


def test_an_arm_is_at_the_level_that_it_sets_whatever_is_summed_first():
    generator = torch.Generator().manual_seed(3)
    judged = {name: torch.randn(3, 5, 7, generator=generator, dtype=torch.float64).cumsum(1) + 9 for name in JUDGES}
    way = Way(judged, judged[PROXY].cumsum(1), numbers([0.0, 1.0, 2.0, 3.0, 4.0]).repeat(3, 1))
    for _ in range(50):
        weights = [torch.rand(n, generator=generator, dtype=torch.float64) for n in (3, 7)]
        found = way_figures({RLOO: way}, *(each / each.sum() for each in weights))
        assert found[RLOO]["thousand tokens to RLOO's end"].isfinite()


def test_divergence_along_a_response_by_hand(tiny_folder, tokenizer):
    base = AutoModelForCausalLM.from_pretrained(tiny_folder("qwen3"))
    policy = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear"))
    prompt = [{"role": "user", "content": "Who wrote it?"}]
    ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
    response = [*tokenizer("A man wrote it.", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    assert divergences(policy, [Sampled(ids, response)]) == pytest.approx([0], abs=1e-6)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    expected = 0.0
    with torch.no_grad():
        for k in range(len(response)):
            row = torch.tensor([ids + response[:k]])
            own = policy(row).logits[0, -1].log_softmax(-1)
            with policy.disable_adapter():
                start = policy(row).logits[0, -1].log_softmax(-1)
            expected += nn.functional.kl_div(start, own, log_target=True, reduction="sum").item()
    assert expected > 0.01
    assert divergences(policy.train(), [Sampled(ids, response)]) == pytest.approx([expected], rel=1e-4)
    assert divergences(policy, [Sampled(ids, response[-1:])])[0] > 0  # of one that ends at once
    assert policy.training


def test_a_response_that_is_cut_off_is_scored_as_its_text(settings, tmp_path, tokenizer):
    study = Study(tmp_path / "study", settings)
    name = reward_name("proxy", "simple contrast", 1)
    study.keep(next(cell for cell in next(text_policy_stages(study)) if cell.name == name))
    folder = str(study.folder / "models" / name)
    base = AutoModelForCausalLM.from_pretrained(settings.decoder)
    policy = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear"))
    reward = AsFinished(folder)
    reward.attach(policy)
    prompt, texts = [{"role": "user", "content": "Who wrote it?"}], ["A man wrote", "A man wrote it."]
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    ids[1].append(tokenizer.eos_token_id)
    responses = [[{"role": "assistant", "content": text}] for text in texts]
    expected = RewardFunction(folder)([prompt] * 2, responses)
    assert reward([prompt] * 2, responses, ids) == pytest.approx(expected, abs=1e-5)
    cut_off = SharedBaseRewardFunction(folder)
    cut_off.attach(policy)
    assert cut_off([prompt] * 2, responses, ids)[0] != pytest.approx(expected[0], abs=1e-3)


@pytest.mark.training
def test_the_grid_runs_and_its_page_says_what_came_out(settings, tmp_path):
    study = Study(tmp_path / "study", settings)
    for cells in text_policy_stages(study):
        for cell in cells:
            study.keep(cell)
    page = write_study_report(study.folder).read_text()
    for text in (*ARMS, "Responses before and after", "own proxy"):
        assert text in page
    gold = rewards(study, RLOO, "gold, simple contrast")
    assert gold.shape == (2, 4, 4)
    # All begin from the same policy, and answer the same prompts from the same seed
    others = [rewards(study, arm, "gold, simple contrast") for arm in ARMS]
    for other in others:
        torch.testing.assert_close(other[:, 0], gold[:1, 0].expand(2, -1))
        assert not torch.equal(other[:, -1], other[:, 0])
    assert end_table(study)[RLOO]["gold (simple contrast)"].value.value == pytest.approx(
        (gold[:, 3] - gold[:, 0]).mean().item()
    )
    divergence, tokens = course(study, RLOO)
    log = study.result(policy_name(RLOO, 1))["log"]
    lengths = [row["completions/mean_length"] for row in log]
    assert tokens[0].tolist() == pytest.approx([4 * sum(lengths[:t]) / 1e3 for t in range(4)])
    assert divergence.shape == (2, 4, 4)
    assert divergence[:, 0].abs().max() == 0
    assert divergence[0, 3].mean() > 0
    # As a process that was killed leaves it: the checkpoint is there and the cell is not
    for arm in ARMS:
        again = policy_cell(study.folder, settings, arm, 1, 0.5)
        assert again["measured"] == study.result(policy_name(arm, 1))["measured"]
