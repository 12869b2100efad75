from conftest import *
from test_reinforce_trainer import *
def test_dbg(policy_trainer, reinforce_config, tiny_folder, chat_prompts, reward_folder):
        options = {"optim": "sgd", "reward_clip_range": (-1.0, 1.0)}
        ours = policy_trainer(**options); ours.train()
        theirs = RLOOTrainer(tiny_folder(), RewardFunction(reward_folder()), reinforce_config(RLOOConfig, **options), chat_prompts)
        theirs.train()
        for t in (ours, theirs):
            print("DBG", list(t._logs["advantages"])[-4:], list(t._logs["rewards"]["RewardFunction"])[-4:], list(t._logs["completion"])[-4:])
        print("max param diff", max((ours.model.get_parameter(n) - v).abs().max().item() for n, v in theirs.model.named_parameters()))
