"""The configuration: closed, typed, one file for both processes."""

from bond_core.config.access import AccessConfig
from bond_core.config.admission import AdmissionConfig
from bond_core.config.engine import (
    EngineConfig,
    FakeEngineConfig,
    LocalEngineConfig,
    ModelConfig,
    VllmEngineConfig,
)
from bond_core.config.loading import BondConfig, config_of, load_config
from bond_core.config.objective import (
    FixedBondConfig,
    GkdConfig,
    JBondConfig,
    KlEstimate,
    ObjectiveConfig,
    RlooConfig,
)
from bond_core.config.prices import PricesConfig
from bond_core.config.retention import RetentionConfig
from bond_core.config.rollouts import RolloutsConfig
from bond_core.config.scorer import (
    ClassifierScorerConfig,
    FunctionScorerConfig,
    PoolingScorerConfig,
    ScorerConfig,
    SelfTestConfig,
)
from bond_core.config.serving import (
    ArmsConfig,
    SamplingConfig,
    ServerConfig,
    SplitConfig,
    StoreConfig,
)
from bond_core.config.tracing import TracingConfig
from bond_core.config.trainer import (
    CurationConfig,
    EvaluationConfig,
    GateConfig,
    LoraConfig,
    SuiteConfig,
    TrainerConfig,
    WinnersConfig,
)

__all__ = [
    "AccessConfig",
    "AdmissionConfig",
    "ArmsConfig",
    "BondConfig",
    "ClassifierScorerConfig",
    "CurationConfig",
    "EngineConfig",
    "EvaluationConfig",
    "FakeEngineConfig",
    "FixedBondConfig",
    "FunctionScorerConfig",
    "GateConfig",
    "GkdConfig",
    "JBondConfig",
    "KlEstimate",
    "LocalEngineConfig",
    "LoraConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "PoolingScorerConfig",
    "PricesConfig",
    "RetentionConfig",
    "RlooConfig",
    "RolloutsConfig",
    "SamplingConfig",
    "ScorerConfig",
    "SelfTestConfig",
    "ServerConfig",
    "SplitConfig",
    "StoreConfig",
    "SuiteConfig",
    "TracingConfig",
    "TrainerConfig",
    "VllmEngineConfig",
    "WinnersConfig",
    "config_of",
    "load_config",
]
