"""Every flag and variable that our use of vLLM needs, each with its reason: pure functions.

Names and behaviour are those of vLLM 0.32, the flags without `--lora-target-modules` also those of
earlier versions.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Literal

Device = Literal["cpu", "gpu"]
Role = Literal["policy", "scorer", "judge"]

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as `--max-lora-rank`."""
_GIB = 2**30
_TOKENS_PER_STEP = 2048
_ROWS_IN_CACHE = 128
"""Sequences whose keys and values should fit at once on a CPU."""


@dataclass(frozen=True, slots=True)
class Flag:
    """Words of a command line, with the reason for them."""

    words: tuple[str, ...]
    why: str


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable of the environment, with the reason for it."""

    name: str
    value: str
    why: str
    secret: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerCommand:
    """One server: how to start it, and where it answers."""

    role: Role
    host: str
    port: int
    program: tuple[str, ...]
    """Interpreter and module, or `vllm serve`."""
    model: Path
    flags: tuple[Flag, ...]
    variables: tuple[Variable, ...]

    @property
    def argv(self) -> tuple[str, ...]:
        """The whole command line."""
        return (*self.program, *(word for flag in self.flags for word in flag.words))

    @property
    def environ(self) -> dict[str, str]:
        """Variables that it needs beside those of every process."""
        return {variable.name: variable.value for variable in self.variables}


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where and on what a server runs."""

    python: str
    """Interpreter that has vLLM."""
    device: Device
    host: str
    port: int
    num_servers: int = 1
    """Servers on this machine."""
    num_cpus: int = 1
    gpu: int = 0
    """Index of the GPU that it uses."""
    servers_on_gpu: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A model as a server is to load it."""

    path: Path
    name: str
    dtype: str
    max_model_len: int | None
    kv_bytes_per_token: int = 0
    api_key: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """What the server of the policy must be able to hold."""

    rank: int
    max_adapters: int
    """Versions resident at once."""
    trained_here: bool
    """The trainer's policy and anchor are served by the same server."""
    reference_adapter: bool = True
    """An adapter of zeros answers for the reference."""
    modules: tuple[str, ...] = ()
    """Last names of the modules that adapters change."""

    @property
    def max_lora_rank(self) -> int:
        """The smallest that vLLM takes and that holds `rank`."""
        return next(allowed for allowed in LORA_RANKS if allowed >= self.rank)

    @property
    def slots(self) -> int:
        """Adapters in one batch: versions, the trainer's policy and anchor, for gateway and
        trainer a reference each, and a spare."""
        return self.max_adapters + 2 * self.trained_here + self._references + 1

    @property
    def resident(self) -> int:
        """Adapters in memory: the trainer keeps as many as the gateway, old ones beside new."""
        kept = self.max_adapters * (2 if self.trained_here else 1)
        return max(self.slots, kept + self._references + 1)

    @property
    def _references(self) -> int:
        # the trainer loads under names of its own, the reference too
        return self.reference_adapter * (2 if self.trained_here else 1)


def policy_server(served: Served, lora: Lora, place: Place) -> ServerCommand:
    """The server that samples from the reference and the policy versions."""
    flags = (
        *_shared_flags(served, place),
        *_whole_prompts(served, place),
        *_sampling_flags(),
        *_lora_flags(lora),
    )
    runtime = Variable(
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING", "1", "versions are loaded while the server runs"
    )
    return ServerCommand(
        role="policy",
        host=place.host,
        port=place.port,
        program=_program(place),
        model=served.path,
        flags=flags,
        variables=(runtime, *_shared_variables(served, place)),
    )


def reward_server(role: Role, served: Served, place: Place) -> ServerCommand:
    """The server of a reward model with one label."""
    runner = Flag(("--runner", "pooling"), "scores conversations instead of continuing them")
    return ServerCommand(
        role=role,
        host=place.host,
        port=place.port,
        program=_program(place),
        model=served.path,
        flags=(*_shared_flags(served, place), runner),
        variables=tuple(_shared_variables(served, place)),
    )


def _program(place: Place) -> tuple[str, ...]:
    # the CPU build has no distribution named vllm, without which its `vllm serve` fails
    if place.device == "cpu":
        return (place.python, "-m", "vllm.entrypoints.openai.api_server")
    return (str(Path(place.python).with_name("vllm")), "serve")


def _shared_flags(served: Served, place: Place) -> Iterator[Flag]:
    model = str(served.path)
    if place.device == "cpu":
        yield Flag(("--model", model), "the folder; nothing is downloaded")
    else:
        yield Flag((model,), "the folder; nothing is downloaded")
    yield Flag(("--served-model-name", served.name), "what requests call it")
    yield Flag(("--host", place.host), "whoever reaches the port can load adapters: keep it local")
    yield Flag(("--port", str(place.port)), "one for each server")
    if served.max_model_len is not None:
        why = "longest prompt with its answer; longer ones are refused, and it bounds memory"
        yield Flag(("--max-model-len", str(served.max_model_len)), why)
    yield Flag(("--dtype", served.dtype), "as the trainer computes, or log-probabilities differ")
    yield Flag(("--disable-uvicorn-access-log",), "health is looked at every second")
    if place.device == "cpu":
        yield Flag(("--enforce-eager",), "compiling takes longer than it gains on a CPU")
        yield Flag(("--block-size", "32"), "128 on a CPU: shorter prompts would share no prefix")
    elif place.servers_on_gpu > 1:
        share = 0.8 / place.servers_on_gpu
        why = f"{place.servers_on_gpu} servers on this GPU, and the rest for the trainer"
        yield Flag(("--gpu-memory-utilization", f"{share:.2f}"), why)


def _whole_prompts(served: Served, place: Place) -> Iterator[Flag]:
    if place.device == "gpu":
        return
    # Seen on vLLM 0.32 for CPU: for a row with a seed whose prompt is cut by the token budget of a
    # step, the runner turns back the generator's offset, which a CPU generator does not have
    # ("CPU Generator does not use offset"); that ends the engine process. 64 prompts of 150 tokens
    # at once, half of them with seeds: all failed. With the flags all were answered.
    yield Flag(
        ("--no-enable-chunked-prefill",),
        "on a CPU vLLM ends when the prompt of a request with a seed is read in parts",
    )
    budget = max(_TOKENS_PER_STEP, served.max_model_len or 0)
    yield Flag(("--max-num-batched-tokens", str(budget)), "so that any prompt fits into one step")


def _sampling_flags() -> Iterator[Flag]:
    yield Flag(
        ("--generation-config", "vllm"),
        "else the folder's generation_config.json changes what requests ask for",
    )
    yield Flag(
        ("--logprobs-mode", "processed_logprobs"),
        "log-probabilities of the distribution that was sampled, temperature included",
    )
    yield Flag(
        ("--max-logprobs", "-1"),
        "scoring given tokens at a temperature other than 1 takes the whole vocabulary",
    )
    yield Flag(("--scheduling-policy", "priority"), "the trainer's requests yield to users'")


def _lora_flags(lora: Lora) -> Iterator[Flag]:
    yield Flag(("--enable-lora",), "policy versions are LoRA adapters")
    yield Flag(("--max-lora-rank", str(lora.max_lora_rank)), f"holds rank {lora.rank}")
    parts = [f"{lora.max_adapters} versions"]
    trained = "reference, policy and anchor" if lora.reference_adapter else "policy and anchor"
    parts += ["the reference"] if lora.reference_adapter else []
    parts += [f"the trainer's {trained}"] if lora.trained_here else []
    slots = str(lora.slots)
    yield Flag(("--max-loras", slots), f"in one batch: {', '.join(parts)}, one spare")
    resident = "in memory: the versions of the gateway and of the trainer, which change"
    yield Flag(("--max-cpu-loras", str(lora.resident)), resident)
    if lora.modules:
        # Seen on vLLM 0.32 for CPU: without it the output head is wrapped for LoRA too, and two
        # requests with prompt_logprobs in one batch end the engine process (a size mismatch in
        # punica_cpu.add_lora_logits: 63 of 64 requests failed). With it, 64 at once on the base
        # and three adapters of all linear modules were answered, within 2e-6 of the trainer's
        # log-probabilities. PEFT's names do: vLLM maps q_proj to its packed qkv_proj itself.
        yield Flag(
            ("--lora-target-modules", *lora.modules),
            "what adapters change, without the output head: on a CPU vLLM ends when two requests "
            "for log-probabilities of given tokens meet there",
        )


def _shared_variables(served: Served, place: Place) -> Iterator[Variable]:
    if served.api_key is not None:
        yield Variable("VLLM_API_KEY", served.api_key, "engine.api_key or scorer.api_key", True)
    yield Variable("HF_HUB_OFFLINE", "1", "nothing is downloaded")
    yield Variable("VLLM_NO_USAGE_STATS", "1", "nothing is reported")
    yield Variable("DO_NOT_TRACK", "1", "nothing is reported by its libraries either")
    if place.device == "gpu":
        yield Variable("CUDA_VISIBLE_DEVICES", str(place.gpu), "the GPU of this server")
        return
    tokens = _ROWS_IN_CACHE * (served.max_model_len or 0)
    gib = max(1, ceil(tokens * served.kv_bytes_per_token / _GIB))
    why = f"GiB of keys and values: {_ROWS_IN_CACHE} of the longest sequences, at least 1"
    yield Variable("VLLM_CPU_KVCACHE_SPACE", str(gib), why)
    yield Variable(
        "VLLM_CPU_OMP_THREADS_BIND",
        "nobind",
        "servers on one machine would all be bound to the same cores",
    )
    threads = max(1, place.num_cpus // place.num_servers)
    yield Variable("OMP_NUM_THREADS", str(threads), "its share of the cores")
