"""Compiles the fused kernels for GPUs that need not be there; prints what each takes, as JSON."""

import json
import re
import subprocess
import tempfile
from itertools import product
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from diffseg.fused import _add_mean, _channel_moments, _log_sums, _scaled_silu, _sum_of, tiles

POINTERS = {_log_sums: ("q", "k", "out"), _add_mean: ("q", "k", "log_sums", "out")}
TYPES = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16"}
TILE = {"ROWS": 64, "COLUMNS": 64}
DEPTHS = (40, 80, 160)  # channels a head of Stable Diffusion 1.x


def spilled(ptx: str, capability: int) -> int:
    """Bytes of registers that a kernel has no room for, by the assembler that Triton brings and that knows this PTX."""
    target = f"-arch=sm_{capability}" + ("a" if capability == 90 else "")
    folder = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        for ptxas in sorted(folder.glob("ptxas*")):
            command = [ptxas, "-v", target, file.name, "-o", "/dev/null"]
            report = subprocess.run(command, capture_output=True, text=True, check=False)
            if report.returncode == 0:
                return sum(map(int, re.findall(r"(\d+) bytes spill stores", report.stderr)))
    raise RuntimeError(f"no assembler in {folder} takes this PTX: {report.stderr}")


def main() -> None:
    """One line of JSON per kernel, type, number of channels and capability."""
    found = []
    for capability, dtype, depth, (kernel, pointers) in product((80, 89, 90), TYPES, DEPTHS, POINTERS.items()):
        constants = {"depth": depth, "heads": 8, **tiles(depth, 4096, dtype)}
        options = {name: constants.pop(name) for name in ("num_warps", "num_stages")}
        signature = {name: TYPES[dtype] if name in ("q", "k") else "*fp32" for name in pointers}
        signature |= dict.fromkeys(("rows", "keys"), "i32") | {"scale": "fp32"}
        signature |= dict.fromkeys(constants, "constexpr")
        aligned = {(i,): [["tt.divisibility", 16]] for i in range(len(pointers) + 2)}
        source = ASTSource(kernel, signature, constants, aligned)
        made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        what = {"kernel": kernel.__name__, "capability": capability, "dtype": str(dtype), "depth": depth}
        found.append({**what, "shared": made.metadata.shared, "spilled": spilled(made.asm["ptx"], capability)})
    blocks = {
        _channel_moments: {"x": 1, "means": 0, "squares": 0, "positions": "i32", "channels": "i32", "chunk": "i32"},
        _scaled_silu: {"x": 1, "scale": 0, "shift": 0, "out": 1, "positions": "i32", "channels": "i32"},
        _sum_of: {"x": 1, "y": 1, "bias": 1, "out": 1, "positions": "i32", "channels": "i32", "factor": "fp32"},
    }
    for capability, dtype, (kernel, signature) in product((80, 89, 90), TYPES, blocks.items()):
        kinds = {0: "*fp32", 1: TYPES[dtype]}
        whole = {name: kinds.get(kind, kind) for name, kind in signature.items()} | dict.fromkeys(TILE, "constexpr")
        aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind != "fp32"}
        source = ASTSource(kernel, whole, TILE, aligned)
        made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 4})
        what = {"kernel": kernel.__name__, "capability": capability, "dtype": str(dtype)}
        found.append({**what, "shared": made.metadata.shared, "spilled": spilled(made.asm["ptx"], capability)})
    print(json.dumps(found))


if __name__ == "__main__":
    main()
