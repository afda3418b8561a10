"""One program over many devices: meshes, spreading, and programs compiled for devices that are not there."""

from vaejax.devices.ahead_of_time import (
    Compiled,
    Limits,
    Memory,
    compile_for,
)
from vaejax.devices.machines import (
    Machine,
    devices_of,
    machine_of,
)
from vaejax.devices.meshes import (
    BATCH,
    RUNS,
    SAMPLES,
    make_mesh,
    meet,
    replicate,
    size,
    spread,
)

__all__ = [
    "BATCH",
    "RUNS",
    "SAMPLES",
    "Compiled",
    "Limits",
    "Machine",
    "Memory",
    "compile_for",
    "devices_of",
    "machine_of",
    "make_mesh",
    "meet",
    "replicate",
    "size",
    "spread",
]
