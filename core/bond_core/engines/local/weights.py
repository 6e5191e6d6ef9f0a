"""The weights of policy versions: one module, whose parameters point where a version says.

A version is the reference with some parameters replaced by merged ones (W + scaling * B A), so a
switch of versions costs one pointer per replaced parameter and decoding costs what the reference's
does.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from bond_core.errors import AdapterError


@dataclass(frozen=True, slots=True, eq=False)
class PolicyWeights:
    """A version's replacements for the reference's parameters, by parameter name.

    Compared by identity: republishing a name makes new weights, and rows that run on the old ones
    keep them alive until they end.
    """

    version: str
    tensors: Mapping[str, Tensor]


class SwitchableModel:
    """A causal language model and the version that its parameters point at now.

    Only the decode thread may call `use` and `module`.
    """

    def __init__(self, module: PreTrainedModel) -> None:
        self.module = module
        self._parameters = dict(module.named_parameters())
        self._reference = {name: parameter.data for name, parameter in self._parameters.items()}
        self._replaced: Mapping[str, Tensor] = {}

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(iter(self._reference.values())).device

    @property
    def dtype(self) -> torch.dtype:
        """The parameters' type, which is that of activations and masks."""
        return self.module.dtype

    @property
    def vocab_size(self) -> int:
        """Number of logits per token."""
        return self.module.config.get_text_config().vocab_size

    def reference(self, name: str) -> Tensor | None:
        """A parameter of the reference; None if there is none of that name."""
        return self._reference.get(name)

    def is_transposed(self, module_name: str) -> bool:
        """Whether a linear map stores its weight as `[in, out]`, as GPT-2's do."""
        return isinstance(self.module.get_submodule(module_name), Conv1D)

    def use(self, weights: PolicyWeights) -> None:
        """Point the parameters at a version."""
        if weights.tensors is self._replaced:
            return
        for name in self._replaced:
            if name not in weights.tensors:
                self._parameters[name].data = self._reference[name]
        for name, tensor in weights.tensors.items():
            self._parameters[name].data = tensor
        self._replaced = weights.tensors

    def checked(self, version: str, tensors: Mapping[str, Tensor]) -> PolicyWeights:
        """Weights in this model's type and device, copied so that later writes do not reach them.

        Raises `AdapterError` naming the first parameter that the model lacks, that has another
        shape or that is not finite.
        """
        own: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            reference = self._reference.get(name)
            if reference is None:
                raise AdapterError(
                    f"version {version!r} replaces {name!r}, which this model does not have: it "
                    "was made for another base model"
                )
            if tensor.shape != reference.shape:
                raise AdapterError(
                    f"version {version!r} has shape {tuple(tensor.shape)} for {name!r}, the model "
                    f"{tuple(reference.shape)}: it was made for another base model"
                )
            copied = tensor.detach().to(reference.device, reference.dtype, copy=True)
            if not bool(torch.isfinite(copied).all()):
                raise AdapterError(
                    f"version {version!r} has values in {name!r} that are not finite"
                )
            own[name] = copied
        return PolicyWeights(version, own)


def twin(model: PreTrainedModel) -> PreTrainedModel:
    """A second module over the same parameter storage.

    The trainer's model carries adapters and runs in another thread, so that parameters of its own
    module must not be switched. Adapter layers that PEFT has put into `model` are left out.
    """
    wrapped: Any = model
    base: PreTrainedModel = wrapped.get_base_model() if hasattr(model, "get_base_model") else model
    with torch.device("meta"):
        module = type(base)(copy.deepcopy(base.config))
    parameters = {_plain_name(name): p for name, p in base.named_parameters(remove_duplicate=False)}
    shared: dict[int, nn.Parameter] = {}
    for name, _ in list(module.named_parameters(remove_duplicate=False)):
        source = parameters[name]
        if id(source) not in shared:
            shared[id(source)] = nn.Parameter(source.detach(), requires_grad=False)
        owner, leaf = _owner(module, name)
        owner.register_parameter(leaf, shared[id(source)])
    buffers = {_plain_name(name): b for name, b in base.named_buffers(remove_duplicate=False)}
    for name, _ in list(module.named_buffers(remove_duplicate=False)):
        owner, leaf = _owner(module, name)
        owner.register_buffer(leaf, buffers[name], persistent=False)
    return module.eval()


def _plain_name(name: str) -> str:
    """A parameter's name without what PEFT's wrappers put into it."""
    return name.replace(".base_layer.", ".").replace(".original_module.", ".")


def _owner(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    return module.get_submodule(path), leaf
