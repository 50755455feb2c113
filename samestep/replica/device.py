"""The device that a replica computes on, and what makes CUDA repeat its bits.

Under every strategy but `fast`, as torch.use_deterministic_algorithms has it (torch 2.13): matrix products in a
workspace of a fixed size (CUBLAS_WORKSPACE_CONFIG, which the engine sets before CUDA begins); sums by index in a fixed
order; attention by flash or memory-efficient kernels without splits of the keys in backward, never by cuDNN's; what has
no such kernel is refused. Nothing is chosen by a stopwatch. Under all strategies float32 is float32, never TF32.
"""

from typing import TYPE_CHECKING

import torch

from samestep.errors import ClusterError, RecipeError

if TYPE_CHECKING:
    from samestep.events import Event


def chosen(local: int, devices: int) -> int:
    """The device of the replica that is number `local` on its host: one each, and in turn where they are fewer."""
    return local % devices


def settle(kind: str, strategy: str, local: int) -> torch.device:
    """Make a device of a kind (cpu, cuda) this process's own. local: this replica's number on its host. ClusterError
    where there is no such device.
    """
    if kind == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ClusterError(missing(torch.version.cuda))
    device = torch.device("cuda", chosen(local, torch.cuda.device_count()))
    torch.cuda.set_device(device)
    repeatable(strategy != "fast")
    return device


def missing(built_for: str | None) -> str:
    """built_for: the CUDA that torch was built for, if any."""
    what = f"torch {torch.__version__} finds no GPU that it can use (samestep doctor says why)"
    if built_for is None:
        what = f"torch {torch.__version__} is a build for processors only; install one for CUDA"
    return f"compute.device is cuda, but {what}, or set compute.device=cpu, which trains another model bit for bit"


def repeatable(exact: bool) -> None:
    """Set this process's torch so that CUDA repeats its bits, where that is asked for."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = exact
    torch.use_deterministic_algorithms(exact)
    # All memory is written before it is read; filling it first would cost a pass over every new tensor.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def of(module: torch.nn.Module) -> torch.device:
    """Where its parameters are."""
    return next(module.parameters()).device


def finish(device: torch.device) -> None:
    """Block until all that was asked of it is computed."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def explained(error: Exception) -> Exception:
    """What CUDA alone raises, in one line that says what to do; other errors as they are."""
    first = (str(error).splitlines() or [""])[0]
    if isinstance(error, torch.OutOfMemoryError):
        return ClusterError(
            f"the GPU has no memory left ({first.split('. ')[0]}); lower batch.micro_batch (and raise accumulate), set "
            "compute.checkpointing=full, or let fewer replicas share it"
        )
    if isinstance(error, RuntimeError) and "does not have a deterministic implementation" in first:
        return RecipeError(
            f"{first.split(' does not')[0]} has no CUDA kernel that repeats its bits; use another model, "
            "compute.device=cpu, or sync.strategy=fast"
        )
    return error


def memory(device: torch.device) -> "Event":
    """Bytes of the device's memory that this process has now, and the most that it has had; nothing on processors."""
    if device.type == "cpu":
        return {}
    now, most = torch.cuda.memory_reserved(device), torch.cuda.max_memory_reserved(device)
    return {"device_memory": now, "device_peak": most}
