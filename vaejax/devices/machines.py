"""Accelerators that need not be there: what they can do, and JAX's devices of them to compile for."""

import difflib
import functools
import importlib
import importlib.util
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from typing import Any, NamedTuple

import jax

# For a compiler without its device: it asks for no driver and no network, and shares its library with other processes.
_ENVIRONMENT = {
    "XLA_FLAGS": None,
    "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",  # of a machine to run on; what is compiled for is named otherwise
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
_INSTALL = 'python -m pip install -e ".[accelerators]", in the clone'


class Machine(NamedTuple):
    """What a device can do, by its maker's data sheet: dense products on its matrix units, as JAX multiplies.

    Attributes:
        platform: "cuda" or "tpu".
        memory_bytes: of one device.
        bytes_per_second: between that memory and its arithmetic units.
        network_bytes_per_second: to other devices of the machine.
        flops_per_second: of products of bfloat16 numbers.
        float32_flops_per_second: of float32 numbers at JAX's default precision, TF32 on a GPU and bfloat16 on a TPU.
        launch_seconds: of a kernel, however small; about 2.5 microseconds on a GPU, and nothing on a TPU, which runs a
            program without its host.
        layout: of the smallest machine, such as "2x2"; for a GPU its number.
        config: of XLA's compiler for a GPU that is not there.

    >>> machine, _ = machine_of("v5e")
    >>> machine.memory_bytes == 16 * 2**30
    True
    >>> machine.flops_per_second // machine.bytes_per_second  # FLOPs for each byte: with fewer, memory is the limit
    240.0
    """

    platform: str
    memory_bytes: int
    bytes_per_second: float
    network_bytes_per_second: float
    flops_per_second: float
    float32_flops_per_second: float
    launch_seconds: float
    layout: str
    config: str = ""


def _gpu(kind: str, capability: tuple[int, int], cores: int, memory: int, rate: float, network: float) -> Machine:
    """A GPU of 80 GB or more; `kind` is how its driver names it."""
    hopper = capability[0] == 9
    shared = 228 if hopper else 164  # KiB of a core, of which a block gets all but one
    config = f"""
      gpu_device_info {{
        threads_per_block_limit: 1024 threads_per_warp: 32
        shared_memory_per_block: 49152 shared_memory_per_core: {shared * 1024}
        shared_memory_per_block_optin: {(shared - 1) * 1024}
        threads_per_core_limit: 2048 core_count: {cores} fpus_per_core: {128 if hopper else 64}
        block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
        memory_bandwidth: {int(rate)} l2_cache_size: {52428800 if hopper else 41943040}
        clock_rate_ghz: {1.98 if hopper else 1.41} device_memory_size: {memory}
        cuda_compute_capability {{ major: {capability[0]} minor: {capability[1]} }}
        registers_per_core_limit: 65536 registers_per_block_limit: 65536
      }}
      platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 8 }} device_description_str: "{kind}"
    """
    flops, float32 = (989e12, 495e12) if hopper else (312e12, 156e12)
    return Machine("cuda", memory, rate, network, flops, float32, 2.5e-6, "1", config)


def _tpu(memory_gib: int, rate: float, network: float, flops: float, layout: str) -> Machine:
    return Machine("tpu", memory_gib * 2**30, rate, network, flops, flops, 0.0, layout)


MACHINES = {
    "a100": _gpu("NVIDIA A100-SXM4-80GB", (8, 0), 108, 85_094_825_984, 2.039e12, 300e9),
    "h100": _gpu("NVIDIA H100 80GB HBM3", (9, 0), 132, 84_978_434_048, 3.352e12, 450e9),
    "h200": _gpu("NVIDIA H200", (9, 0), 132, 150_754_820_096, 4.8e12, 450e9),
    "v4": _tpu(32, 1.228e12, 300e9, 275e12, "2x2x1"),
    "v5e": _tpu(16, 0.819e12, 200e9, 197e12, "2x2"),
    "v5p": _tpu(95, 2.765e12, 600e9, 459e12, "2x2x1"),
    "v6e": _tpu(32, 1.640e12, 448e9, 918e12, "2x2"),
}


def machine_of(device: str) -> tuple[Machine, str]:
    """What a device can do, and how many of them are side by side.

    Args:
        device: a name, alone or with a layout: "h100", "h100:8", "v5e:2x2", "v5p:2x2x1".

    Returns:
        The machine, and its layout, such as "2x2".

    Raises:
        ValueError: if the device is unknown, with the near ones, or the layout no product of numbers.

    >>> machine, layout = machine_of("v5e:4x4")
    >>> machine.platform, layout
    ('tpu', '4x4')
    """
    name, _, layout = device.lower().partition(":") if isinstance(device, str) else (repr(device), "", "")
    machine = MACHINES.get(name)
    if machine is None or not re.fullmatch(r"\d+(x\d+)*", layout or machine.layout):
        near = difflib.get_close_matches(name, MACHINES, 3, 0.4)
        hint = f": did you mean {' or '.join(near)}?" if near and machine is None else ""
        known = ", ".join(each if m.platform == "cuda" else f"{each}:{m.layout}" for each, m in MACHINES.items())
        raise ValueError(f"device must be one of {known}, or a larger layout such as h100:8; got {device!r}{hint}")
    return machine, layout or machine.layout


def devices_of(device: str) -> tuple[Any, ...]:
    """JAX's devices of a machine that need not be there, to make a mesh of and to compile for; nothing runs on them.

    Args:
        device: as `compile_for` takes it.

    Returns:
        The devices, in the order that `jax.devices()` has there.

    Raises:
        ValueError: if the device or its layout is unknown.
        ImportError: if the compiler is not installed, or belongs to another version of JAX.

    >>> devices_of("h1000")
    Traceback (most recent call last):
    ...
    ValueError: device must be one of a100, h100, ...; got 'h1000': did you mean h100 or h200 or a100?
    """
    machine_of(device)
    return _loaded(device.lower())


@functools.cache
def _loaded(device: str) -> tuple[Any, ...]:
    machine, layout = machine_of(device)
    with quiet_plugins():
        try:
            return (
                _gpus(machine, layout) if machine.platform == "cuda" else _tpus(f"{device.partition(':')[0]}:{layout}")
            )
        except RuntimeError as error:  # of the compiler
            raise ValueError(f"device {device!r}: its compiler refuses it: {str(error).splitlines()[0]}") from None


def _tpus(name: str) -> tuple[Any, ...]:
    _check_plugin("libtpu", r"libtpu==([\d.]+)\.\*", 'extra == "tpu"')
    from jax.experimental import topologies  # here, so that importing vaejax stays quick

    return tuple(topologies.get_topology_desc(platform="tpu", topology_name=name).devices)


def _gpus(machine: Machine, layout: str) -> tuple[Any, ...]:
    cuda = next((major for major in ("13", "12") if importlib.util.find_spec(f"jax_cuda{major}_plugin")), "12")
    _check_plugin(f"jax-cuda{cuda}-plugin", rf"jax-cuda{cuda}-plugin<=([\d.]+)", f'extra == "cuda{cuda}-local"')
    from jax.experimental import topologies

    def found() -> Any:
        options = {"topology": f"1x1x{layout}", "target_config": machine.config}
        return topologies.get_topology_desc("gpu", platform="cuda", **options)

    try:
        return tuple(found().devices)
    except NotImplementedError:  # JAX does not keep the plugin where there is no GPU; it is asked to do so
        importlib.import_module(f"jax_plugins.xla_cuda{cuda}").initialize()
        return tuple(found().devices)


def _check_plugin(package: str, pattern: str, extra: str) -> None:
    """Refuse a compiler that is not there, or of another version than this JAX names for its extra."""
    try:
        version = metadata.version(package)
    except metadata.PackageNotFoundError:
        raise ImportError(f"compiling for this device needs the package {package}: {_INSTALL}") from None
    named = [re.match(pattern, line) for line in metadata.requires("jax") or [] if extra in line]
    wanted = [found[1] for found in named if found]
    if wanted and not f"{version}.".startswith(f"{wanted[0]}."):
        raise ImportError(f"jax {jax.__version__} needs {package} {wanted[0]}; got {version}: {_INSTALL}")


@contextmanager
def quiet_plugins() -> Iterator[None]:
    """Lets compilers be loaded and called with an environment that cannot end this process, and asks for no driver.

    A compiler ends the process whose `XLA_FLAGS` it does not know. It gets those that JAX knows anyway, from JAX. And
    JAX's cache on disk cannot read again what is compiled for a device that is not there.

    >>> with quiet_plugins():
    ...     os.environ.get("XLA_FLAGS")
    """
    from jax.experimental.compilation_cache import compilation_cache  # here, as above

    jax.local_devices()  # JAX reads the flags itself, before they are hidden
    before = {name: os.environ.get(name) for name in _ENVIRONMENT}
    config: Any = jax.config
    caches = config.jax_enable_compilation_cache
    try:
        _set(_ENVIRONMENT)
        config.update("jax_enable_compilation_cache", False)
        compilation_cache.reset_cache()  # or it does not look at the option again
        yield
    finally:
        _set(before)
        config.update("jax_enable_compilation_cache", caches)
        compilation_cache.reset_cache()


def _set(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
