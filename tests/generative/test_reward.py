import math

import pytest
import torch
from peft import LoraConfig

from toolkit import ReinforceTrainer, label_pairs
from toolkit.generative.reward import ThoughtPairJudge, ThoughtReward
from toolkit.generative.trainer import ThoughtTrainer
from toolkit.generative.turns import JudgeSettings


@pytest.fixture
def judge_folder(thought_config, tiny_folder, chat_pairs):
    """Folder of a judge that was trained for a step."""

    def make(peft_config=None, **options) -> str:
        config = thought_config(max_steps=1, learning_rate=1e-2, **options)
        trainer = ThoughtTrainer(tiny_folder(), config, chat_pairs, peft_config=peft_config)
        trainer.train()
        trainer.save_model()
        return config.output_dir

    return make


def rows(pairs, side: str) -> tuple[list, list]:
    return list(pairs["prompt"]), list(pairs[side])


@pytest.mark.parametrize("two_answers", [False, True], ids=["vocabulary", "two answers"])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_what_it_says_is_the_mean_answer_after_its_thoughts(judge_folder, chat_pairs, lora, two_answers):
    adapter = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"]) if lora else None
    reward = ThoughtReward(judge_folder(adapter, two_answers=two_answers), num_thoughts=3, batch_size=4)
    prompts, responses = rows(chat_pairs.select(range(3)), "chosen")
    found, tokenizer = reward.judge(prompts, responses), reward.processing_class
    assert reward(prompts, responses) == [judgement.utility for judgement in found]
    turns, seen = reward._turns, []
    ending = turns.ending(0, 0)
    think = reward._turns.complete
    turns.complete = lambda thought, ending: (seen.append(thought), think(thought, ending))[1]
    assert reward.judge(prompts, responses) == found  # whatever was asked before
    for i, judgement in enumerate(found):
        asked = turns.first_turn(prompts[i], responses[i])
        prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True)["input_ids"]
        for k, answer in enumerate(judgement.answers):
            thought = seen[3 * i + k]
            assert tokenizer.decode(thought, skip_special_tokens=True) == judgement.thoughts[k]
            with torch.no_grad():
                logits = reward.model(torch.tensor([prompt + think(thought, ending)[:-1]])).logits[0, -1]
            among = logits[[ending.answer, ending.other]] if two_answers else logits
            assert math.log(answer) == pytest.approx((logits[ending.answer] - among.logsumexp(0)).item(), abs=1e-4)
        assert judgement.utility == pytest.approx(math.log(sum(judgement.answers) / 3), abs=1e-5)


def test_it_answers_after_given_thoughts(judge_folder, chat_pairs):
    judge, thoughts = ThoughtReward(judge_folder(), num_thoughts=3, batch_size=2), ["Good.", "No, it is not.", ""]
    prompts, responses = rows(chat_pairs.select(range(3)), "chosen")
    found, tokenizer, turns = judge.judge(prompts, responses, thoughts=thoughts), judge.processing_class, judge._turns
    for i, judgement in enumerate(found):
        asked = turns.first_turn(prompts[i], responses[i])
        prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True)["input_ids"]
        row = [*prompt, *tokenizer(thoughts[i])["input_ids"], *turns.ending(0, 0).turn]
        with torch.no_grad():
            said = judge.model(torch.tensor([row])).logits[0, -1].log_softmax(0)[turns.ending(0, 0).answer]
        assert judgement.thoughts == [thoughts[i]]
        assert judgement.utility == pytest.approx(said.item(), abs=1e-5)


def test_it_rewards_a_policy_and_shows_its_thoughts(judge_folder, reinforce_config, tiny_folder, chat_pairs):
    reward = ThoughtReward(judge_folder())
    prompts = chat_pairs.select_columns(["prompt"])
    trainer = ReinforceTrainer(tiny_folder(), reward, reinforce_config(max_steps=2), train_dataset=prompts)
    trainer.train()
    assert all(entry["rewards/ThoughtReward/mean"] < 0 for entry in trainer.state.log_history[:2])
    assert len(trainer._logs["extra"]["thought"]) == len(trainer._logs["completion"])


def test_both_protocols_label_pairs(judge_folder, chat_pairs):
    prompts, first = rows(chat_pairs.select(range(6)), "chosen")
    _, second = rows(chat_pairs.select(range(6)), "rejected")
    pointwise = label_pairs(prompts, first, second, ThoughtReward(judge_folder()), seed=0)
    assert len(pointwise.pairs) == 6
    assert pointwise.pairs.column_names == ["prompt", "chosen", "rejected", "strength"]
    judge = ThoughtPairJudge(judge_folder(protocol="pair"))
    verdicts = judge.compare(prompts, first, second)
    assert all(0 < verdict.p_first < 1 for verdict in verdicts)
    labelled = label_pairs(prompts, first, second, judge, seed=0)
    again = judge.compare(prompts, second, first)
    biases = [one.p_first + other.p_first - 1 for one, other in zip(verdicts, again, strict=True)]
    assert labelled.pairs["position_bias"][:] == pytest.approx(biases)
    assert all(labelled.pairs["contested"][:])  # untrained, it gives either letter less than a half in any order


def test_a_folder_that_holds_no_such_judge_is_refused(judge_folder, tiny_folder):
    with pytest.raises(ValueError, match=r"There is no '.*judge.json', by which a judge is asked"):
        ThoughtReward(tiny_folder())
    with pytest.raises(ValueError, match="ThoughtPairJudge is for `protocol='pair'`, not 'point'"):
        ThoughtPairJudge(judge_folder())


@pytest.mark.parametrize(
    ("text", "message"), [("{", "is damaged, no JSON"), ('{"protocol": "point"}', "other settings")]
)
def test_damaged_settings_are_named(tmp_path, text, message):
    (tmp_path / "judge.json").write_text(text)
    with pytest.raises(ValueError, match=f"judge.json' .*{message}"):
        JudgeSettings.load(str(tmp_path))
