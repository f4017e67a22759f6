"""`make test-isa`: the numeric tests, once for each instruction set that the libraries below can be told to keep to.

    .venv/bin/python -m tests.isa [--only NAME] [tests/models/test_losses.py …]

A test that passes on one processor alone is a fault. Each run imitates a kind of processor: every library is held to its instruction
set by a variable of the library's own, and a child asks each what it keeps to. A kind that this processor cannot imitate is left out,
with a line that says so. A library that does not heed its variable is a failure. If a test fails under a kind and passes on the processor
as it is, it runs again under each variable alone: that says with whose kernels it fails.

It cannot imitate another maker's rounding (ARM64), nor instructions that this processor lacks.
Exit codes: 0, 1 (a test failed, or a library did not heed its variable), 2 (no such kind).
"""

import argparse
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOGS = ROOT / ".cache" / "test-isa"
NUMERIC = ("dedup", "evaluation", "filters", "models", "tasks", "tokens", "training")
"""The rooms that compute, by torch, NumPy, Numba or a compiled tool. tests/test_isa.py holds that no other test does."""

Variables = Mapping[str, str]
Libraries = Mapping[str, tuple[Variables, str]]
"""For each library the variables that hold it to an instruction set, and what it then says."""


def libraries(torch: str, onednn: str, mkl: str, numba: str, openblas: str, numpy: str) -> Libraries:
    above = " ".join(NUMPY[NUMPY.index(numpy) + 1 :])
    return {
        "torch": ({"ATEN_CPU_CAPABILITY": torch.lower()}, torch),  # torch.compile's kernels too
        "oneDNN": ({"ONEDNN_MAX_CPU_ISA": onednn}, ONEDNN[onednn]),
        "MKL": ({"MKL_CBWR": mkl}, mkl),
        "Numba": ({"NUMBA_CPU_NAME": numba, "NUMBA_CPU_FEATURES": ""}, numba),
        "OpenBLAS": ({"OPENBLAS_CORETYPE": openblas}, openblas),
        "NumPy": ({"NPY_DISABLE_CPU_FEATURES": above} if above else {}, numpy),
    }


ONEDNN = {
    "SSE41": "Intel SSE4.1",
    "AVX2": "Intel AVX2",
    "AVX512_CORE": "Intel AVX-512 with AVX512BW, AVX512VL, and AVX512DQ extensions",
    "AVX512_CORE_BF16": "Intel AVX-512 with Intel DL Boost and bfloat16 support",
    "AVX512_CORE_AMX": "Intel AVX-512 with float16, Intel DL Boost and bfloat16 support"
    " and Intel AMX with bfloat16 and 8-bit integer support",
}
NUMPY = ("X86_V2", "X86_V3", "X86_V4", "AVX512_ICL", "AVX512_SPR")
PLAIN_LIBM = {"GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2,-FMA,-FMA4"}
"""Without FMA, glibc's exp, log, pow, sin and tanh end in other digits (glibc 2.36)."""


@dataclass(frozen=True)
class Kind:
    """A kind of processor: which flags of /proc/cpuinfo it takes to imitate it, and to what it holds the libraries."""

    name: str
    needs: str
    libraries: Libraries


AVX512 = "avx512f avx512bw avx512dq avx512vl"
KINDS = (
    Kind("as it is", "", {}),
    Kind(
        "SSE4.2",
        "sse4_2",
        {**libraries("DEFAULT", "SSE41", "COMPATIBLE", "nehalem", "Nehalem", "X86_V2"), "libm": (PLAIN_LIBM, "no FMA")},
    ),
    Kind("AVX2", "avx2 fma", libraries("AVX2", "AVX2", "AVX2", "haswell", "Haswell", "X86_V3")),
    Kind("AVX-512", AVX512, libraries("AVX512", "AVX512_CORE", "AVX512", "skylake-avx512", "SkylakeX", "X86_V4")),
    Kind(
        "AVX-512 BF16",
        f"{AVX512} avx512_bf16 avx512_vbmi2",
        libraries("AVX512", "AVX512_CORE_BF16", "AVX512", "cooperlake", "SkylakeX", "AVX512_ICL"),
    ),
    Kind(
        "AMX",
        f"{AVX512} avx512_bf16 avx512_fp16 amx_bf16 amx_int8",
        libraries("AVX512", "AVX512_CORE_AMX", "AVX512", "sapphirerapids", "SkylakeX", "AVX512_SPR"),
    ),
)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.isa", description="The numeric tests under each instruction set.")
    parser.add_argument("--only", metavar="NAME", choices=[kind.name for kind in KINDS], help="one kind of processor alone")
    parser.add_argument("tests", nargs="*", default=[f"tests/{room}" for room in NUMERIC], help="files or folders; all numeric tests")
    asked = parser.parse_args(arguments)
    flags, maker = processor()
    say("processor", f"{maker}, {os.cpu_count()} cores; {' '.join(asked.tests)}")
    is_sound, plain = True, set[str]()
    for kind in KINDS:
        if asked.only not in (None, kind.name):
            continue
        if lacking := [flag for flag in kind.needs.split() if flag not in flags]:
            say(kind.name, f"left out: this processor has no {', '.join(lacking)}")
            continue
        failed, is_well = judge(kind, maker, asked.tests, plain)
        plain = plain if kind.needs else failed
        is_sound &= is_well
    return 0 if is_sound else 1


def say(name: str, text: str) -> None:
    print(f"{name:<14}{text}", flush=True)


def processor() -> tuple[frozenset[str], str]:
    """Its flags, and who made it."""
    text = Path("/proc/cpuinfo").read_text()
    flags = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.M)
    maker = re.search(r"^vendor_id\s*:\s*(.*)$", text, re.M)
    return frozenset(flags[1].split() if flags else ()), maker[1] if maker else platform.machine()


def judge(kind: Kind, maker: str, tests: Sequence[str], plain: set[str]) -> tuple[set[str], bool]:
    """Run the tests as this kind, and print its lines: the tests that failed, and whether all is well. plain: those that fail anyway."""
    held = {name: each for name, each in kind.libraries.items() if name != "MKL" or maker == "GenuineIntel" or each[1] == "COMPATIBLE"}
    variables = {name: value for theirs, _ in held.values() for name, value in theirs.items()}
    said = ask(variables)
    log = LOGS / f"{kind.name.replace(' ', '-')}.log"
    start = time.monotonic()
    counts, failed, is_sound = run(tests, variables, log)
    say(kind.name, f"{counts} in {time.monotonic() - start:.0f} s")
    say("", ", ".join(f"{name}: {word}" for name, word in said.items()))
    if kind.libraries.keys() - held:
        say("", "MKL left as it is: on a processor of another maker than Intel it heeds COMPATIBLE alone")
    deaf = unheeded(held, said)
    for line in deaf:
        say("", f"NOT HEEDED {line}")
    for test, cause in causes(failed, held, plain).items():
        say("", f"FAILED {test}: {cause}")
    if not is_sound:
        say("", f"log {log}")
    return failed, is_sound and not deaf


def unheeded(held: Libraries, said: Mapping[str, str]) -> list[str]:
    """What libraries were told and do not do."""
    return [
        f"{' '.join(f'{name}={value}' for name, value in theirs.items())}: {library} says {said.get(library)!r}, {word!r} is expected"
        for library, (theirs, word) in held.items()
        if said.get(library) != word
    ]


def run(tests: Sequence[str], variables: Variables, log: Path) -> tuple[str, set[str], bool]:
    """pytest's count, the ids of tests that failed, and whether it ended well. Each run draws the same examples (CI)."""
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", "-n", str(min(len(tests), os.cpu_count() or 1)), "--no-loadscope-reorder", *tests]
    with log.open("w") as file:
        file.write(f"{' '.join(shlex.quote(f'{name}={value}') for name, value in variables.items())} {shlex.join(command)}\n")
        file.flush()
        done = subprocess.run(command, cwd=ROOT, env=os.environ | {"CI": "1"} | variables, stdout=file, stderr=subprocess.STDOUT)
    text = log.read_text()
    counts = re.findall(r"^=*\s*((?:\d+ \w+(?:, )?)+) in [\d.]+s", text, re.M)
    failed = set(re.findall(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", text, re.M))
    return counts[-1] if counts else f"pytest ended with {done.returncode}", failed, done.returncode == 0


def causes(failed: set[str], held: Libraries, plain: set[str]) -> dict[str, str]:
    """With whose kernels each test fails: those that fail under this kind alone run again under each library's variables alone."""
    found = dict.fromkeys(sorted(failed & plain), "as on the processor as it is")
    new = sorted(failed - plain)
    if not (new and held):
        return found | dict.fromkeys(new, "on the processor as it is")
    guilty = {name: run(new, variables, LOGS / f"{name}-alone.log")[1] for name, (variables, _) in held.items()}
    for test in new:
        names = [name for name, tests in guilty.items() if test in tests]
        found[test] = f"with {' and with '.join(names)} alone" if names else "with all of them together"
    return found


# ---------------------------------------------------------------- what the libraries say


def ask(variables: Variables) -> dict[str, str]:
    """What each library keeps to, in a process of its own, because they look once: when they are loaded."""
    verbose = {"MKL_VERBOSE": "1", "ONEDNN_VERBOSE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", "from tests.isa import tell; tell()"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | verbose | variables, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"`{shlex.join(command)}` ended with {done.returncode}: {done.stderr[-2000:]}")
    onednn, mkl = re.search(r"info,cpu,isa:(.*)", done.stdout), re.search(r"CNR:(\w+)", done.stdout)
    said = {"oneDNN": onednn[1] if onednn else "absent", "MKL": mkl[1] if mkl else "absent"}
    return {**json.loads(done.stdout.splitlines()[-1]), **said, "libm": libm(variables)}


def tell() -> None:
    """Make each library choose its kernels; oneDNN and MKL print theirs themselves. The last line is JSON."""
    import numpy as np
    import torch
    from numba.core.registry import cpu_target
    from numpy._core._multiarray_umath import __cpu_features__ as features  # where NumPy's own documentation sends its readers
    from threadpoolctl import threadpool_info

    torch.ones(64, 64) @ torch.ones(64, 64)  # MKL
    torch.nn.functional.conv2d(torch.ones(4, 16, 17, 17), torch.ones(8, 16, 3, 3))  # oneDNN
    np.ones((64, 64)) @ np.ones((64, 64))
    blas = {str(each["architecture"]) for each in threadpool_info() if each["internal_api"] == "openblas"}
    levels = [name for name in NUMPY if features.get(name)]
    said = {
        "torch": torch.backends.cpu.get_cpu_capability(),
        "Numba": cpu_target.target_context.codegen().magic_tuple()[1],
        "OpenBLAS": " and ".join(sorted(blas)) or "absent",
        "NumPy": levels[-1] if levels else "baseline",
    }
    print(f"\n{json.dumps(said)}")


def libm(variables: Variables) -> str:
    """Whether glibc's mathematics may use FMA: bit 12 of leaf 1's ECX, as its loader sees it."""
    loader = Path("/lib64/ld-linux-x86-64.so.2")
    if not loader.exists():
        return "unknown"
    told = subprocess.run([loader, "--list-diagnostics"], env=os.environ | variables, capture_output=True, text=True).stdout
    active = re.search(r"^x86\.cpu_features\.features\[0x0\]\.active\[0x2\]=(0x\w+)$", told, re.M)
    return "unknown" if active is None else "FMA" if int(active[1], 16) >> 12 & 1 else "no FMA"


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
