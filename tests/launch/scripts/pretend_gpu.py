"""
A GPU that is none: tensors that compute on the CPU and say that they are on cuda:0. What CUDA refuses is refused here,
too: an operation on tensors of two devices, and `numpy()`.

To import this changes torch for good, so a process has to be its own. [`Gpu`] is the mode in which `device="cuda"`
makes such tensors. [`waits`] counts where a program would wait for the GPU, by file and line.
"""

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import torch.utils._device
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

CUDA = torch.device("cuda:0")
aten = torch.ops.aten
INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_", "aten::_unsafe_index"}
# What a program waits for the GPU to tell: a number, or how many there are of something
TOLD = {"_local_scalar_dense", "nonzero", "_unique2", "unique_dim", "unique_consecutive", "masked_select", "equal"}
TOLD |= {"repeat_interleave", "bincount"}
PACKAGES = {"toolkit", "trl", "transformers", "accelerate", "peft"}
waits: Counter[str] = Counter()


def waited() -> None:
    """Count a wait at the innermost line of our code or the libraries', but none of the loop that generates tokens."""
    frame, site = sys._getframe(1), None
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.parts[-3:] == ("transformers", "generation", "utils.py"):
            return
        if site is None and (inside := [i for i, part in enumerate(path.parts) if part in PACKAGES]):
            site = f"{'/'.join(path.parts[inside[-1] :])}:{frame.f_lineno}"
        frame = frame.f_back
    waits[site or "elsewhere"] += 1


class OnGpu(torch.Tensor):
    """A tensor on cuda:0 by its own word; its numbers are in `held`, on the CPU. To C++ it is on the CPU."""

    @staticmethod
    def __new__(cls, held, requires_grad=False):
        options = {"dtype": held.dtype, "layout": held.layout, "device": "cpu", "requires_grad": requires_grad}
        options |= {"strides": held.stride(), "storage_offset": held.storage_offset()}
        made = torch.Tensor._make_wrapper_subclass(cls, held.size(), **options)
        made.held = held
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def get_device(self):
        return 0

    def to(self, *args, **kwargs):
        return moved(self, *args, **kwargs)

    def cpu(self):
        return moved(self, "cpu")

    def cuda(self, *args, **kwargs):
        return self

    def tolist(self):
        waited()
        return self.held.tolist()

    def numpy(self, *args, **kwargs):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def __repr__(self):
        return f"OnGpu({self.held})"


def on_cuda(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def held(value: Any) -> Any:
    return value.held if isinstance(value, OnGpu) else value


def on_gpu(value: Any) -> Any:
    return OnGpu(value) if isinstance(value, torch.Tensor) and not isinstance(value, OnGpu) else value


def run(func, args, kwargs):
    """An operation on the numbers, its results where CUDA would have them, or CUDA's refusal."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    any_gpu = any(isinstance(tensor, OnGpu) for tensor in tensors)
    name, device = func._schema.name, kwargs.get("device")
    if any_gpu and (name.removeprefix("aten::") in TOLD or asks_where(name, args)):
        waited()
    # C++ names the device that it sees, in casts, and for all that it makes in a backward pass
    backward = torch._C._current_graph_task_id() != -1
    unclear = backward or func is aten._to_copy.default
    gpu_out = any_gpu if device is None else on_cuda(device) or (any_gpu and unclear)
    if func is not aten.copy_.default and not unclear and any_gpu:
        refuse_a_mix(name, args, tensors)
    if func is aten._fused_sdp_choice.default:
        return 0  # that without a fused kernel
    if device is not None:
        kwargs = {**kwargs, "device": "cpu"}
    out = func(*tree_map(held, args), **tree_map(held, kwargs))
    if func._schema.is_mutable and isinstance(out, torch.Tensor):
        for tensor in tensors:
            if held(tensor) is out:
                return tensor
    return tree_map(on_gpu, out) if gpu_out else out


def asks_where(name: str, args: Any) -> bool:
    """Whether it looks up the places that a mask marks, or copies to the CPU."""
    if name == "aten::copy_":
        return isinstance(args[1], OnGpu) and not isinstance(args[0], OnGpu)
    return name in INDEXING and any(index is not None and index.dtype == torch.bool for index in args[1])


def refuse_a_mix(name: str, args: Any, tensors: list[torch.Tensor]) -> None:
    others = [tensor for tensor in tensors if not isinstance(tensor, OnGpu) and tensor.dim()]
    if name in INDEXING:
        indices = [index for index in args[1] if index is not None]
        if not isinstance(args[0], OnGpu) and any(isinstance(index, OnGpu) for index in indices):
            raise RuntimeError(f"{name}: indices should be on the CPU or on the device of the indexed tensor (cpu)")
        others = [tensor for tensor in others if not any(tensor is index for index in indices)]
    if others:
        kinds = [(type(tensor).__name__, tuple(tensor.shape)) for tensor in tensors]
        raise RuntimeError(f"{name}: expected all tensors to be on the same device, got {kinds}")


class Gpu(TorchDispatchMode):
    """Where `device="cuda"` makes a tensor of the pretended GPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if on_cuda(kwargs.get("device")) or any(isinstance(leaf, OnGpu) for leaf in tree_leaves((args, kwargs))):
            return run(func, args, kwargs)
        return func(*args, **kwargs)


def moved(tensor, *args, **kwargs):
    """`tensor.to`, between the CPU and the pretended GPU."""
    kwargs = {key: value for key, value in kwargs.items() if key not in ("non_blocking", "memory_format")}
    if args and isinstance(args[0], torch.Tensor):
        device, dtype = args[0].device, args[0].dtype
    else:
        copied = {key: value for key, value in kwargs.items() if key != "copy"}
        device, dtype, *_ = torch._C._nn._parse_to(*args, **copied)
    device, dtype, copy = device or tensor.device, dtype or tensor.dtype, kwargs.get("copy", False)
    if not on_cuda(device):
        waited()
        return held(tensor) if isinstance(tensor, OnGpu) and dtype == tensor.dtype else real_to(held(tensor), dtype)
    if isinstance(tensor, OnGpu):
        return tensor if dtype == tensor.dtype and not copy else aten._to_copy(tensor, dtype=dtype)
    return OnGpu(real_to(tensor, dtype))


real_to, real_tensor, real_as_tensor = torch.Tensor.to, torch.tensor, torch.as_tensor


def to(self, *args, **kwargs):
    wanted = [*args, *kwargs.values()]
    cuda = any(isinstance(each, OnGpu) or (isinstance(each, str | torch.device) and on_cuda(each)) for each in wanted)
    return moved(self, *args, **kwargs) if cuda or isinstance(self, OnGpu) else real_to(self, *args, **kwargs)


def made_by(make):
    def make_and_move(*args, device=None, **kwargs):
        if args and isinstance(args[0], OnGpu):
            return to(args[0], **({"device": device} if device else {}), **kwargs)
        return to(make(*args, **kwargs), device) if on_cuda(device) else make(*args, device=device, **kwargs)

    return make_and_move


class Autocast(torch.autocast):
    """Autocast of the pretended GPU, whose operations run on the CPU."""

    def __init__(self, device_type, *args, **kwargs):
        super().__init__("cpu" if device_type == "cuda" else device_type, *args, **kwargs)


def put_on_gpu(model: torch.nn.Module) -> torch.nn.Module:
    """Move a model's parameters and buffers, in place."""
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None and not isinstance(parameter, OnGpu):
                moved_one = torch.nn.Parameter(OnGpu(parameter.data), requires_grad=parameter.requires_grad)
                module._parameters[name] = moved_one
        for name, buffer in list(module._buffers.items()):
            module._buffers[name] = on_gpu(buffer)
    return model


torch.utils._device._device_constructors()  # `with torch.device("meta")` knows them by the functions of its first use
torch.cuda._lazy_init = lambda: None
torch.__future__.set_overwrite_module_params_on_conversion(True)  # `module.to` makes new parameters, of another kind
torch.Tensor.to, torch.tensor, torch.as_tensor = to, made_by(real_tensor), made_by(real_as_tensor)
torch.autocast = Autocast
