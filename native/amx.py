"""Proof from machine code that ggml's AMX tile configuration is complete.

GCC 12 drops most of it (patches/0001), and only a CPU with AMX would show it, by killing the process.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

from native.source import BuildError

# ldtilecfg reads 64 bytes: palette, start row, 14 reserved, colsb[16] of two bytes, rows[16] of one byte.
# ggml uses eight tiles, so these bytes must have been given something other than zero.
REQUIRED = frozenset(range(16, 32)) | frozenset(range(48, 56))

_BRANCH = re.compile(r"(j\w+|call\w*|ret\w*)\b")
_LOAD_CONFIG = re.compile(r"ldtilecfg\s+(-?\w*)\((%\w+)\)$")
_STORE = re.compile(r"(v?mov\w*)\s+(%\w+|\$-?\w+),(-?\w*)\((%\w+)\)$")
_ZEROING = re.compile(r"v?p?xor\w*\s+(%\w+),\1(?:,(%\w+))?$")
_DESTINATION = re.compile(r".*,(%\w+)$")
_SUFFIXES = {"b": 1, "w": 2, "l": 4, "q": 8}


def check_objects(objects: Iterable[Path]) -> int:
    """Raise BuildError if an object loads an incomplete tile configuration; return how many use AMX."""
    found = 0
    for path in sorted(objects):
        command = ["objdump", "--disassemble", "--no-show-raw-insn", str(path)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        configurations = missing_bytes(text)
        found += bool(configurations)
        if any(configurations):
            raise BuildError(
                f"the compiler dropped the AMX tile configuration in {path.name}: the library would die with "
                "SIGILL on a CPU with AMX; 0001-amx-keep-tile-config.patch is missing or has no effect here"
            )
    return found


def missing_bytes(disassembly: str) -> list[frozenset[int]]:
    """For each ldtilecfg in objdump's output, the bytes of its operand that should be set and are not."""
    result = []
    zero: set[str] = set()  # registers last set by xor-ing them with themselves
    stored: set[tuple[str, int]] = set()  # base register and offset of each byte set since the last branch
    for line in disassembly.splitlines():
        instruction = re.sub(r"\s*(#.*)?$", "", line.partition("\t")[2].strip())
        if line.endswith(">:") or _BRANCH.match(instruction):
            stored.clear()
            if not instruction.startswith("j"):
                zero.clear()
        elif load := _LOAD_CONFIG.match(instruction):
            first = int(load[1] or "0", 16)
            missing = {byte for byte in REQUIRED if (load[2], first + byte) not in stored}
            # Constant data, which the compiler cannot have dropped, is addressed from %rip.
            result.append(frozenset() if load[2] == "%rip" else frozenset(missing))
        elif store := _STORE.match(instruction):
            mnemonic, value, offset, base = store.groups()
            if value != "$0x0" and _whole(value) not in zero:
                first = int(offset or "0", 16)
                stored.update((base, first + byte) for byte in range(_width(mnemonic, value)))
        elif zeroing := _ZEROING.match(instruction):
            zero.add(_whole(zeroing[2] or zeroing[1]))
        elif destination := _DESTINATION.match(instruction):
            zero.discard(_whole(destination[1]))
    return result


def _whole(register: str) -> str:
    """One name for all the parts of a register: zeroing %xmm0 or %eax clears the rest of it too."""
    register = re.sub(r"^%[xyz]mm", "%mm", register)
    register = re.sub(r"^(%r\d+)[dwb]$", r"\1", register)
    return re.sub(r"^%[er](?=[a-z]{2}$)", "%", register)


def _width(mnemonic: str, value: str) -> int:
    """Bytes that a move of `value` to memory writes."""
    if value.startswith("$"):
        return _SUFFIXES[mnemonic[-1]]
    if vector := re.match(r"%([xyz])mm", value):
        return {"movd": 4, "movq": 8}.get(mnemonic.removeprefix("v"), {"x": 16, "y": 32, "z": 64}[vector[1]])
    if re.match(r"%r(\d+|[a-z]{2})$", value):
        return 8
    if re.match(r"%(e[a-z]{2}|r\d+d)$", value):
        return 4
    return 1 if re.match(r"%([a-d][lh]|[sd]il|[sb]pl|r\d+b)$", value) else 2
