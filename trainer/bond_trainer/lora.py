"""Policy and anchor as two LoRA adapters of one frozen base; the reference is neither.

One PEFT model holds all three policies, so that an anchor costs an adapter and not a model, and
the KL to the reference needs no second copy of the weights. The factors are fp32 whatever the
base's dtype is: with eta = 0.02, the moving average of bf16 factors would round to nothing.

With `freeze_a`, both adapters share one A and only B is trained. The weight update B A is then
linear in what is trained and averaged, so that the average of the factors is the average of the
weights.
"""

import copy
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, cast

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, TaskType, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from bond_core.config import LoraConfig
from bond_core.errors import AdapterError, ConfigError

AdapterName = Literal["policy", "anchor"]
POLICY: AdapterName = "policy"
ANCHOR: AdapterName = "anchor"
_ADAPTERS: tuple[AdapterName, AdapterName] = (POLICY, ANCHOR)
_PEFT_PREFIX = "base_model.model."
WEIGHTS_FILE = "adapter_model.safetensors"


class LoraPair:
    """The policy and anchor adapters over `base`, both equal to the reference at first.

    `base` is rewritten by PEFT and frozen; an engine may share its storage (`LocalEngine.over`).
    The random factor A comes from torch's generator: seed it first.
    """

    def __init__(self, base: PreTrainedModel, config: LoraConfig) -> None:
        targets = target_modules(base, config.target_modules)
        peft_config = PeftLoraConfig(
            task_type=TaskType.CAUSAL_LM,
            r=config.rank,
            lora_alpha=config.alpha,  # type: ignore[arg-type]  # PEFT scales by any number
            lora_dropout=0.0,
            target_modules=targets,
            base_model_name_or_path=str(base.name_or_path) or None,  # a model made in memory
        )
        base.requires_grad_(False)
        with warnings.catch_warnings():
            # PEFT reads an attribute that transformers is renaming; nothing of ours uses it
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
            self.model = cast(PeftModel, get_peft_model(base, peft_config, adapter_name=POLICY))
        self.model.add_adapter(ANCHOR, copy.deepcopy(peft_config))
        self.model.eval()
        self._layers = {
            name.removeprefix(_PEFT_PREFIX): module
            for name, module in self.model.named_modules()
            if isinstance(module, LoraLayer)
        }
        self._freeze_a = config.freeze_a
        for layer in self._layers.values():
            self._share_initial_factors(layer)
        self.select(POLICY)

    @property
    def base(self) -> PreTrainedModel:
        """The base model below PEFT's wrapper; its adapted layers carry both adapters."""
        return cast(PreTrainedModel, self.model.get_base_model())

    @property
    def layer_names(self) -> list[str]:
        """The adapted modules, named as in the base model."""
        return list(self._layers)

    def factors(self, name: AdapterName) -> dict[str, nn.Parameter]:
        """What is trained of the policy, or averaged in the anchor: B, and A unless frozen.

        Both adapters have the same names, in a fixed order.
        """
        found: dict[str, nn.Parameter] = {}
        for module, layer in self._layers.items():
            if not self._freeze_a:
                found[f"{module}.A"] = _factor_a(layer, name)
            found[f"{module}.B"] = _factor_b(layer, name)
        return found

    def select(self, name: AdapterName) -> None:
        """Make an adapter answer `self.model`; gradients stay with the policy's factors."""
        self.model.set_adapter(name, inference_mode=True)
        for parameter in self.factors(POLICY).values():
            parameter.requires_grad_(True)

    @contextmanager
    def using(self, name: AdapterName | None) -> Iterator[nn.Module]:
        """The model under one adapter, or as the reference (None); the policy again afterwards."""
        if name is None:
            with self.model.disable_adapter():
                yield self.model
        else:
            self.select(name)
            yield self.model
        self.select(POLICY)

    def merged_weights(self, name: AdapterName) -> dict[str, Tensor]:
        """W + scaling * B A of every adapted module, by its parameter name in the base model."""
        with torch.no_grad():
            return {
                f"{module}.weight": _merged(layer, name) for module, layer in self._layers.items()
            }

    def tensors(self, name: AdapterName) -> dict[str, Tensor]:
        """Both factors of every module under PEFT's file names; views, not copies."""
        found: dict[str, Tensor] = {}
        for module, layer in self._layers.items():
            found[f"{_PEFT_PREFIX}{module}.lora_A.weight"] = _factor_a(layer, name).data
            found[f"{_PEFT_PREFIX}{module}.lora_B.weight"] = _factor_b(layer, name).data
        return found

    def load_tensors(self, name: AdapterName, tensors: Mapping[str, Tensor]) -> None:
        """Overwrite an adapter. Raises `AdapterError` if the names or shapes are another's."""
        own = self.tensors(name)
        if set(own) != set(tensors):
            odd = sorted(set(own) ^ set(tensors))[0]
            raise AdapterError(f"the saved adapter does not fit this model: {odd} is on one side")
        for key, target in own.items():
            if target.shape != tensors[key].shape:
                raise AdapterError(
                    f"the saved adapter does not fit: {key} is {tuple(tensors[key].shape)}, "
                    f"expected {tuple(target.shape)}; was trainer.lora.rank changed?"
                )
            target.copy_(tensors[key])

    def save(self, name: AdapterName, directory: Path) -> None:
        """Write an adapter as PEFT and vLLM read it: safetensors and `adapter_config.json`."""
        directory.mkdir(parents=True, exist_ok=True)
        tensors = {k: v.detach().clone().contiguous() for k, v in self.tensors(name).items()}
        save_file(tensors, directory / WEIGHTS_FILE, metadata={"format": "pt"})
        peft_config = copy.deepcopy(self.model.peft_config[name])
        peft_config.inference_mode = True
        peft_config.save_pretrained(str(directory))

    def load(self, name: AdapterName, directory: Path) -> None:
        """Read what `save` wrote."""
        self.load_tensors(name, load_file(directory / WEIGHTS_FILE))

    def _share_initial_factors(self, layer: LoraLayer) -> None:
        for name in _ADAPTERS:
            for factor in (_factor_a(layer, name), _factor_b(layer, name)):
                factor.data = factor.data.float()
        if self._freeze_a:
            cast(nn.Module, layer.lora_A[ANCHOR]).weight = _factor_a(layer, POLICY)
        else:
            _factor_a(layer, ANCHOR).data.copy_(_factor_a(layer, POLICY).data)


def target_modules(model: PreTrainedModel, wanted: str | list[str]) -> list[str]:
    """The last name parts of the modules to adapt, sorted.

    `all-linear` stands for every linear module but the output head. Raises `ConfigError` if the
    head or the embeddings are asked for, which engines cannot serve, or if nothing matches.
    """
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    linear = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if (isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D")
        and module is not head
    }
    excluded = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if module is head or module is embeddings
    }
    if wanted == "all-linear":
        return sorted(linear)
    asked = [wanted] if isinstance(wanted, str) else wanted
    for name in asked:
        if name.rpartition(".")[2] in excluded:
            raise ConfigError(
                f"trainer.lora.target_modules: {name!r} is the output head or the embeddings, "
                "which engines do not serve from an adapter; leave it out"
            )
        if name not in linear:
            raise ConfigError(
                f"trainer.lora.target_modules: the model has no linear module {name!r}; "
                f"it has {', '.join(sorted(linear))}"
            )
    return sorted(asked)


def _factor_a(layer: LoraLayer, name: AdapterName) -> nn.Parameter:
    return cast(nn.Parameter, layer.lora_A[name].weight)


def _factor_b(layer: LoraLayer, name: AdapterName) -> nn.Parameter:
    return cast(nn.Parameter, layer.lora_B[name].weight)


def _merged(layer: LoraLayer, name: AdapterName) -> Tensor:
    weight = cast(Tensor, layer.get_base_layer().weight)
    # torch types what a module has by name as a tensor
    delta = cast(Tensor, layer.get_delta_weight(name))  # type: ignore[operator]
    return (weight.float() + delta.float()).to(weight.dtype)
