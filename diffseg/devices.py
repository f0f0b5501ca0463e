"""Where and how exactly things are computed: devices, precisions, guards of float32, memory, slices. Only torch."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from diffseg.errors import UserError


def resolve_device(device: str | torch.device) -> torch.device:
    """The torch device that "auto", "cpu", "cuda", "cuda:1" ... means here.

    Raises:
        UserError: not a device, or one that this machine lacks.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError:
        raise UserError(f"{device!r} is not a device: use auto, cpu, cuda or cuda:N") from None
    try:
        torch.empty(1, device=place)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise UserError(
            f"device {device!r} is not there ({torch.cuda.device_count()} CUDA devices found): use cpu or auto"
        ) from None
    return place


def resolve_dtype(dtype: torch.dtype | str | None, place: torch.device) -> torch.dtype:
    """The precision of a model's weights on `place`; None: float32 on the CPU, float16 elsewhere.

    Raises:
        UserError: a name other than float32, float16 and bfloat16.
    """
    if dtype is None:
        return torch.float32 if place.type == "cpu" else torch.float16
    allowed = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    if isinstance(dtype, str) and dtype not in allowed:
        raise UserError(f"dtype must be one of {', '.join(allowed)}, got {dtype!r}")
    return allowed[dtype] if isinstance(dtype, str) else dtype


def fast_half(dtype: torch.dtype, place: torch.device) -> bool:
    """Whether float16 or bfloat16 are what this device computes well in.

    On a CPU that is where oneDNN, which torch calls for products and convolutions, has them. Elsewhere, as with
    bfloat16 on a CPU that has AVX2 only, a convolution takes hundreds of times as long as in float32.
    """
    if place.type != "cpu":
        return True
    if not torch.backends.mkldnn.is_available():
        return False
    onednn = torch.ops.mkldnn
    return onednn._is_mkldnn_fp16_supported() if dtype == torch.float16 else onednn._is_mkldnn_bf16_supported()


def slow_dtype(dtype: torch.dtype, place: torch.device) -> str:
    """What to say of a precision that is slow on this device; "" where it is not."""
    if dtype == torch.float32 or fast_half(dtype, place):
        return ""
    other = "bfloat16 is the half precision to use here" if fast_half(torch.bfloat16, place) else "use float32"
    return f"{str(dtype).removeprefix('torch.')} is ten times slower than float32 on this CPU, and more: {other}"


@contextmanager
def full_float32() -> Iterator[None]:
    """Products and convolutions of float32 in float32, also where a program allows TF32 or bfloat16.

    Distances need it; and of convolutions torch allows TF32 unless told otherwise.
    """
    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):  # torch before 2.9
        before, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)
            torch.backends.cudnn.allow_tf32 = convolutions
        return
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul, torch.backends.cudnn.conv)  # type: ignore[attr-defined]
    allowed = [backend.fp32_precision for backend in backends]
    for backend in backends:
        backend.fp32_precision = "ieee"
    try:
        yield
    finally:
        for backend, precision in zip(backends, allowed, strict=True):
            backend.fp32_precision = precision


def free_bytes(device: torch.device, root: Path = Path("/")) -> int | None:
    """Memory in bytes that can still be had on a device; None: it does not say.

    root: of the file system in which Linux says so.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free_kib = _stated(root / "proc/meminfo", r"^MemAvailable:\s+(\d+)") if device.type == "cpu" else None
    if free_kib is None:
        return None
    group = root / "sys/fs/cgroup"  # of this process, where a container has limits
    limit, used = (_stated(group / name, r"^(\d+)$") for name in ("memory.max", "memory.current"))
    if limit is None or used is None:
        return free_kib << 10
    cached = _stated(group / "memory.stat", r"^inactive_file (\d+)$") or 0  # counted as used, but given back
    return min(free_kib << 10, limit - used + cached)


def _stated(file: Path, pattern: str) -> int | None:
    """The number that a line of a file states; None: there is no such file or line."""
    try:
        found = re.search(pattern, file.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) if found else None


def without(faster: str, deviation: Callable[[], float], tolerance: float, instead: str) -> bool:
    """Whether to go without something faster, because a small case fails or comes out wrong; then a warning says why.

    Args:
        faster: what it is, and where. deviation: runs the case, gives how far off the result is; whatever it raises, of
            a compiler, a driver or a missing library, is a reason to go without. instead: what is used then.
    """
    try:
        wrong = deviation()
        reason = f"its result is off by {wrong:.2g}" if not wrong <= tolerance else ""
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0] or type(error).__name__
    if reason:
        warnings.warn(f"{faster} ({reason}): {instead} is slower, and right", RuntimeWarning, stacklevel=3)
    return bool(reason)


def slice_bytes(device: torch.device) -> int:
    """Bytes worth working on at a time: on a CPU what stays in its cache, elsewhere enough to keep the device busy."""
    return 8 << 20 if device.type == "cpu" else 1 << 30
