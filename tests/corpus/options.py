"""Options of recipes and configurations: out of range, misspelt, of the wrong type, or at odds with each other."""

from typing import Any

from tests.corpus.bench import ON_A_CPU, Bench
from tests.corpus.cases import Accepted, Case, Refused

RUNS = ("train_reward", "train_reinforce", "pretrain_decoder")


def words(recipe: str, line: str, found: str, remedy: str) -> Case:
    """A command line that is refused before a model is loaded."""

    def act(bench: Bench) -> Any:
        given = [*ON_A_CPU, "--output_dir", bench.path("run")] if recipe in RUNS else []
        return bench.recipe(recipe, *given, *line.split())

    return Case(f"{recipe} {line}", act, Refused(found, remedy))


def reward(line: str, found: str, remedy: str) -> Case:
    return words("train_reward", line, found, remedy)


def policy(line: str, found: str, remedy: str) -> Case:
    return words("train_reinforce", line, found, remedy)


def numbers(recipe: str, *found: tuple[str, str, str]) -> list[Case]:
    """Names of options with a number that they cannot have, and what they can have."""
    return [words(recipe, f"--{name} {value}", f"`{name}` is {shown(value)}", wanted) for name, value, wanted in found]


def shown(value: str) -> str:
    """As a message has it, which may write it as a fraction."""
    return value.rstrip("0").rstrip(".") if "." in value else value


COUNT = "It must be a whole number of at least 1"
AT_LEAST_0 = "It must be a finite number of at least 0"
ABOVE_0 = "It must be a finite number above 0"
SHARE = "It must lie between 0 and 1"
OF_REWARD = numbers(
    "train_reward",
    ("learning_rate", "-1e-05", AT_LEAST_0),
    ("learning_rate", "nan", AT_LEAST_0),
    ("scale_loss_weight", "-0.1", AT_LEAST_0),
    ("coarse_warmup", "1.5", SHARE),
    ("label_smoothing_factor", "0.7", "It must lie between 0 and 0.5"),
    ("center_rewards_coefficient", "inf", AT_LEAST_0),
    ("max_length", "-1", COUNT),
    ("num_hidden_layers", "-2", COUNT),
    ("per_device_train_batch_size", "0", COUNT),
    ("per_device_eval_batch_size", "0", COUNT),
    ("gradient_accumulation_steps", "0", COUNT),
    ("num_train_epochs", "0", ABOVE_0),
    ("num_train_epochs", "nan", ABOVE_0),
    ("max_steps", "0", COUNT),
    ("max_steps", "-5", COUNT),
    ("warmup_steps", "-1", AT_LEAST_0),
    ("weight_decay", "-0.01", AT_LEAST_0),
    ("weight_decay", "nan", AT_LEAST_0),
    ("adam_beta1", "2", SHARE),
    ("adam_beta2", "-1", SHARE),
    ("adam_epsilon", "-1", AT_LEAST_0),
    ("max_grad_norm", "-1", AT_LEAST_0),
    ("seed", "-1", "It must lie between 0 and 4.29"),
    ("data_seed", "-1", "It must lie between 0 and"),
    ("logging_steps", "-5", ABOVE_0),
    ("save_steps", "0", ABOVE_0),
    ("save_total_limit", "-1", AT_LEAST_0),
    ("dataloader_num_workers", "-1", AT_LEAST_0),
    ("dataset_num_proc", "0", COUNT),
    ("max_tokens_per_batch", "0", COUNT),
    ("pad_to_multiple_of", "0", COUNT),
    ("eval_accumulation_steps", "0", COUNT),
    ("train_size", "-4", COUNT),
    ("eval_size", "-1", "It must be a whole number of at least 0"),
)
OF_POLICY = numbers(
    "train_reinforce",
    ("beta", "-1", AT_LEAST_0),
    ("beta", "nan", AT_LEAST_0),
    ("temperature", "0", ABOVE_0),
    ("temperature", "nan", ABOVE_0),
    ("top_p", "0", ABOVE_0),
    ("top_k", "-5", AT_LEAST_0),
    ("min_p", "2", SHARE),
    ("repetition_penalty", "-1", ABOVE_0),
    ("num_generations", "0", COUNT),
    ("max_completion_length", "0", COUNT),
    ("epsilon", "nan", AT_LEAST_0),
    ("num_iterations", "0", COUNT),
    ("steps_per_generation", "0", COUNT),
    ("moving_average_decay", "2", SHARE),
    ("prefix_penalty", "-1", AT_LEAST_0),
    ("prefix_decay", "inf", SHARE),
    ("max_prompt_length", "0", COUNT),
    ("vllm_importance_sampling_clip_max", "0.5", "of at least 1"),
    ("reward_weights", "nan", "It must be a finite number"),
    ("reward_batch_size", "-1", COUNT),
    ("learning_rate", "-1", AT_LEAST_0),
    ("gradient_accumulation_steps", "-2", COUNT),
)
OF_OTHERS = [
    *numbers(
        "train_jointly", ("rounds", "0", COUNT), ("pairs_per_round", "-1", COUNT), ("max_new_tokens", "0", COUNT)
    ),
    *numbers("evaluate_reward", ("batch_size", "0", COUNT), ("max_length", "1", "of at least 2")),
    *numbers("pretrain_decoder", ("layers", "0", COUNT), ("vocab_size", "-1", COUNT)),
]
DID_YOU_MEAN = [
    reward("--learning_rat 1", "There is no option `--learning_rat`", "Did you mean `--learning_rate`?"),
    reward("--lr 1e-5", "There is no option `--lr`", "Did you mean `--lr"),
    reward("--trainsize 3", "There is no option `--trainsize`", "Did you mean `--train_size`?"),
    reward("--model gpt2", "There is no option `--model`", "Did you mean `--model"),
    reward("--zzz", "There is no option `--zzz`", "`--help` lists all"),
    reward("-- 3", "There is no option `--`", "`--help` lists all"),
    policy("--baselin none", "There is no option `--baselin`", "Did you mean `--baseline`?"),
    policy("--max_tokens_per_batch 9", "There is no option `--max_tokens_per_batch`", "`--help` lists all"),
    words("train_jointly", "--round 3", "There is no option `--round`", "Did you mean `--rounds`?"),
    words("evaluate_reward", "--model x", "There is no option `--model`", "Did you mean `--models`?"),
    reward("--scales token phrase", "`scales` is ['token', 'phrase']", "Name one or more of ['token', 'segment'"),
    reward("--scales token token", "`scales` is ['token', 'token']", "each once"),
    reward("--context gat", "`context` is 'gat'", "Use one of ['none', 'gate', 'head']"),
    reward("--loss_type listwise", "`loss_type` is 'listwise'", "Use one of ['pairwise', 'pointwise', "),
    reward("--lr_scheduler_type cosin", "lr_scheduler_type…'cosin'", "choose from 'linear', 'cosine'"),
    reward("--optim adamw", "optim: invalid choice: 'adamw'", "Did you mean 'adamw_"),
    reward("--optim lbfgs", "optim: invalid choice: 'lbfgs'", "`--help` lists all"),
    reward("--eval_strategy step", "eval_strategy…'step'", "choose from 'no', 'steps', 'epoch'"),
    reward("--dtype flaot32", "dtype: invalid choice: 'flaot32'", "choose from 'auto', 'bfloat16'"),
    policy("--baseline leave-one-out", "`baseline` is 'leave-one-out'", "Use one of ['none', 'batch_mean'"),
    policy(
        "--vllm_importance_sampling_mode mask",
        "`vllm_importance_sampling_mode` is 'mask'",
        "Use one of ['sequence_truncate'",
    ),
]
TYPES = [
    reward("--learning_rate fast", "learning_rate", "invalid float value: 'fast'"),
    reward("--learning_rate 1e-5e", "learning_rate", "invalid float value: '1e-5e'"),
    reward("--num_train_epochs 1,5", "num_train_epochs", "invalid float value: '1,5'"),
    reward("--max_length 12.5", "max_length", "invalid int value: '12.5'"),
    reward("--shared_prompts maybe", "shared_prompts", "expected one of yes/no, true/false"),
    reward("--learning_rate", "learning_rate", "expected one argument"),
    reward("pairs.jsonl", "`pairs.jsonl` belongs to no option", "Name the option before it"),
    reward("--dataset_name a.jsonl b.jsonl", "`b.jsonl` belongs to no option", "Name the option before it"),
    reward(
        "--lr_scheduler_kwargs {min_lr:1}", "`--lr_scheduler_kwargs` is '{min_lr:1}', which is no JSON", "Write an"
    ),
    policy("--generation_kwargs {", "`--generation_kwargs` is '{', which is no JSON", "Write an object"),
    policy("--num_generations 2.5", "num_generations", "invalid int value: '2.5'"),
    policy("--reward_clip_range 1", "`reward_clip_range` is ['1']", "Give two numbers, the lower one first"),
    policy("--reward_funcs", "reward_funcs", "expected at least one argument"),
    reward("--deepspeed nothing.json", "Expected a string path to an existing deepspeed config", "nothing.json"),
    reward("--config", "`--config` has no file after it", "Name a YAML file"),
    reward("--config nothing.yaml", "No such file", "nothing.yaml"),
]
AT_ODDS = [
    reward("--scales token --context gate", "`context='gate'` weighs scales, but there is only", "Use 'none' or"),
    reward("--scales token segment --context head", "`context='head'` conditions the response", "Add 'response'"),
    reward("--learning_rates 1e-3", "`learning_rates` are compared on a frozen decoder", "Set `freeze_decoder`"),
    reward("--batch_eval_metrics", "`batch_eval_metrics=True` leaves no table of all pairs", "Leave it out"),
    reward("--eval_do_concat_batches false", "`eval_do_concat_batches=False` leaves no table", "Leave it out"),
    reward("--layers 2", "`layers` are compared with `learning_rates`", "Give those, too"),
    reward("--layers 0 --learning_rates 1e-3 --freeze_decoder", "`layers` is 0", COUNT),
    reward(
        "--layers 2 --num_hidden_layers 2 --learning_rates 1e-3 --freeze_decoder",
        "`layers` are tried in place of `num_hidden_layers`",
        "Leave one of the two out",
    ),
    reward("--fp16 true --bf16 true", "At most one of fp16 and bf16 can be True", "not both"),
    reward("--load_in_4bit --load_in_8bit", "You can't use 8 bit and 4 bit precision", "at the same time"),
    reward("--load_best_model_at_end", "--load_best_model_at_end requires the save and eval", "to match"),
    policy("--num_generations 1", "`baseline='leave_one_out'` needs other responses", "Set `num_generations` to 2"),
    policy("--num_generations 3", "generation_batch_size (8)", "must be divisible by num_generations (3)"),
    policy("--generation_batch_size 7", "generation_batch_size (7)", "must be divisible by the global batch size (8)"),
]


def yaml(name: str, text: str, found: str, remedy: str) -> Case:
    """A YAML file of a reward model's training."""
    return Case(
        f"YAML: {name}",
        lambda bench: bench.recipe("train_reward", *ON_A_CPU, "--config", bench.path("run.yaml")),
        Refused(found, remedy),
        lambda bench: bench.write("run.yaml", text),
    )


FILES = [
    yaml(
        "a name misspelt",
        "learningrate: 1",
        "no option `learningrate` in the YAML file",
        "Did you mean `learning_rate`",
    ),
    yaml("a list for a number", "max_length: [3]", "`max_length` in the YAML file is [3]", "Give a whole number"),
    yaml("a fraction for a count", "train_size: 2.5", "`train_size` in the YAML file is 2.5", "Give a whole number"),
    yaml("true for a number", "learning_rate: true", "`learning_rate` in the YAML file is True", "Give a number"),
    yaml("a number for a switch", "freeze_decoder: 3", "`freeze_decoder` in the YAML file is 3", "Give true or false"),
    yaml("text for a count", "train_size: many", "train_size", "invalid int value: 'many'"),
    yaml(
        "an object in a list of numbers",
        "learning_rates: [0.1, {a: 1}]",
        "`learning_rates` in the YAML file",
        "Give a number",
    ),
    yaml("a number out of range", "adam_beta1: 1.5", "`adam_beta1` is 1.5", SHARE),
    yaml("a list", "- learning_rate", "must contain", "a YAML mapping"),
    yaml("nothing", "", "must contain", "a YAML mapping"),
    yaml("a bracket that is not closed", "scales: [token", "while parsing", "expected"),
    yaml("a tab", "seed: 1\n\tmax_length: 3", "while scanning", "line 2"),
    yaml("one name for a list", "scales: tokens", "`scales` is", "Name one or more of"),
    yaml("JSON Lines", '{"seed": 1}\n{"seed": 2}\n', "expected", "line 2"),
]


def configured(kind: str, options: dict[str, Any], found: str, remedy: str) -> Case:
    """A configuration made in Python."""
    return Case(
        f"Python: {options}",
        lambda bench: getattr(bench.shop, f"{kind}_config")(**options),
        Refused(found, remedy),
    )


IN_PYTHON = [
    configured("reward", {"learning_rate": "1e-5"}, "`learning_rate` is '1e-5'", AT_LEAST_0),
    configured("reward", {"max_length": True}, "`max_length` is True", COUNT),
    configured("reward", {"scales": []}, "`scales` is []", "Name one or more of"),
    configured("reward", {"scales": "token"}, "`scales` is", "Name one or more of"),
    configured(
        "reward", {"learning_rates": [], "freeze_decoder": True}, "`learning_rates` is empty", "Give one or more"
    ),
    configured(
        "reward",
        {"learning_rates": [0.1, None], "freeze_decoder": True},
        "`learning_rates` is [0.1, None]",
        "It must hold numbers alone",
    ),
    configured("reward", {"per_device_train_batch_size": 2.5}, "`per_device_train_batch_size` is 2.5", COUNT),
    configured("reinforce", {"reward_clip_range": (1, -1)}, "`reward_clip_range` is [1, -1]", "the lower one first"),
    configured("reinforce", {"reward_clip_range": (float("nan"), 1)}, "`reward_clip_range` is [nan, 1]", "Give two"),
    configured(
        "reinforce", {"reward_weights": [1, None]}, "`reward_weights` is [1, None]", "It must hold numbers alone"
    ),
    configured("reinforce", {"temperature": "hot"}, "`temperature` is 'hot'", ABOVE_0),
]
RIGHT = [
    Case(
        f"{recipe} {line}",
        lambda bench, recipe=recipe, line=line: bool(bench.recipe(recipe, *ON_A_CPU, *line.split())),
        Accepted(value=True),
    )
    for recipe, line in (
        ("train_reward", "--learning_rate 0 --warmup_steps 0.1 --max_steps -1 --logging_steps 0.5"),
        ("train_reward", "--eval_strategy no --eval_steps 0 --save_strategy no --save_steps 0"),
        ("train_reward", "--learning-rate 1e-5 --per-device-train-batch-size=2"),
        ("train_reinforce", "--num_generations 1 --baseline moving_average"),
        ("train_reinforce", "--top_k 0 --temperature 0.01 --beta 0"),
    )
]
CASES = [*OF_REWARD, *OF_POLICY, *OF_OTHERS, *DID_YOU_MEAN, *TYPES, *AT_ODDS, *FILES, *IN_PYTHON, *RIGHT]
