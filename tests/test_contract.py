"""What the package relies on in other libraries beyond their documented interfaces.

A method of ours that overrides theirs does nothing, silently, once they have renamed theirs; nor does an attribute
that we set for them to read. So every such name stands in `CONTRACT`, with its form and with what relies on it. A test
that fails here names what a new version has changed. The order of their calls is held by test_call_order.py.
"""

import ast
import importlib
import importlib.util
import inspect
import pkgutil
import re
import textwrap
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from transformers import Qwen3Config

import toolkit
from tests.helpers import ROOT
from toolkit.reward.model import MultiScaleMixin, reward_model_class

# Asked for by `getattr`, too, but of ours in a model's configuration, and of the C library.
NOT_OF_LIBRARIES = {"multi_scale", "malloc_trim", "__name__"}
LIBRARIES = ("trl", "transformers", "peft", "accelerate", "datasets", "bitsandbytes", "deepspeed")

# By owner and name: the form, and what relies on it. A form is
#   (self, …)          the parameters of a method that we override or replace, with their kinds
#   takes a, b         parameters that we give to a function by place or name
#   class, property, value
#   it sets, it reads  an attribute that the owner's own source sets for us to read, or reads where we set it
CONTRACT: dict[str, dict[str, tuple[str, str]]] = {
    # ---- TRL: the policy's trainer
    "trl.trainer.base_trainer._BaseTrainer": {
        "_name": ("value", "policy/trainer, reward/trainer: the name of the trainer"),
        "_tag_names": ("value", "training/cards: tags of a card"),
        "create_model_card": ("(self, model_name, dataset_name, tags)", "training/cards: writes ours"),
        "loss_is_scaled_for_ga": ("value", "reward/trainer: the loss of uneven batches is not divided once more"),
    },
    "argparse._ActionsContainer": {
        "_actions": ("it sets and reads", "training/command_line: the options there are"),
        "_negative_number_matcher": ("it sets and reads", "training/command_line: -1e-5 is a number, and no option"),
    },
    "argparse.ArgumentParser": {
        "parse_known_args": ("(self, args, namespace)", "training/command_line: refuses what belongs to no option"),
    },
    "trl.TrlParser": {
        "parse_args_and_config": (
            "(self, args, return_remaining_strings, fail_with_unknown_args, separate_remaining_strings)",
            "training/command_line: looks at names first",
        ),
        "set_defaults_with_config": ("(self, **kwargs)", "training/command_line: looks at values of YAML files first"),
    },
    "trl.ScriptArguments": {"dataset_name": ("value", "arguments, benchmarks: an option with another default")},
    "trl.RLOOConfig": {
        "disable_dropout": ("value", "policy/config: True by default, so that sampling and training have one policy"),
        "num_generations": ("value", "generative/config: follows from the thoughts about a response"),
        "beta": ("value", "generative/config: 0 by default"),
        "chat_template_kwargs": ("value", "generative/turns: kept with a judge"),
        "max_completion_length": ("value", "generative/turns: kept with a judge"),
    },
    "trl.RLOOTrainer": {
        "_calculate_rewards": (
            "(self, inputs, prompts, completions, completion_ids_list)",
            "policy/trainer: keeps the rewards of all processes; benchmarks: time it",
        ),
        "_get_per_token_logps_and_entropies": (
            "(self, model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy, compute_aux_loss, "
            "pixel_values, image_grid_thw, num_images, pixel_attention_mask, spatial_shapes, num_tiles, image_sizes, "
            "token_type_ids, mm_token_type_ids, image_position_ids)",
            "policy/trainer: shared prompts, and keeps what is computed without gradient; benchmarks: time it",
        ),
        "_generate_and_score_completions": ("(self, inputs)", "policy/trainer: puts our advantages into its result"),
        "_compute_loss": ("(self, model, inputs)", "policy/trainer: is ours; benchmarks: time it"),
        "_prepare_inputs": ("(self, generation_batch)", "policy/trainer: brings responses to one prompt together"),
        "_get_train_sampler": ("(self, dataset)", "policy/trainer: keeps the sampler, to draw its later epochs anew"),
        "_save_checkpoint": ("(self, model, trial)", "training/checkpoints: writes the manifest after it"),
        "_generate_single_turn": (
            "(self, prompt_ids, images, multimodal_fields)",
            "policy/trainer: looks at the length of prompts; benchmarks: time it; recipes/experiments/"
            "sample_efficiency: counts its tokens",
        ),
        "_generate": ("(self, prompts)", "generative/trainer: puts the question and the answer after a thought"),
        "num_generations": ("it sets and reads", "generative/trainer: of both responses, and of one while sampling"),
        "num_generations_eval": ("it sets and reads", "generative/trainer: the same"),
        "_tokenize_prompts": ("takes prompts", "policy/trainer: counts the tokens of prompts, to leave out long ones"),
        "vllm_generation": ("it sets and reads", "policy/trainer: keeps what vLLM says of its samples"),
        "_buffered_inputs": ("it sets and reads", "policy/trainer: sorts generations, and saves what is left of them"),
        "_step": ("it sets and reads", "policy/trainer: which of the generations is next, saved with them"),
        "_metrics": ("it sets and reads", "policy/trainer: logs there; training/checkpoints: saves it between logs"),
        "_logs": ("it sets and reads", "policy/trainer: corrects the advantages; training/run_record: shows examples"),
        "_tokenizer": ("it sets and reads", "policy/trainer: the padding of a pass"),
        "_is_vlm": ("it sets and reads", "policy/trainer: refuses policies that take images"),
        "reward_funcs": ("it sets and reads", "policy/trainer: the prefix baseline takes its reward function's place"),
    },
    "trl.generation.vllm_generation.VLLMGeneration": {
        "generate": ("(self, prompts, images, num_generations, profiler)", "policy/vllm: keeps its log-probabilities"),
        "logprobs": ("it sets and reads", "policy/vllm: asks for those of the sampled tokens"),
        "mode": ("it sets and reads", "policy/vllm: a server is asked what it says"),
        "accelerator": ("it sets and reads", "policy/vllm: by the main process"),
        "vllm_client": ("it sets and reads", "policy/vllm: the same"),
    },
    "trl.generation.vllm_client.VLLMClient": {
        "get_server_info": ("(self)", "policy/vllm: whether log-probabilities are those that it samples with"),
    },
    # ---- TRL: the reward model's trainer
    "trl.RewardTrainer": {
        "_prepare_dataset": (
            "(self, dataset, processing_class, args, dataset_name)",
            "reward/trainer: pairs are checked, cut from the left and told where responses begin",
        ),
        "_set_signature_columns_if_needed": ("(self)", "reward/trainer: keeps our columns from being removed"),
        "_signature_columns": ("it sets and reads", "reward/trainer: the same"),
        "compute_loss": ("(self, model, inputs, return_outputs, num_items_in_batch)", "reward/trainer: is ours"),
        "log": ("(self, logs, start_time)", "reward/trainer: adds the figures of all pairs since the last log"),
        "_save_checkpoint": ("(self, model, trial)", "training/checkpoints: writes the manifest after it"),
        "_metrics": ("it sets and reads", "reward/trainer: logs there; training/checkpoints: saves it between logs"),
        "_name": ("value", "reward/trainer: the name on model cards"),
        "_total_train_tokens": ("it sets and reads", "reward/trainer: counts there, and saves it"),
        "_tp_size": ("it sets and reads", "reward/trainer: divides the count of tokens"),
    },
    "trl.trainer.reward_trainer": {
        "DataCollatorForPreference": ("class", "data/batches: the collator is one of them"),
    },
    "trl.trainer.reward_trainer.DataCollatorForPreference": {
        "torch_call": ("(self, examples)", "data/batches: adds where responses begin, and weights"),
    },
    "trl.models": {"prepare_deepspeed": ("takes model, accelerator", "reward/scorer: scores under ZeRO-3")},
    "trl.trainer.utils": {
        "get_config_model_id": ("takes config", "reward/scorer: the tokenizer of a loaded model"),
        "is_async_callable": ("takes func", "policy/setup: what is awaited is not looked at"),
        "add_fused_lm_head": ("takes model", "experiments/architectures: log-probabilities as in training"),
        "selective_log_softmax": ("takes logits, index", "evaluation/scorers: the likelihood of a response"),
    },
    # ---- Transformers: the trainer
    "transformers.Trainer": {
        "train_dataset": ("it sets and reads", "policy/trainer: long prompts are left out"),
        "eval_dataset": ("it sets and reads", "policy/trainer: the same"),
        "train": ("(self, resume_from_checkpoint, trial, ignore_keys_for_eval)", "training/checkpoints: checks first"),
        "_run_epoch": (
            "(self, model, epoch, train_dataloader, steps_in_epoch, num_update_steps_per_epoch, trial, "
            "ignore_keys_for_eval, start_time, resume_from_checkpoint, epochs_trained, "
            "steps_trained_in_current_epoch)",
            "training/checkpoints: a finished run that is resumed takes no step",
        ),
        "_load_from_checkpoint": (
            "(self, resume_from_checkpoint, model)",
            "training/checkpoints: adapters come back in the dtype that they were trained in",
        ),
        "_load_optimizer_and_scheduler": ("(self, checkpoint)", "policy/trainer: draws the order of a later epoch"),
        "_save_rng_state": ("(self, output_dir)", "training/checkpoints: saves our own state"),
        "_load_rng_state": ("(self, checkpoint)", "training/checkpoints: puts our own state back"),
        "_get_output_dir": ("takes trial", "training/checkpoints: finds the folder of a checkpoint"),
        "_save": ("(self, output_dir, state_dict)", "reward/trainer, training/cards: an adapter's settings, the card"),
        "_push_from_checkpoint": ("(self, checkpoint_folder)", "reward/trainer: sends the settings along"),
        "_prepare_inputs": ("(self, inputs)", "reward/trainer: margins and weights stay in float32 under DeepSpeed"),
        "_get_train_sampler": ("(self, train_dataset)", "reward/trainer: rows of like length, and tokens of a batch"),
        "_get_eval_sampler": ("(self, eval_dataset)", "reward/trainer: the longest pairs first"),
        "_get_num_items_in_batch": ("(self, batch_samples, device)", "reward/trainer: a step weighs its pairs alike"),
        "prediction_step": (
            "(self, model, inputs, prediction_loss_only, ignore_keys)",
            "reward/trainer: one row a pair, so that gathering keeps pairs whole",
        ),
        "evaluation_loop": (
            "(self, dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)",
            "reward/trainer: figures that are exact over the whole set",
        ),
        "get_optimizer_cls_and_kwargs": ("takes args, model", "reward/rates: the optimizer of a training"),
        "get_decay_parameter_names": ("takes model", "reward/rates: what weight decay acts on"),
        "compute_metrics": ("it sets and reads", "reward/trainer: gives it pairs in the data set's order"),
        "data_collator": ("it sets and reads", "reward/trainer: puts its own there"),
        "_tr_loss": ("it sets and reads", "training/checkpoints: the loss between two logs"),
        "_globalstep_last_logged": ("it sets and reads", "training/checkpoints: the step that it counts from"),
    },
    "transformers.TrainerCallback": {
        "on_train_begin": (
            "(self, args, state, control, **kwargs)",
            "training/run_record: examples of an earlier run; policy/before_after: answers before",
        ),
        "on_evaluate": ("(self, args, state, control, **kwargs)", "training/signals: saves after an evaluation"),
        "on_save": ("(self, args, state, control, **kwargs)", "training/signals: ends the run after a save"),
        "on_log": ("(self, args, state, control, **kwargs)", "training/run_record: writes examples"),
        "on_train_end": (
            "(self, args, state, control, **kwargs)",
            "reward/warmup: ends the warm-up; policy/before_after",
        ),
        "on_step_begin": ("(self, args, state, control, **kwargs)", "benchmarks: rounds; reward/warmup: goes on"),
        "on_step_end": ("(self, args, state, control, **kwargs)", "benchmarks: rounds; study: the gold curve"),
        "on_pre_optimizer_step": ("(self, args, state, control, **kwargs)", "study: gradients"),
        "on_epoch_begin": ("(self, args, state, control, **kwargs)", "benchmarks: rounds"),
        "on_epoch_end": ("(self, args, state, control, **kwargs)", "benchmarks: rounds"),
    },
    "transformers.trainer_pt_utils": {
        "LengthGroupedSampler": ("class", "data/batches: rows of like length"),
        "BatchRebalanceSampler": ("class", "data/batches: Transformers takes those for samplers of whole batches"),
    },
    "transformers.trainer_pt_utils.LengthGroupedSampler": {
        "generator": ("it sets and reads", "data/batches: the order follows from seed and epoch"),
    },
    "transformers.trainer_pt_utils.BatchRebalanceSampler": {
        "epoch": ("it sets and reads", "data/batches: the order follows from seed and epoch"),
        "seed": ("it sets and reads", "data/batches: the same"),
        "rank": ("it sets and reads", "data/batches: the process whose batches are drawn"),
    },
    "transformers.trainer_utils": {
        "PREFIX_CHECKPOINT_DIR": (
            "value",
            "training/manifests, training/checkpoints, pages/run_files: names of checkpoints",
        ),
        "set_seed": ("takes seed", "study: a new head"),
        "EvalLoopOutput": ("class", "reward/trainer: what an evaluation returns"),
        "EvalPrediction": ("class", "reward/trainer: what `compute_metrics` is given"),
    },
    # ---- Transformers: models
    "transformers.PreTrainedModel": {
        "_init_weights": ("(self, module)", "reward/model: begins the head"),
        "save_pretrained": (
            "(self, save_directory, is_main_process, state_dict, push_to_hub, max_shard_size, variant, token, "
            "save_peft_format, save_original_format, distributed_checkpoint, **kwargs)",
            "reward/model: writes the record, too",
        ),
        "_keep_in_fp32_modules_strict": ("value", "reward/model: the head stays in float32, and out of 4 bits"),
        "_from_config": ("takes config", "planning/plan: a reward model without weights"),
    },
    "transformers.modeling_layers.GenericForSequenceClassification": {
        "forward": (
            "(self, input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, labels, use_cache, "
            "**kwargs)",
            "reward/model: scores at every scale instead",
        ),
        "score": ("it sets and reads", "reward/model: the head takes its place"),
    },
    "transformers.Qwen3ForSequenceClassification": {
        "config_class": ("class", "Transformers' own, on every class of a model"),
    },
    "transformers.MixtralConfig": {
        "output_router_logits": ("value", "policy/passes: no loss of routers where none is read"),
    },
    "transformers.PreTrainedConfig": {
        "_attn_implementation": ("property", "data/packing: the form of a mask; reward/shared_base: that of the base"),
    },
    "transformers.models.auto.auto_factory._BaseAutoModelClass": {
        "_model_mapping": ("value", "reward/model, planning/plan: the class of an architecture"),
    },
    "transformers.generation.utils": {
        "_is_stateful": ("it reads", "data/packing: nothing is shared with such layers")
    },
    "transformers.models.falcon.configuration_falcon": {
        "alibi": ("it sets and reads", "data/packing: nothing is shared where positions are places in the row"),
    },
    "transformers.models.qwen3.configuration_qwen3": {
        "layer_types": ("it sets and reads", "data/packing: nothing is shared with layers of other kinds"),
        "sliding_window": ("it sets and reads", "data/packing: nothing is shared within a window"),
        "use_sliding_window": ("it sets and reads", "data/packing: the same"),
        "head_dim": ("it sets", "planning/plan: size of keys and values"),
        "num_key_value_heads": ("it sets and reads", "planning/plan: the same"),
        "num_hidden_layers": ("it sets and reads", "data/probes: a small copy has few"),
        "num_attention_heads": ("it sets", "data/probes: the same"),
        "max_position_embeddings": ("it sets", "reward/scorer: the longest row"),
        "initializer_range": ("it sets", "reward/model: spread of a new head"),
    },
    "transformers.models.deepseek_v3.configuration_deepseek_v3": {
        "n_group": ("it sets", "data/probes: experts in groups keep their number"),
    },
    "transformers.models.llama.modeling_llama": {
        "rope_type": ("it sets and reads", "data/rotary: which frequencies depend on the length of a row"),
        "original_inv_freq": ("it sets", "data/rotary: puts them back before each row"),
        "max_seq_len_cached": ("it sets", "data/rotary: the same"),
        "original_max_seq_len": ("it sets", "data/rotary: the same"),
    },
    "transformers.models.qwen3.modeling_qwen3": {
        "attention_dropout": ("it sets and reads", "policy/trainer: turned off as a number, too"),
    },
    "transformers.quantizers.base": {"is_quantized": ("it sets and reads", "reward/scorer: nothing to partition")},
    "transformers.modeling_utils": {
        "hf_device_map": ("it reads", "reward/scorer, reward/shared_base: model in parts"),
        "quantization_config": ("it reads", "data/probes: a small copy is not quantised"),
    },
    "transformers.masking_utils": {
        "create_causal_mask": (
            "takes config, inputs_embeds, attention_mask, past_key_values, position_ids, and_mask_function",
            "data/packing: keeps branches apart",
        ),
    },
    "transformers.cache_utils": {"StaticLayer": ("class", "policy/passes: one cache for copies of a prompt")},
    "transformers.cache_utils.StaticLayer": {
        "update": ("(self, key_states, value_states, *args, **kwargs)", "policy/passes: one type under autocast"),
    },
    "transformers.pytorch_utils": {"Conv1D": ("class", "planning/plan: linear layers of GPT-2")},
    "transformers.integrations": {
        "is_deepspeed_zero3_enabled": ("takes", "reward/scorer, reward/shared_base: weights in pieces"),
    },
    "transformers.integrations.deepspeed": {
        "unset_hf_deepspeed_config": ("takes", "judges/closed_loop: a second trainer in one process"),
    },
    "transformers.utils": {
        "ModelOutput": ("class", "reward/model: the output of a reward model"),
        "CONFIG_NAME": ("value", "reward/adapters: the file that every model of the hub has"),
    },
    "transformers.utils.hub": {
        "cached_file": (
            "takes path_or_repo_id, filename",
            "reward/model: whether an adapter has a tokenizer beside it",
        ),
    },
    "transformers.utils.logging": {"get_logger": ("takes name", "data, reward/scorer: warnings")},
    "transformers.quantizers.auto": {
        "AutoQuantizationConfig": ("class", "reward/verification: a 4-bit base as it was when it was saved"),
    },
    "transformers.utils.peft_utils": {
        "find_adapter_config_file": ("takes model_id", "reward/loading, planning/plan: a folder or an adapter"),
    },
    # ---- PEFT
    "peft.LoraConfig": {"target_modules": ("value", "reward/setup: whether a model has those layers")},
    "peft.PeftModel": {
        "save_pretrained": (
            "(self, save_directory, safe_serialization, selected_adapters, save_embedding_layers, is_main_process, "
            "path_initial_model_for_weight_conversion, **kwargs)",
            "reward/shared_base: replaced on a policy, which saves its own adapter alone",
        ),
        "get_base_model": ("takes", "policy/trainer, reward: the model without its adapter"),
        "add_adapter": ("takes adapter_name, peft_config", "reward/shared_base: the reward adapter on the policy"),
    },
    "peft.tuners.tuners_utils.BaseTuner": {
        "set_adapter": ("takes adapter_name, inference_mode", "reward/shared_base: scores, then gives back"),
        "active_adapter": ("it sets", "reward/shared_base: which one to give back"),
    },
    "peft.utils": {"CONFIG_NAME": ("value", "reward/shared_base, adapters: whether a folder is an adapter")},
    # ---- Accelerate, datasets, bitsandbytes, DeepSpeed
    "accelerate.utils": {
        "broadcast_object_list": ("takes object_list", "reward/rates: all processes take the same rate"),
        "parse_flag_from_env": ("takes key", "reward/setup: whether the launcher set up FSDP"),
        "gather": ("takes tensor", "policy/trainer: rewards and divergence of every process"),
        "gather_object": ("takes object", "reward, training, judges: what every process found"),
        "reduce": ("takes tensor, reduction", "policy/reductions, policy/prefix_baseline: sums over every process"),
        "extract_model_from_parallel": ("takes model", "reward/scorer: the model that an engine holds"),
        "DistributedType": ("class", "reward/shared_base: how processes share a model"),
    },
    "accelerate.logging": {"get_logger": ("takes name", "trainers: one warning for all processes")},
    "accelerate.Accelerator": {"backward": ("takes loss", "benchmarks: time it")},
    "datasets.fingerprint": {"Hasher": ("class", "data/preparation: the key of tokenized rows in the cache")},
    "datasets.exceptions": {"DatasetsError": ("class", "data/loading: what cannot be read")},
    "bitsandbytes.nn.modules": {
        "support_avx512bf16_for_cpu": ("it sets and reads", "reward/model: 4-bit weights keep their gradients"),
    },
    "deepspeed.runtime.zero.partition_parameters": {
        "ds_id": ("it sets", "reward/model, reward/scorer: a parameter in pieces"),
    },
}


class Names(NamedTuple):
    """Names of attributes in a piece of source."""

    stored: set[str]  # and defined
    loaded: set[str]


def resolve(owner: str) -> Any:
    """A module, or what it holds, by its dotted name."""
    parts = owner.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            found = getattr(found, part)
        return found
    raise ModuleNotFoundError(owner)


def source_file(module: str) -> Path | None:
    """Source of a module, found without importing it, as some are slow to import or want a GPU."""
    root, _, rest = module.partition(".")
    folder = Path(importlib.util.find_spec(root).origin).parent
    paths = [folder.joinpath(*rest.split(".")).with_suffix(".py"), folder.joinpath(*rest.split("."), "__init__.py")]
    return next((path for path in paths if path.is_file()), None)


def names_in(tree: ast.AST, of_self: bool) -> Names:
    """Attributes that are stored and loaded, those of `self` alone or of anything."""
    stored, loaded = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and (not of_self or ast.unparse(node.value) in ("self", "super()")):
            (loaded if isinstance(node.ctx, ast.Load) else stored).add(node.attr)
        elif isinstance(node, ast.ClassDef):
            stored |= {name for line in node.body for name in defined_by(line)}
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr", "setattr"):
            loaded |= {arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)}
    return Names(stored, loaded)


def defined_by(line: ast.stmt) -> list[str]:
    """Names that a line of a class or a module defines; one with a type alone only declares."""
    if isinstance(line, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [line.name]
    targets = line.targets if isinstance(line, ast.Assign) else []
    targets += [line.target] if isinstance(line, ast.AnnAssign) and line.value else []
    return [target.id for target in targets if isinstance(target, ast.Name)]


@cache
def names_of_class(owner: type) -> Names:
    return names_in(ast.parse(textwrap.dedent(inspect.getsource(owner))), of_self=True)


def is_library(owner: type) -> bool:
    return owner.__module__.split(".")[0] in LIBRARIES


def names_of_libraries(classes: list[type]) -> Names:
    """What the libraries' classes among these define, set and read on themselves."""
    every = [names_of_class(owner) for owner in classes if is_library(owner)]
    return Names(*(set().union(*names) for names in zip(*every, strict=True))) if every else Names(set(), set())


def form_of(value: Any) -> str:
    if inspect.isclass(value):
        return "class"
    if isinstance(value, property):
        return "property"
    return signature_of(value) if callable(value) else "value"


def signature_of(function: Any) -> str:
    """Parameters with their kinds, without defaults and types: `(self, model, *, size, **kwargs)`."""
    marks = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    parts, keyword_only = [], False
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and not keyword_only:
            keyword_only = True
            parts.append("*")
        keyword_only |= parameter.kind is inspect.Parameter.VAR_POSITIONAL
        parts.append(marks.get(parameter.kind, "") + parameter.name)
    return f"({', '.join(parts)})"


def what_has_changed(owner: str, name: str, form: str) -> str | None:
    """What of an entry no longer holds, or `None`."""
    try:
        return _attribute_change(owner, name, form) if form.startswith("it ") else _form_change(owner, name, form)
    except (AttributeError, ModuleNotFoundError):
        return f"{owner} has no `{name}` any more"


def _attribute_change(owner: str, name: str, form: str) -> str | None:
    file = source_file(owner)
    names = names_of_class(resolve(owner)) if file is None else names_in(ast.parse(file.read_text()), of_self=False)
    sides = {"sets": names.stored, "reads": names.loaded}
    lost = [side for side, known in sides.items() if side in form and name not in known]
    return f"{owner} no longer {' and '.join(lost)} `{name}`" if lost else None


def _form_change(owner: str, name: str, form: str) -> str | None:
    holder = resolve(owner)
    if inspect.isclass(holder) and name not in vars(holder):
        return f"{owner} has no `{name}` of its own any more"
    # Modules load what they hold when they are asked, so only of a class is what it holds read without asking.
    value = inspect.getattr_static(holder, name) if inspect.isclass(holder) else getattr(holder, name)
    value = value if isinstance(value, property) else getattr(holder, name)
    if form.startswith("takes"):
        wanted = [parameter for parameter in form.removeprefix("takes").strip().split(", ") if parameter]
        lost = [parameter for parameter in wanted if parameter not in inspect.signature(value).parameters]
        return f"{owner}.{name} no longer takes {lost}; it has {signature_of(value)}" if lost else None
    return None if form_of(value) == form else f"{owner}.{name} was {form} and is {form_of(value)}"


@pytest.mark.parametrize(("owner", "name"), [(owner, name) for owner, names in CONTRACT.items() for name in names])
def test_the_libraries_have_what_is_relied_on(owner, name):
    form, reliance = CONTRACT[owner][name]
    changed = what_has_changed(owner, name, form)
    assert changed is None, f"{changed}. What relies on it: {reliance}"


# ---- nothing is relied on that is not in the table


def our_classes() -> list[type]:
    """Our classes with a library's behind them, a reward model of one architecture included."""
    names = [info.name for info in pkgutil.walk_packages(toolkit.__path__, "toolkit.")]
    found = {
        value for name in names for value in vars(importlib.import_module(name)).values() if inspect.isclass(value)
    }
    ours = [value for value in found if is_ours(value)] + [reward_model_class(Qwen3Config)]
    return sorted((c for c in ours if any(map(is_library, c.__mro__))), key=lambda c: c.__qualname__)


def is_ours(owner: type) -> bool:
    return owner.__module__.startswith("toolkit.")


def in_table(name: str, classes: tuple[type, ...]) -> bool:
    """Whether a name of one of these classes is in the table."""
    return any(
        name in names and source_file(owner) is None and resolve(owner) in classes for owner, names in CONTRACT.items()
    )


@pytest.mark.parametrize("ours", our_classes(), ids=lambda ours: ours.__qualname__)
def test_every_name_that_a_base_has_too_is_in_the_table(ours):
    missing = []
    for place, part in enumerate(ours.__mro__):
        if not is_ours(part) or part.__doc__ == MultiScaleMixin.__doc__ is not part:
            continue
        theirs = names_of_libraries(ours.__mro__[place + 1 :])
        own = names_of_class(part)
        touched = vars(part).keys() | own.stored | {name for name in own.loaded if name.startswith("_")}
        shared = {name for name in touched & (theirs.stored | theirs.loaded) if not name.startswith("__")}
        missing += sorted(f"{part.__qualname__}.{name}" for name in shared if not in_table(name, ours.__mro__))
    assert not missing, f"A base of {ours.__qualname__} has these names, too: put {missing} into CONTRACT"


def parsed_modules() -> list[tuple[str, ast.Module]]:
    paths = sorted((ROOT / "toolkit").rglob("*.py"))
    return [(path.relative_to(ROOT).as_posix(), ast.parse(path.read_text())) for path in paths]


def names_of_ours() -> set[str]:
    """What our own classes and modules define, and what they set on themselves."""
    trees = [tree for _, tree in parsed_modules()]
    names = {name for tree in trees for line in tree.body for name in defined_by(line)}
    return names.union(*(names_in(tree, of_self=True).stored for tree in trees))


def test_every_private_name_of_another_object_is_in_the_table():
    known = names_of_ours() | set(dir(Names)) | NOT_OF_LIBRARIES | {n for names in CONTRACT.values() for n in names}
    missing = []
    for module, tree in parsed_modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.endswith("__"):
                missing += [f"{module}:{node.lineno} {ast.unparse(node)}"] if node.attr not in known else []
            for name in asked_for(node):
                missing += [f"{module}:{node.lineno} {ast.unparse(node)}"] if name not in known else []
    assert not missing, f"Put these names into CONTRACT: {missing}"


def asked_for(node: ast.AST) -> list[str]:
    """Names of attributes whose absence is taken for an answer: it would be the same after a renaming."""
    silent = isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr")
    return [ast.literal_eval(node.args[1])] if silent and isinstance(node.args[1], ast.Constant) else []


def test_every_name_from_inside_a_library_is_in_the_table():
    missing = []
    for module, tree in parsed_modules():
        for node in ast.walk(tree):
            if not isinstance(node, ast.ImportFrom) or node.level or "." not in node.module:
                continue
            if node.module.split(".")[0] in LIBRARIES:
                known = CONTRACT.get(node.module, {})
                missing += [f"{module}: {node.module}.{a.name}" for a in node.names if a.name not in known]
    assert not missing, f"Put these names into CONTRACT: {missing}"


def test_nothing_is_in_the_table_that_is_not_relied_on():
    words = set(re.findall(r"\w+", "".join(path.read_text() for path in (ROOT / "toolkit").rglob("*.py"))))
    assert {name for names in CONTRACT.values() for name in names} <= words
