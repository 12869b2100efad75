"""What training steps hold at their most, by PyTorch's own count, beside what `prefscale plan` says."""

import weakref
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakIdKeyDictionary
from trl.trainer.utils import add_fused_lm_head

from ...planning.plan import Run


class HeldBytes(TorchDispatchMode):
    """
    Counts the storages that operations within it make and let go, real or fake: torch's own `MemTracker` does so for
    every module apart, in time that grows with their square, and refuses frozen weights.

    Attributes:
        peak (`int`):
            Most bytes that were held at once.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.held = self.peak = 0
        self._known = WeakIdKeyDictionary()

    def count(self, tensor: Tensor) -> Tensor:
        """Count a tensor's storage, once, until it goes."""
        storage = tensor.untyped_storage()
        if storage not in self._known:
            self._known[storage] = size = storage.nbytes()
            self.held += size
            self.peak = max(self.peak, self.held)
            weakref.finalize(storage, self._let_go, size)
        return tensor

    def _let_go(self, size: int) -> None:
        self.held -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return tree_map_only(Tensor, self.count, func(*args, **kwargs or {}))


class Peaks(NamedTuple):
    """Most bytes that are held at once, weights included."""

    forward: int
    backward: int
    step: int


def training_peaks(model: Any, run: Run, device: str) -> Peaks:
    """
    What a step of AdamW holds on rows at their full length, in one process without DeepSpeed.

    It is a later one, and gradients of an earlier pass are there, as with accumulation.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Reward model or, where `run` has a `completion_length`, policy, on `device`. Its tensors may be fake
            (`torch._subclasses.FakeTensorMode`): then nothing is held, and what would be is counted. It is changed.
        run ([`~toolkit.planning.plan.Run`]):
            How it is trained. Sampling is not part of it, nor are other models.
        device (`str`):
            'cuda', whose allocator is asked, or 'cpu', where [`HeldBytes`] counts.

    Returns:
        [`Peaks`]
    """
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    ids = torch.full((run.rows, run.length), 5, device=device)
    inputs: dict[str, Any] = {"input_ids": ids, "use_cache": False}
    if run.completion_length:
        add_fused_lm_head(base)
        labels = ids.clone()
        labels[:, : -run.completion_length] = -100
        inputs |= {"shift_labels": labels, "fused_lm_head": True}
    else:
        # With positions rows have a mask, which is the most that they may take
        inputs["position_ids"] = torch.arange(run.length, device=device).expand(run.rows, -1)
        inputs["response_start"] = torch.full((run.rows,), run.length // 2, device=device)
    if run.gradient_checkpointing:
        base.activation_checkpointing_enable()
    if isinstance(model, PeftModel):
        base.enable_input_require_grads()
    optimizer = torch.optim.AdamW([p for p in model.train().parameters() if p.requires_grad], fused=True)
    held = HeldBytes()
    for tensor in [*model.parameters(), *model.buffers()]:
        held.count(tensor)
    with nullcontext() if device == "cuda" else held:
        _pass(model, inputs, optimizer, run.bf16, device, held)
        return _pass(model, inputs, optimizer, run.bf16, device, held)


def _pass(model: Any, inputs: Any, optimizer: Any, bf16: bool, device: str, held: HeldBytes) -> Peaks:
    peaks = []

    def ends() -> None:
        peaks.append(torch.cuda.max_memory_allocated() if device == "cuda" else held.peak)
        held.peak = held.held
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()

    ends()
    with torch.autocast(device, torch.bfloat16, enabled=bf16):
        output = model(**inputs)
    ends()
    (output.log_probs if "fused_lm_head" in inputs else output.logits).mean().backward()
    ends()
    optimizer.step()
    ends()
    return Peaks(*peaks[1:])
