"""Policy versions on disk: immutable directories in PEFT's format, with a manifest and a probe."""

from bond_core.adapters.directory import (
    ADAPTER_CONFIG_FILE,
    MANIFEST_FILE,
    WEIGHTS_FILE,
    adapter_path,
    check_base,
    read_manifest,
    remove_leftovers,
    verify_adapter,
    write_adapter,
)
from bond_core.adapters.manifest import Manifest, ProbeCase
from bond_core.adapters.probe import ProbeReport, judge_probe, probe_adapter

__all__ = [
    "ADAPTER_CONFIG_FILE",
    "MANIFEST_FILE",
    "WEIGHTS_FILE",
    "Manifest",
    "ProbeCase",
    "ProbeReport",
    "adapter_path",
    "check_base",
    "judge_probe",
    "probe_adapter",
    "read_manifest",
    "remove_leftovers",
    "verify_adapter",
    "write_adapter",
]
