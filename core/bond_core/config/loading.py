"""Reading the configuration: flags over `BOND_` environment over file over defaults."""

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast, get_args

from pydantic import BaseModel, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from bond_core.config.access import AccessConfig
from bond_core.config.admission import AdmissionConfig
from bond_core.config.engine import EngineConfig, LocalEngineConfig, ModelConfig
from bond_core.config.file import read_file
from bond_core.config.prices import PricesConfig
from bond_core.config.scorer import ScorerConfig
from bond_core.config.serving import ArmsConfig, SamplingConfig, ServerConfig, StoreConfig
from bond_core.config.tracing import TracingConfig
from bond_core.config.trainer import TrainerConfig
from bond_core.errors import ConfigError

ENV_PREFIX = "BOND_"
ENV_NESTING = "__"

_HOW_TO_SET = {
    "model": ": name a model folder, as in `model: {path: ./my-model}`",
    "scorer": ": name a reward model, as in `scorer: {type: classifier, path: ./my-reward-model}`, "
    "or a function, as in `scorer: {type: function, function: rewards.py:score}`, or a vLLM "
    "server, as in `scorer: {type: pooling, url: http://localhost:8000}`",
}


class BondConfig(BaseSettings):
    """Everything that gateway and trainer read, from one `bond.yaml`."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter=ENV_NESTING,
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
    )

    model: ModelConfig
    """The base model."""
    scorer: ScorerConfig
    """Selects on the hot path and trains."""
    judge: ScorerConfig | None = None
    """A second scorer that training never sees; the gate asks it too."""
    gold: ScorerConfig | None = None
    """A scorer for reports only, never for a decision (the demo's rubric)."""
    engine: EngineConfig = LocalEngineConfig()
    sampling: SamplingConfig = SamplingConfig()
    arms: ArmsConfig = ArmsConfig()
    server: ServerConfig = ServerConfig()
    access: AccessConfig = AccessConfig()
    admission: AdmissionConfig = AdmissionConfig()
    tracing: TracingConfig = TracingConfig()
    prices: PricesConfig = PricesConfig()
    store: StoreConfig = StoreConfig()
    trainer: TrainerConfig = TrainerConfig()
    data_dir: Path = Path("bond-data")
    """The log, the adapters and the learner's checkpoints."""

    @model_validator(mode="after")
    def _served_rollouts_have_servers(self) -> "BondConfig":
        if self.trainer.rollouts.engine == "served" and self.engine.type != "vllm":
            raise ConfigError(
                f"trainer.rollouts.engine is served, and engine.type is {self.engine.type}: set "
                "engine.type to vllm and engine.urls to the servers, or trainer.rollouts.engine to "
                "own"
            )
        return self

    @model_validator(mode="after")
    def _metrics_have_a_port_of_their_own(self) -> "BondConfig":
        port = self.access.metrics_port
        if port and (self.access.metrics_host, port) == (self.server.host, self.server.port):
            raise ConfigError(
                f"access.metrics_port is {port}, where the gateway itself listens: give the "
                "metrics another port, or leave it out, since the gateway has /metrics, too"
            )
        return self

    @property
    def adapters_dir(self) -> Path:
        """One immutable directory per policy version."""
        return self.data_dir / "adapters"

    @property
    def checkpoints_dir(self) -> Path:
        """Resumable learner states."""
        return self.data_dir / "checkpoints"

    @property
    def metrics_dir(self) -> Path:
        """The trainer's `metrics.jsonl` and event files."""
        return self.data_dir / "training"

    @property
    def learner_device(self) -> str:
        """Torch device of everything that the trainer computes itself."""
        embedded = self.engine.device if isinstance(self.engine, LocalEngineConfig) else "cpu"
        return self.trainer.device or embedded

    @property
    def store_url(self) -> str:
        """The store's SQLAlchemy URL."""
        return self.store.url or f"sqlite:///{(self.data_dir / 'bond.db').resolve()}"


def load_config(
    path: Path | None = None,
    flags: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
) -> BondConfig:
    """Read and check the configuration.

    `flags` is nested like the file. Relative paths in the file are relative to the file. Raises
    `ConfigError` that names the wrong key and the nearest valid one.
    """
    _refuse_unknown_variables(os.environ if environ is None else environ)
    from_file = read_file(path) if path is not None else {}
    _drop_retyped(from_file, flags or {})

    class Sourced(BondConfig):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return (init_settings, env_settings, InitSettingsSource(settings_cls, from_file))

    try:
        return Sourced(**dict(flags or {}))
    except ValidationError as error:
        raise ConfigError(_describe(error, path, environ or os.environ)) from None


def config_of(values: Mapping[str, Any]) -> BondConfig:
    """The configuration that Python values alone make: no file, no environment.

    Raises `ConfigError` as `load_config` does.
    """
    try:
        return BondConfig.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError(_describe(error, None, {})) from None


def _drop_retyped(values: dict[str, Any], over: Mapping[str, Any]) -> None:
    """A section whose `type` a flag changes is replaced, because the other keys belong to the
    old type."""
    for section, given in over.items():
        below = values.get(section)
        if isinstance(given, Mapping) and isinstance(below, dict):
            retyped = cast(Mapping[str, Any], given).get("type")
            if retyped is not None and cast(dict[str, Any], below).get("type") != retyped:
                del values[section]


def _refuse_unknown_variables(environ: Mapping[str, str]) -> None:
    known = list(BondConfig.model_fields)
    for name in environ:
        if name.startswith(ENV_PREFIX):
            key = name.removeprefix(ENV_PREFIX).split(ENV_NESTING)[0].lower()
            if key not in known:
                raise ConfigError(
                    f"environment variable {name}: no setting {key!r}{_nearest(key, known)}"
                )


def _nearest(key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(sorted(known))}"


def _describe(error: ValidationError, path: Path | None, environ: Mapping[str, str]) -> str:
    lines: list[str] = []
    for item in error.errors():
        location = [str(part) for part in item["loc"]]
        where = ".".join(location)
        variable = ENV_PREFIX + ENV_NESTING.join(location).upper()
        origin = f" (environment variable {variable})" if variable in environ else ""
        if item["type"] == "extra_forbidden":
            hint = _nearest(location[-1], _fields_at(location[:-1]))
            lines.append(f"unknown key '{where}'{origin}{hint}")
        elif item["type"] == "missing":
            lines.append(f"'{where}' is missing{_HOW_TO_SET.get(where, '')}")
        elif item["type"].startswith("union_tag"):
            tags = item.get("ctx", {}).get("expected_tags", "") or ", ".join(_tags_at(location))
            lines.append(f"'{where}' needs a 'type', one of {tags}")
        else:
            lines.append(f"'{where}'{origin}: {item['msg']} (got {item['input']!r})")
    return f"configuration{f' {path}' if path else ''}: " + "; ".join(lines)


def _tags_at(location: list[str]) -> list[str]:
    """The types that a discriminated section may have, quoted."""
    models: list[type[BaseModel]] = [BondConfig]
    for part in location:
        models = [
            found
            for model in models
            if part in model.model_fields
            for found in _models_in(model.model_fields[part].annotation)
        ]
    return [f"'{tag}'" for model in models if (tag := _tag(model)) is not None]


def _fields_at(location: list[str]) -> list[str]:
    models: list[type[BaseModel]] = [BondConfig]
    for part in location:
        annotations = [m.model_fields[part].annotation for m in models if part in m.model_fields]
        if annotations:
            models = [found for a in annotations for found in _models_in(a)]
        else:  # the tag of a discriminated union
            models = [m for m in models if _tag(m) == part]
    return sorted({name for m in models for name in m.model_fields})


def _models_in(annotation: object) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in get_args(annotation) for found in _models_in(part)]


def _tag(model: type[BaseModel]) -> str | None:
    kind = model.model_fields.get("type")
    return None if kind is None else cast(str, kind.default)
