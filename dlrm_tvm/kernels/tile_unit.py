"""AMX's eight tile registers as statements: on the hardware, or emulated by loops for CPUs that have none.

A tile holds up to 16 rows of 64 bytes, 16 words each. Registers are ours to choose: 0 to 3 hold sums, 4 and 5 rows of
activations (A), 6 and 7 weights (B), whose line k holds word k of 16 outputs. Scalar meaning, over rows m, lanes n and
words k of a tile (Intel SDM, volume 2, TDPBF16PS and TDPB[SU][SU]D):

    dot_bf16      even[n] = sum_k A[m][k].bf16[0] * B[k][n].bf16[0], odd[n] likewise of bf16[1], each fused from 0 on;
                  C[m][n] += even[n] + odd[n]; denormals count as 0
    dot_unsigned  C[m][n] += sum over k and b < 4 of A[m][k].u8[b] * B[k][n].s8[b], as int32        tdpbusd
    dot_signed    the same of A[m][k].s8[b]                                                         tdpbssd

The plain intrinsics are used, not LLVM's `.internal` ones: registers stay where they are put and nothing is spilled.
A thread must have configured its tiles before it uses them, and the kernel must have granted the process the tile
state (machine/tile_state.py): else the first instruction ends it.
"""

from __future__ import annotations

from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from .vectors import LANES, broadcast, fma, load, store, zeros

TILE_ROWS = 16
TILE_WORDS = TILE_ROWS * LANES
SUMS, A, B = (0, 1, 2, 3), (4, 5), (6, 7)
# Linux's arch_prctl(ARCH_REQ_XCOMP_PERM, the state's number), as machine/tile_state.py asks.
ARCH_PRCTL, REQUEST, TILE_DATA = 158, 0x1023, 18
DOTS = {"bf16": "tdpbf16ps", "unsigned": "tdpbusd", "signed": "tdpbssd"}


def tile_ir(*rows: int) -> str:
    """LLVM IR of the helpers that TileUnits of so many rows call."""
    parts = [
        "declare void @llvm.x86.ldtilecfg(ptr)",
        "declare void @llvm.x86.tilerelease()",
        "declare void @llvm.x86.tileloadd64(i8 immarg, ptr, i64)",
        "declare void @llvm.x86.tileloaddt164(i8 immarg, ptr, i64)",
        "declare void @llvm.x86.tilestored64(i8 immarg, ptr, i64)",
        "declare void @llvm.x86.tilezero(i8 immarg)",
        *(f"declare void @llvm.x86.{name}(i8 immarg, i8 immarg, i8 immarg)" for name in DOTS.values()),
        "attributes #1 = { alwaysinline nounwind }",
    ]
    for count in sorted(set(rows)):
        name = f"dlrm_tiles_{count}"
        parts.append(f"@{name} = private unnamed_addr constant [64 x i8] [{_configuration(count)}], align 64")
        parts.append(_helper(f"configure_{count}", "", f"ldtilecfg(ptr @{name})"))
    parts.append(_helper("release", "", "tilerelease()"))
    for register in range(8):
        place = "ptr %p, i64 %stride"
        for name, intrinsic in (("load", "tileloadd64"), ("stream", "tileloaddt164"), ("store", "tilestored64")):
            parts.append(_helper(f"{name}_{register}", place, f"{intrinsic}(i8 {register}, {place})"))
        parts.append(_helper(f"zero_{register}", "", f"tilezero(i8 {register})"))
    for kind, intrinsic in DOTS.items():
        for c in SUMS:
            for a in A:
                for b in B:
                    parts.append(_helper(f"{kind}_{c}_{a}_{b}", "", f"{intrinsic}(i8 {c}, i8 {a}, i8 {b})"))
    return "\n".join(parts) + "\n"


def _configuration(rows: int) -> str:
    """64 bytes: palette 1, then bytes per row of 8 registers (and 8 unused ones), then their rows. B's have 16."""
    columns = [byte for _ in range(8) for byte in (64, 0)] + [0] * 16
    by_register = [TILE_ROWS if register in B else rows for register in range(8)]
    return ", ".join(f"i8 {byte}" for byte in [1, 0, *[0] * 14, *columns, *by_register, *[0] * 8])


def _helper(name: str, arguments: str, call: str) -> str:
    return (
        f"define linkonce_odr void @dlrm_tile_{name}({arguments}) #1 {{\n  call void @llvm.x86.{call}\n  ret void\n}}"
    )


class TileUnit:
    """Emits tile statements. rows: of activations and sums; emulated: by loops over a buffer that stands for the
    registers, which belongs to the task that allocates it.

    Indices are those of the tile's first word; `stride` is the distance between two of its rows in words.
    """

    def __init__(self, rows: int, *, emulated: bool) -> None:
        self.rows = rows
        self._registers = T.alloc_buffer((8 * TILE_WORDS,), "int32", scope="global") if emulated else None

    def configure(self) -> None:
        """Before any other statement of a task: the registers are the thread's own."""
        if self._registers is None:
            _call(f"configure_{self.rows}")
        else:
            for register in range(8):
                self.zero(register)

    def release(self) -> None:
        """At the end of a task: a thread whose tiles are in use costs 8 KB at each switch of threads."""
        if self._registers is None:
            _call("release")

    def load(self, register: int, buffer, index, *, stride: int = LANES, streamed: bool = False) -> None:
        """streamed: with the hint that the lines are not used again, so that they push nothing out of L1."""
        if self._registers is None:
            _call(f"{'stream' if streamed else 'load'}_{register}", T.address_of(buffer[index]), T.int64(4 * stride))
            return
        with T.serial(self._rows_of(register)) as row:
            self._set(register, row, T.reinterpret(f"int32x{LANES}", load(buffer, index + row * stride)))

    def store(self, register: int, buffer, index, *, stride: int = LANES) -> None:
        if self._registers is None:
            _call(f"store_{register}", T.address_of(buffer[index]), T.int64(4 * stride))
            return
        with T.serial(self._rows_of(register)) as row:
            store(buffer, index + row * stride, T.reinterpret(f"float32x{LANES}", self._line(register, row)))

    def zero(self, register: int) -> None:
        if self._registers is None:
            _call(f"zero_{register}")
            return
        with T.serial(TILE_ROWS) as row:
            self._set(register, row, broadcast(T.int32(0)))

    def dot(self, kind: str, c: int, a: int, b: int) -> None:
        """kind: one of DOTS."""
        if self._registers is None:
            _call(f"{kind}_{c}_{a}_{b}")
        elif kind == "bf16":
            self._dot_bf16(c, a, b)
        else:
            self._dot_bytes(c, a, b, signed=kind == "signed")

    def _rows_of(self, register: int) -> int:
        return TILE_ROWS if register in B else self.rows

    def _at(self, register: int, row):
        return register * TILE_WORDS + row * LANES

    def _line(self, register: int, row):
        return load(self._registers, self._at(register, row))

    def _set(self, register: int, row, line) -> None:
        store(self._registers, self._at(register, row), line)

    def _dot_bf16(self, c: int, a: int, b: int) -> None:
        high, bits = T.int32(-(1 << 16)), T.int32(16)
        with T.serial(self.rows) as row:
            sums = T.alloc_buffer((2 * LANES,), "float32", scope="local")
            for half in range(2):
                store(sums, half * LANES, zeros())
            with T.serial(TILE_ROWS) as k:
                x, w = T.bind(self._registers[self._at(a, row) + k]), T.bind(self._line(b, k))
                pairs = (
                    (T.shift_left(x, bits), T.shift_left(w, broadcast(bits))),
                    (T.bitwise_and(x, high), T.bitwise_and(w, broadcast(high))),
                )
                for half, (left, right) in enumerate(pairs):
                    left, right = T.reinterpret("float32", left), T.reinterpret(f"float32x{LANES}", right)
                    store(sums, half * LANES, fma(broadcast(left), right, load(sums, half * LANES)))
            old = T.reinterpret(f"float32x{LANES}", self._line(c, row))
            new = old + (load(sums, 0) + load(sums, LANES))
            self._set(c, row, T.reinterpret(f"int32x{LANES}", new))

    def _dot_bytes(self, c: int, a: int, b: int, *, signed: bool) -> None:
        with T.serial(self.rows) as row, T.serial(TILE_ROWS) as k:
            x, w = T.bind(self._registers[self._at(a, row) + k]), T.bind(self._line(b, k))
            total = self._line(c, row)
            for byte in range(4):
                up, down = T.int32(24 - 8 * byte), T.int32(24)
                left = T.shift_right(T.shift_left(x, up), down)
                left = left if signed else T.bitwise_and(left, T.int32(255))
                right = T.shift_right(T.shift_left(w, broadcast(up)), broadcast(down))
                total = total + broadcast(left) * right
            self._set(c, row, total)


def _call(name: str, *arguments) -> None:
    T.evaluate(T.call_extern("void", f"dlrm_tile_{name}", *arguments))


def ask_for_tiles(slots: int):
    """A TIR function f(answers [slots] int64): every thread of the pool asks the kernel for the tile state, 0 is yes.

    The process has asked before; kernels were seen on which a thread that had not asked itself was ended all the same.
    """
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("ask_for_tiles")
        T.func_attr({"tirx.noalias": True})
        answers = T.arg("answers", T.buffer((slots,), "int64"))
        threads = T.bind(T.max(1, T.call_packed("runtime.NumThreads")))
        with T.parallel(threads) as thread:
            asked = T.call_extern("int64", "syscall", *map(T.int64, (ARCH_PRCTL, REQUEST, TILE_DATA)))
            T.buffer_store(answers, asked, [thread])
    return builder.get()


def touch(buffer, size: int) -> None:
    """Show TVM both ends of a scratch buffer that tiles are stored to: it cuts a buffer down to what it sees accessed,
    and an address counts as one element."""
    store(buffer, 0, zeros())
    store(buffer, size - LANES, zeros())
