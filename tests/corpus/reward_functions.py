"""Reward functions, judges and reward models that return what teaches nothing, or are given what they cannot read."""

from collections.abc import Callable
from typing import Any

from tests.corpus.bench import Bench, in_folder
from tests.corpus.cases import Accepted, Case, Refused
from tests.corpus.data_rows import TALKS, said
from tests.corpus.shop import lengths

PROMPTS = ["What is 3 times 4?"] * 4
ANSWERS = ["Twelve.", "Seven.", "No idea.", "12"]
WRITE = "Return a list with one number, or None, for each response"
NAN, INF = float("nan"), float("inf")


def learn(bench: Bench, returned: Any) -> list[float]:
    """Rewards of a batch in the middle of a training, by a function that returns something."""
    trainer = bench.shop.policy_trainer

    def politeness(completions: list[Any], **columns: Any) -> Any:
        return returned() if callable(returned) else returned

    given = trainer.reward_funcs, trainer.reward_func_names, trainer._step
    trainer.reward_funcs, trainer.reward_func_names, trainer._step = [politeness], ["politeness"], 5
    trainer.model.train()
    try:
        ids = [[1, 2]] * len(PROMPTS)
        rewards = trainer._calculate_rewards([{"prompt": p} for p in PROMPTS], PROMPTS, ANSWERS, ids)
    finally:
        trainer.reward_funcs, trainer.reward_func_names, trainer._step = given
    return [round(reward, 3) for reward in rewards[:, 0].tolist()]


def returns(name: str, returned: Any, expected: Refused | Accepted) -> Case:
    return Case(f"a reward function that returns {name}", lambda bench: learn(bench, returned), expected)


def tensor() -> Any:
    import torch

    return torch.tensor([1.0, 2.0, 3.0, 4.0])


def array() -> Any:
    import numpy as np

    return np.array([1, 2, 3, 4])


def odd(found: str) -> Refused:
    return Refused(f"Reward function 'politeness' returned {found}", WRITE)


RETURNED = [
    returns(
        "an infinite number",
        [1.0, INF, 0.0, 0.0],
        Refused("'politeness' returned inf for response 2 of 4", "Return a finite"),
    ),
    returns(
        "minus infinity",
        [-INF, 1.0, 0.0, 0.0],
        Refused("'politeness' returned -inf for response 1 of 4", "Return a finite"),
    ),
    returns(
        "no number at all",
        [None] * 4,
        Refused("None of the reward functions ['politeness'] has scored", "Return numbers"),
    ),
    returns(
        "NaN alone", [NAN] * 4, Refused("None of the reward functions ['politeness'] has scored", "Return numbers")
    ),
    returns(
        "a number too few", [1.0] * 3, Refused("'politeness' returned 3 rewards, but 4 were expected", "Make sure")
    ),
    returns(
        "a number too many", [1.0] * 5, Refused("'politeness' returned 5 rewards, but 4 were expected", "Make sure")
    ),
    returns("an empty list", [], Refused("'politeness' returned 0 rewards, but 4 were expected", "Make sure")),
    returns("nothing", None, odd("'None'")),
    returns("one number", 1.0, odd("'1.0'")),
    returns("words", ["good", "bad", "bad", "good"], odd("\"['good', 'bad'")),
    returns("numbers as text", ["1", "2", "3", "4"], odd("\"['1', '2'")),
    returns("a list for each", [[1.0], [2.0], [3.0], [4.0]], odd("'[[1.0], [2.0]")),
    returns("objects", [{"score": 1.0}] * 4, odd("\"[{'score': 1.0}")),
    returns("an object by names", {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0}, odd("\"{'a': 1.0")),
    returns("a list that is ragged", [[1.0], [1.0, 2.0], 0.0, 0.0], odd("'[[1.0], [1.0, 2.0]")),
    returns("a tensor", tensor, Accepted(value=[1.0, 2.0, 3.0, 4.0])),
    returns("an array", array, Accepted(value=[1.0, 2.0, 3.0, 4.0])),
    returns("true and false", [True, False, True, True], Accepted(value=[1.0, 0.0, 1.0, 1.0])),
    returns("what it makes one by one", lambda: (float(i) for i in range(4)), Accepted(value=[0.0, 1.0, 2.0, 3.0])),
]


def judged(name: str, scores: Any, expected: Refused | Accepted) -> Case:
    """Pairs that a judge labels."""

    def act(bench: Bench) -> int:
        from toolkit import label_pairs

        def taste(prompts: list[Any], completions: list[Any]) -> Any:
            return scores

        return len(label_pairs(PROMPTS, ANSWERS, [answer + "!" for answer in ANSWERS], taste, seed=0).pairs)

    return Case(f"a judge that returns {name}", act, expected)


NUMBERS = "A judge returns a finite number for each answer"
JUDGED = [
    judged("NaN", [1.0, NAN, 0.0, 0.0], Refused("The judge 'taste' returned nan for answer 2", NUMBERS)),
    judged("None", [1.0, 0.0, None, 0.0], Refused("The judge 'taste' returned nan for answer 3", NUMBERS)),
    judged("infinity", [INF] * 4, Refused("The judge 'taste' returned inf for answer 1", NUMBERS)),
    judged("a score too few", [1.0] * 3, Refused("The judge 'taste' returned 3 scores for 4 answers", NUMBERS)),
    judged("words", ["A", "B", "A", "A"], Refused("The judge 'taste' returned \"['A'", NUMBERS)),
    judged("nothing", None, Refused("The judge 'taste' returned 'None'", NUMBERS)),
    judged("equal scores", [1.0] * 4, Accepted(value=4)),
]


def labelled(name: str, first: list[str], second: list[str], expected: Refused | Accepted) -> Case:
    def act(bench: Bench) -> int:
        from toolkit import label_pairs

        return len(label_pairs(PROMPTS, first, second, lambda prompts, completions: [1.0] * 4, seed=0).pairs)

    return Case(name, act, expected)


ANSWERED = [
    labelled(
        "answers that are all the same",
        ANSWERS,
        ANSWERS,
        Refused("None of 4 prompts got two different answers", "not empty"),
    ),
    labelled(
        "an answer too few",
        ANSWERS,
        ANSWERS[:3],
        Refused("must have one entry a row, got 4, 4 and 3", "Give two answers"),
    ),
    labelled("answers that are empty", ANSWERS, ["", "Twelve", " ", "13"], Accepted(value=2)),
]


def imported(name: str, path: str, found: str, remedy: str, code: str = "") -> Case:
    """The function that a recipe is to import."""

    def act(bench: Bench) -> Any:
        from toolkit.arguments import import_callable

        with in_folder(bench.folder):
            return import_callable(path)

    return Case(
        f"a function to import: {name}", act, Refused(found, remedy), lambda b: b.write("odd_rewards.py", code)
    )


GIVE = "Give `module.name` of a function"
IMPORTED = [
    imported("a name without a module", "politeness", "Cannot import 'politeness'", GIVE),
    imported("nothing", "", "Cannot import ''", GIVE),
    imported("a module that is not there", "no_such_module.f", "No module named 'no_such_module'", GIVE),
    imported("a function that is not there", "toolkit.sandbox.silver_judge", "silver_judge", GIVE),
    imported("a number", "math.pi", "'math.pi' is a float", "not a function"),
    imported("a path", "rewards/politeness.py", "Cannot import 'rewards/politeness.py'", GIVE),
    imported("a module with a slip", "odd_rewards.f", "SyntaxError", GIVE, "def f(:\n"),
    imported("a module that fails", "odd_rewards.f", "ZeroDivisionError, division by zero", GIVE, "1 / 0\n"),
]


def score(bench: Bench, *inputs: Any, form: str = "whole", given: dict[str, Any] | None = None, **columns: Any) -> Any:
    """What the shop's reward model says."""
    from toolkit import RewardFunction

    reward = RewardFunction(str(bench.shop.saved / form), **(given or {}))
    return [None if found is None else "scored" for found in reward(*inputs, **columns)]


def scored(name: str, inputs: tuple[Any, ...], expected: Refused | Accepted, **options: Any) -> Case:
    return Case(f"a reward model: {name}", lambda bench: score(bench, *inputs, **options), expected)


def constructed(name: str, given: dict[str, Any], found: str, remedy: str) -> Case:
    return scored(name, (["a"], ["b"]), Refused(found, remedy), given=given)


ASKED, ANSWERED_BY = [row["prompt"] for row in TALKS[:2]], [row["chosen"] for row in TALKS[:2]]
ONE_A_RESPONSE = "Repeat a prompt for each of its responses"
OF_A_MODEL = [
    scored("an answer too few", (ASKED, ANSWERED_BY[:1]), Refused("one entry a response, got [2, 1]", ONE_A_RESPONSE)),
    scored("one prompt for two answers", (ASKED[:1], ANSWERED_BY), Refused("got [1, 2]", ONE_A_RESPONSE)),
    scored("ids of one answer", (ASKED, ANSWERED_BY, [[3]]), Refused("got [2, 2, 1]", ONE_A_RESPONSE)),
    scored(
        "ids of another text",
        (ASKED, ANSWERED_BY, [[5, 6], [7]]),
        Refused("do not decode to its text", "policy_processing_class"),
    ),
    scored("plain text", (["Why?"], ["So."]), Accepted("each is read as the user's message", ["scored"])),
    scored("an empty answer", (ASKED, [ANSWERED_BY[0], said(("assistant", ""))]), Accepted()),
    scored("no answers", ([], []), Accepted(value=[])),
    scored(
        "an answer beyond its context",
        (ASKED[:1], [said(("assistant", "so " * 999))]),
        Refused("does not fit into `max_length=256`", "Raise"),
    ),
    scored(
        "a prompt beyond its context",
        ([said(("user", "so " * 999))], ANSWERED_BY[:1]),
        Accepted("were shortened from the left", ["scored"]),
    ),
    constructed("batches of 0", {"batch_size": 0}, "`batch_size` is 0", "of at least 1"),
    constructed("batches of 2.5", {"batch_size": 2.5}, "`batch_size` is 2.5", "a whole number"),
    constructed("rows of one token", {"max_length": 1}, "`max_length` is 1", "of at least 2"),
    constructed("a device that is none", {"device": "gpu"}, "`device` is 'gpu'", "Give 'cpu', or 'cuda'"),
    constructed(
        "a type that is none", {"model_init_kwargs": {"dtype": "float31"}}, "`dtype` is 'float31'", "Give 'float32'"
    ),
]


def policy(bench: Bench, funcs: Any, prompts: Any = TALKS, **options: Any) -> Any:
    from datasets import Dataset

    from toolkit import ReinforceTrainer

    data = Dataset.from_list([{"prompt": row["prompt"]} for row in prompts]) if isinstance(prompts, list) else prompts
    kwargs = {name: options.pop(name) for name in ("peft_config",) if name in options}
    model = bench.shop.causal(options.pop("architecture", "qwen3"))
    config = bench.shop.reinforce_config(output_dir=bench.path("run"), **options)
    ReinforceTrainer(
        model,
        funcs(bench) if callable(funcs) and funcs is not lengths else funcs,
        config,
        train_dataset=data,
        **kwargs,
    )
    return True


def begun(name: str, funcs: Any, expected: Refused | Accepted, **options: Any) -> Case:
    return Case(f"a policy's training: {name}", lambda bench: policy(bench, funcs, **options), expected)


def model(bench: Bench) -> Any:
    from toolkit import RewardFunction

    return RewardFunction(str(bench.shop.saved / "whole"))


def two_models(bench: Bench) -> Any:
    return [model(bench), model(bench)]


def shared(form: str) -> Callable[[Bench], Any]:
    def make(bench: Bench) -> Any:
        from toolkit import SharedBaseRewardFunction

        return SharedBaseRewardFunction(str(bench.shop.saved / form))

    return make


OF_A_POLICY = [
    begun("no reward function", [], Refused("`reward_funcs` is empty", "Give at least one reward function")),
    begun(
        "a weight too few",
        [lengths, lengths],
        Refused("Number of reward weights (1) must match", "number of reward functions (2)"),
        reward_weights=[1.0],
    ),
    begun(
        "the prefix baseline without a reward model",
        lengths,
        Refused("prefix", "RewardFunction"),
        prefix_baseline=True,
    ),
    begun("the prefix baseline with two", two_models, Refused("prefix", "RewardFunction"), prefix_baseline=True),
    begun(
        "a shared base of a whole model",
        shared("whole"),
        Refused("is a whole model and not an adapter", "Use RewardFunction"),
    ),
    begun(
        "a shared base of a policy without an adapter",
        shared("adapter"),
        Refused("of which every weight is trained", "Give the trainer a `peft_config`"),
    ),
    begun(
        "rows longer than the model",
        lengths,
        Refused("`max_completion_length=256`", "Lower it"),
        max_completion_length=256,
        architecture="gpt2",
    ),
    begun(
        "prompts that are all too long",
        lengths,
        Refused("more tokens than `max_prompt_length=2`", "the shortest"),
        max_prompt_length=2,
    ),
]
CASES = [*RETURNED, *JUDGED, *ANSWERED, *IMPORTED, *OF_A_MODEL, *OF_A_POLICY]
