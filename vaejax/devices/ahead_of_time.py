"""Programs compiled for a GPU or TPU that is not there, and what they would need and do."""

import inspect
import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from vaejax import checks, records
from vaejax.devices.compiled_text import hottest_work
from vaejax.devices.machines import Machine, devices_of, machine_of, quiet_plugins

# A number of bytes in a message of the compiler.
_SIZE = r"\b(\d[\d.]*)([KMGT])\b"


class Memory(NamedTuple):
    """Bytes on each device.

    Attributes:
        arguments: of the program.
        temporaries: most of them at one time.
        output: without what is written in the place of donated arguments.

    >>> memory = Memory(arguments=3 * 2**30, temporaries=14 * 2**30, output=2**20)
    >>> sum(memory) <= machine_of("v5e")[0].memory_bytes  # of 16 GiB
    False
    """

    arguments: int
    temporaries: int
    output: int


class Limits(NamedTuple):
    """Seconds of one pass, if nothing but this took time.

    Attributes:
        arithmetic: matrix products and convolutions at the peak rate of the device.
        memory: bytes to and from the main memory.
        network: bytes between the devices, twice what goes into an exchange.
        launches: of the kernels.

    >>> limits = Limits(arithmetic=0.25, memory=1.0, network=0.0, launches=0.125)
    >>> limits.arithmetic / max(limits)  # the most of the time that matrix products can take
    0.25
    """

    arithmetic: float
    memory: float
    network: float
    launches: float


class Compiled(NamedTuple):
    """A program compiled for a device, and not run.

    All counts and the roofline are of one pass through the hottest loop body, such as a training step of `fit`; of the
    whole program where it has no loop. They are None where the program could not be compiled for lack of memory.

    Attributes:
        device: as it was asked for.
        num_devices: that the program runs on.
        memory_bytes: arguments, temporaries and output on each device; where the program could not be compiled, all
            that the compiler asked for stands under temporaries.
        spare_bytes: memory of the device that is left; below 0, what is missing.
        passes: through that loop in one call of the program; None where the compiler does not know their number.
        kernels: launches; see `compile_for`.
        flops: of matrix products and convolutions, on each device; two for each multiplication.
        bytes_accessed: in the device's main memory.
        all_reduces: sums over devices.
        host_transfers: times that it waits for the host, or sends it something.
        limits: seconds that arithmetic, memory, network and launches would take alone.
        seconds: of compiling.
        text: the compiled program.

    >>> used, limits = Memory(6 * 10**9, 76 * 10**9, 0), Limits(arithmetic=0.2, memory=0.06, network=0.0, launches=0.01)
    >>> counts = {"passes": 100, "kernels": 4000, "flops": 10**14, "bytes_accessed": 2 * 10**11, "all_reduces": 0}
    >>> program = Compiled("h100", 1, used, 3 * 10**9, **counts, host_transfers=0, limits=limits, seconds=9.0, text="")
    >>> program.fits, program.limit, program.passes * program.roofline_seconds  # 100 steps take at least 20 seconds
    (True, 'arithmetic', 20.0)
    """

    device: str
    num_devices: int
    memory_bytes: Memory
    spare_bytes: int
    passes: int | None
    kernels: int | None
    flops: int | None
    bytes_accessed: int | None
    all_reduces: int | None
    host_transfers: int | None
    limits: Limits | None
    seconds: float
    text: str

    __repr__ = records.short_repr

    @property
    def fits(self) -> bool:
        """Whether the device has the memory."""
        return self.spare_bytes >= 0

    @property
    def roofline_seconds(self) -> float | None:
        """The least time of one pass by arithmetic, memory and network; launches are not in it."""
        return None if self.limits is None else max(self.limits[:3])

    @property
    def limit(self) -> str | None:
        """Which of the limits binds: "arithmetic", "memory", "network" or "launches"."""
        return None if self.limits is None else max(zip(self.limits, Limits._fields, strict=True))[1]


def compile_for(device: str, function: Callable[..., Any], *args: Any) -> Compiled:
    """Compile a program for a GPU or TPU that need not be there, with its own compiler, and say what it would do.

    It is compiled for the first of the device's devices; on a mesh, for as many as the mesh has: under `jax.set_mesh`,
    or that of the arguments' shardings. Of a mesh of other devices, such as this machine's, or of none (an
    `AbstractMesh`), axes and sizes count. Arguments without a sharding are then on all devices.

    A kernel is an instruction of the compiled program that the device starts on its own: a fusion, a matrix product or
    other library call, a copy, a sort, an exchange between devices, a conditional (whose branches are not counted).
    Names, tuples, constants and the ends of what was begun elsewhere are none; on a TPU also not what writes a single
    number, which its scalar unit does. Kernels of loops in the counted body count as often as they are passed through.

    What the compiler cannot know without the device, it guesses: it tries no variants of matrix products, which on a
    GPU become Triton kernels with paddings that a measured choice may avoid, and it sorts by a slow general way.
    `jax.jit(function, compiler_options={"xla_gpu_enable_triton_gemm": False})` has a library's products instead.
    Arrays that the function closes over are constants of the program: pass data as arguments. Where the compilers are
    installed, JAX says at the start of every process that it finds no GPU, unless `JAX_PLATFORMS` is "cpu".

    On a GPU, JAX takes three quarters of the memory unless `XLA_PYTHON_CLIENT_MEM_FRACTION` says otherwise; `fits`
    means all of it.

    Args:
        device: "a100", "h100", "h200" (with ":8" for eight in a machine), "v4:2x2x1", "v5e:2x2", "v5p:2x2x1",
            "v6e:2x2", ....
        function: what is compiled, such as `jax.jit` takes it, or gives it with its options (static and donated
            arguments).
        *args: arrays, keys, `jax.ShapeDtypeStruct`s, and trees of them; no number in them matters.

    Returns:
        What the program needs and does. One that is too large for the memory has a `spare_bytes` below 0.

    Raises:
        ValueError: if the device is unknown, the mesh has more devices than it, or the function calls the host.
        ImportError: if the compiler is not installed, or belongs to another version of JAX.

    >>> compile_for("v5e:2x2", jax.numpy.dot, jax.numpy.ones((8, 8)), jax.numpy.ones((8, 8))).flops  # doctest: +SKIP
    1024
    """
    machine, _ = machine_of(device)
    checks.check_function("function", function, "of arrays, as jax.jit takes one")
    chips = devices_of(device)
    begin = time.perf_counter()
    lowered, num_devices = _lowered(device, chips, function, args)
    try:
        with quiet_plugins():
            program = lowered.compile()
            text, memory = program.as_text(), program.memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        missing = _missing_bytes(str(error))
        if missing is None:
            raise
        used = Memory(0, machine.memory_bytes + missing, 0)
        counts = ("passes", "kernels", "flops", "bytes_accessed", "all_reduces", "host_transfers", "limits")
        unknown: dict[str, Any] = dict.fromkeys(counts)
        spent = {"seconds": time.perf_counter() - begin, "text": ""}
        return Compiled(device, num_devices, used, -missing, **unknown, **spent)
    seconds = time.perf_counter() - begin
    work = hottest_work(text, machine.platform == "cuda")
    used = Memory(
        memory.argument_size_in_bytes,
        memory.temp_size_in_bytes,
        memory.output_size_in_bytes - memory.alias_size_in_bytes,
    )
    counts = (work.passes, work.kernels, sum(work.flops.values()), work.bytes_accessed, work.all_reduces)
    spare = machine.memory_bytes - sum(used) - memory.generated_code_size_in_bytes
    limits = _limits(machine, work)
    return Compiled(device, num_devices, used, spare, *counts, work.host_transfers, limits, seconds, text)


def _limits(machine: Machine, work: Any) -> Limits:
    half = work.flops.get("bf16", 0) + work.flops.get("f16", 0)
    rest = sum(work.flops.values()) - half
    return Limits(
        half / machine.flops_per_second + rest / machine.float32_flops_per_second,
        work.bytes_accessed / machine.bytes_per_second,
        2 * work.network_bytes / machine.network_bytes_per_second,
        work.kernels * machine.launch_seconds,
    )


def _lowered(device: str, chips: tuple[Any, ...], function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """The function lowered for the devices, and their number."""
    meshes = [jax.sharding.get_mesh(), jax.sharding.get_abstract_mesh()]
    meshes += [leaf.sharding.mesh for leaf in jax.tree.leaves(args) if _is_spread(leaf)]
    mesh = next((each for each in meshes if not each.empty), None)
    if mesh is not None:
        mesh = _mesh_of(device, chips, mesh)
    plain = SingleDeviceSharding(chips[0]) if mesh is None else NamedSharding(mesh, PartitionSpec())

    def described(leaf: Any) -> Any:
        if not hasattr(leaf, "dtype") or not hasattr(leaf, "shape"):
            return leaf
        spec = leaf.sharding.spec if _is_spread(leaf) else None
        sharding = plain if mesh is None or spec is None else NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=sharding, weak_type=getattr(leaf, "weak_type", False)
        )

    jitted: Any = function if hasattr(function, "lower") else jax.jit(function)
    abstract = jax.tree.map(described, args)
    if mesh is None:
        traced = jitted.trace(*abstract)
    else:
        with jax.set_mesh(mesh):
            traced = jitted.trace(*abstract)
    called = sorted(set(_callbacks(traced.jaxpr.jaxpr)))
    if called:
        raise ValueError(
            f"function must not call the host, which an accelerator would wait for at each step; got "
            f"{', '.join(called)}: leave it out of the compiled program"
        )
    return traced.lower(), 1 if mesh is None else mesh.size


def _is_spread(leaf: Any) -> bool:
    return isinstance(getattr(leaf, "sharding", None), NamedSharding)


def _mesh_of(device: str, chips: tuple[Any, ...], mesh: Mesh | AbstractMesh) -> Mesh:
    """The same axes over the devices that are compiled for."""
    if isinstance(mesh, Mesh) and set(mesh.devices.flat) <= set(chips):
        return mesh
    if mesh.size > len(chips):
        raise ValueError(f"device {device!r} has {len(chips)} devices; got a mesh of {mesh.size}: name a larger layout")
    sizes = tuple(mesh.shape.values())
    return jax.make_mesh(sizes, mesh.axis_names, axis_types=mesh.axis_types, devices=chips[: mesh.size])


def _callbacks(jaxpr: Any) -> list[str]:
    """What in a program calls the host: the primitive of JAX, and the function where it can be told."""
    found = []
    for equation in jaxpr.eqns:
        name, parameters = equation.primitive.name, equation.params
        if "callback" in name or name == "debug_print":
            function = parameters.get("callback")
            function = getattr(function, "callback_func", function)
            if inspect.isfunction(function):  # of jax.debug.callback, which wraps what it is given
                function = inspect.getclosurevars(function).nonlocals.get("callback", function)
            found.append(f"{name} of {getattr(function, '__name__', repr(parameters.get('fmt', 'a function')))}")
        for value in jax.tree.leaves(parameters, is_leaf=_is_program):
            if _is_program(value):  # of a loop, a branch or a function
                found += _callbacks(getattr(value, "jaxpr", value))
    return found


def _is_program(value: Any) -> bool:
    return hasattr(value, "eqns")


def _missing_bytes(message: str) -> int | None:
    """By how much a program exceeds the memory, as the compiler says where it gives up."""
    sizes = [int(float(size) * 1024 ** " KMGT".index(unit or " ")) for size, unit in re.findall(_SIZE, message)]
    if "RESOURCE_EXHAUSTED" not in message or not sizes:
        return None
    by = re.search(rf"by {_SIZE}", message)
    return int(float(by[1]) * 1024 ** " KMGT".index(by[2] or " ")) if by else abs(sizes[0] - sizes[1])
