"""The AMX tile configuration, judged from machine code: no CPU with AMX is needed."""

from __future__ import annotations

import platform
import re
import struct
import subprocess
from pathlib import Path

import pytest

from native import amx
from native.source import BUILD, BuildError

GGML = BUILD / "source" / "ggml"
MMQ = GGML / "src/ggml-cpu/amx/mmq.cpp"
COLSB = (64, 64, 32, 32, 64, 64, 64, 64)
ROWS = (8, 8, 16, 16, 16, 16, 16, 16)
CONFIGURATION = struct.pack("<B15x8H16x8B8x", 1, *COLSB, *ROWS)

OURS = re.compile(r'^ *asm volatile\("" : : "m"\(tc\)\);.*\n', re.MULTILINE)

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="AMX is x86-64 only")


def patched() -> str:
    text = MMQ.read_text()
    assert OURS.search(text)
    return text


def unpatched() -> str:
    return OURS.sub("", patched())


def compile_kernels(text: str, folder: Path) -> Path:
    """Compile ggml's AMX kernels for Sapphire Rapids with the flags of a release build."""
    (folder / "mmq.cpp").write_text(text)
    options = ["-O3", "-DNDEBUG", "-std=gnu++17", "-fPIC", "-march=sapphirerapids"]
    include = [f"-I{GGML / name}" for name in ("include", "src", "src/ggml-cpu", "src/ggml-cpu/amx")]
    subprocess.run(["g++", *options, *include, "-c", "mmq.cpp", "-o", "mmq.cpp.o"], cwd=folder, check=True)
    return folder / "mmq.cpp.o"


def loaded_configuration(text: str, folder: Path) -> bytes:
    """Run ggml_tile_config_init with ldtilecfg replaced by a copy of the 64 bytes that it would read."""
    type_ = re.search(r"^struct tile_config_t\{.*?^\};", text, re.DOTALL | re.MULTILINE)
    function = re.search(r"^inline void ggml_tile_config_init\(void\) \{.*?^\}", text, re.DOTALL | re.MULTILINE)
    assert type_
    assert function
    program = f"""
        #include <immintrin.h>
        #include <cstdint>
        #include <cstdio>
        extern "C" {{ alignas(64) unsigned char seen[64]; }}
        {type_[0]}
        {function[0]}
        // Not in main, which GCC takes for cold code and optimises less.
        __attribute__((noinline)) void configure() {{ ggml_tile_config_init(); }}
        int main() {{ configure(); std::fwrite(seen, 1, sizeof(seen), stdout); }}
    """
    (folder / "config.cpp").write_text(program)
    options = ["-O3", "-DNDEBUG", "-std=gnu++17", "-mamx-tile", "-fno-pie"]
    subprocess.run(["g++", *options, "-S", "config.cpp", "-o", "config.s"], cwd=folder, check=True)
    assembly = (folder / "config.s").read_text()
    load = re.search(r"^\s*ldtilecfg\s+(-?\d*)\((%\w+)\)$", assembly, re.MULTILINE)
    assert load
    copies = [
        f"\tmovups {int(load[1] or 0) + byte}({load[2]}), %xmm15\n\tmovups %xmm15, seen+{byte}(%rip)\n"
        for byte in range(0, 64, 16)
    ]
    (folder / "config.s").write_text(assembly.replace(load[0], "".join(copies)))
    subprocess.run(["g++", "-no-pie", "config.s", "-o", "config"], cwd=folder, check=True)
    return subprocess.run([str(folder / "config")], capture_output=True, check=True).stdout


@pytest.fixture
def gcc_12() -> None:
    version = subprocess.run(["g++", "-dumpversion"], capture_output=True, text=True, check=True).stdout
    if not version.startswith("12"):
        pytest.skip(f"GCC 12 has the fault, this is {version.strip()}")


def test_patched_kernels_keep_the_configuration(tmp_path: Path) -> None:
    assert amx.check_objects([compile_kernels(patched(), tmp_path)]) == 1


@pytest.mark.usefixtures("gcc_12")
def test_the_check_sees_what_gcc_12_drops(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"dropped the AMX tile configuration in mmq\.cpp\.o"):
        amx.check_objects([compile_kernels(unpatched(), tmp_path)])


def test_the_configuration_loaded_is_the_one_written(tmp_path: Path) -> None:
    assert loaded_configuration(patched(), tmp_path) == CONFIGURATION


@pytest.mark.usefixtures("gcc_12")
def test_unpatched_gcc_12_loads_another_configuration(tmp_path: Path) -> None:
    assert loaded_configuration(unpatched(), tmp_path) != CONFIGURATION


@pytest.mark.parametrize(
    ("code", "complete"),
    [
        ("vmovdqa %ymm1,0x10(%rsp)\n\tmov %rdx,0x30(%rsp)", True),
        ("vpxor %xmm0,%xmm0,%xmm0\n\tvmovdqa64 %zmm0,(%rsp)", False),
        ("vpxor %xmm0,%xmm0,%xmm0\n\tvmovdqa64 %zmm0,(%rsp)\n\tvmovdqa %xmm1,0x10(%rsp)", False),
        ("vmovdqa64 %zmm1,(%rsp)", True),
        ("vmovdqa64 %zmm1,(%rbp)", False),
        ("vmovdqa64 %zmm1,(%rsp)\n\tjne 10 <f>", False),
        ("xor %edx,%edx\n\tvmovdqa %xmm1,0x10(%rsp)\n\tmov %rdx,0x30(%rsp)", False),
        ("vpxor %xmm1,%xmm1,%xmm1\n\tvmovdqa 0x0(%rip),%ymm1\n\tvmovdqa64 %zmm1,(%rsp)", True),
    ],
)
def test_stores_are_told_apart(code: str, complete: bool) -> None:
    lines = ["0000 <f>:", *(f"   0:\t{line.strip()}" for line in code.split("\n")), "   9:\tldtilecfg (%rsp)"]
    [missing] = amx.missing_bytes("\n".join(lines))
    assert (not missing) is complete
