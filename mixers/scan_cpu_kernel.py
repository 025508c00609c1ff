# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# (an emitter takes a dozen LLVM values, a kernel a dozen arrays: the docstrings say what they are)
"""Numba kernels of the CPU selective scan, forward and hand-written backward, float32.

How the work is laid out, and why:

* LANES channels sit in the lanes of one vector and every channel runs its own recurrence, so nothing is ever
  summed across lanes in the forward pass. The states of a group (8, 4 or 1 of them) stay in registers.
* The outer loop goes over chunks of CHUNK tokens and the inner one over blocks of channels, so that the rows
  of `u`, `delta`, `B` and `C` of a chunk are read while they are in cache.
* Forward keeps the state at the start of every chunk. Backward goes from the last chunk to the first and
  recomputes what is inside, so that no (batch, length, dim, d_state) tensor exists.
* The gradients of B and C are sums over channels. They are collected as vectors, and reduced across the lanes
  once per chunk. The order of every sum depends on the shapes only, never on the number of threads.

Numba's vectoriser does not keep the states in registers, so the innermost loops are emitted as LLVM vector IR
by the intrinsics below. LLVM lowers it to whatever the machine has (AVX-512, AVX2, SSE, NEON).

All of this is one file because numba's cache on disk looks at the file of the cached function alone: after an
edit of emitters in another file, every process would go on with the old kernels.

Words: a *block* is LANES channels, a *slab* at most SLAB blocks, and an *item* one (batch, slab) pair, the
unit that threads share out. *Packed* is (..., blocks, n, LANES): channels last, padded to whole blocks. In
the kernels A, D, delta_bias and the states, (batch, chunks + 1, blocks, d_state, LANES), are packed.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import config, njit, types
from numba.core import cgutils
from numba.extending import intrinsic


def _lanes() -> int:
    """16 where LLVM will compile for AVX-512, 8 elsewhere (one AVX2 register, two of NEON's)."""
    settings: Any = config
    if settings.CPU_NAME is not None:  # the user compiles for another machine than this one
        features = settings.CPU_FEATURES or ""
    else:
        features = llvm.get_host_cpu_features().flatten()
    return 16 if "+avx512f" in features.split(",") else 8


LANES = _lanes()
CHUNK = 32
SLAB = 256 // LANES

_FLOAT = ir.FloatType()
_INT = ir.IntType(64)
_VECTOR = ir.VectorType(_FLOAT, LANES)
_BITS = ir.VectorType(ir.IntType(32), LANES)

_LOG2E = 1.4426950408889634
_LN2 = 0.6931471805599453
# 2**r - 1 over r, |r| <= 1/2: minimax in relative error, 9.1e-8
_EXP2 = (
    0.6931470036506653,
    0.24022242426872253,
    0.05550733953714371,
    0.009671512991189957,
    0.001326472032815218,
)
# log1p(e) / e - 1 over e, 0 <= e <= 1: minimax in relative error, 3.3e-8
_LOG1P = (
    -0.49999648332595825,
    0.3332132399082184,
    -0.2485717386007309,
    0.19153697788715363,
    -0.1375390738248825,
    0.07920590788125992,
    -0.0300667192786932,
    0.005365076009184122,
)


# ---- vectors of LANES floats, as seen by the emitters ------------------------------------------------------


class _Vector:
    """An LLVM value of type <LANES x float>; arithmetic on it emits instructions."""

    def __init__(self, builder: ir.IRBuilder, value: ir.Value) -> None:
        self.builder, self.value = builder, value

    def _lift(self, other: "_Vector | float") -> ir.Value:
        return other.value if isinstance(other, _Vector) else ir.Constant(_VECTOR, [float(other)] * LANES)

    # "contract" lets LLVM fuse a * b + c where the machine has an FMA; nothing may be re-associated
    def __add__(self, other: "_Vector | float") -> "_Vector":
        return _Vector(self.builder, self.builder.fadd(self.value, self._lift(other), flags=("contract",)))

    def __sub__(self, other: "_Vector | float") -> "_Vector":
        return _Vector(self.builder, self.builder.fsub(self.value, self._lift(other), flags=("contract",)))

    def __mul__(self, other: "_Vector | float") -> "_Vector":
        return _Vector(self.builder, self.builder.fmul(self.value, self._lift(other), flags=("contract",)))

    def __truediv__(self, other: "_Vector | float") -> "_Vector":
        return _Vector(self.builder, self.builder.fdiv(self.value, self._lift(other)))

    def at_least(self, floor: float) -> "_Vector":
        """max(self, floor), which leaves NaN as it is."""
        low = self.builder.fcmp_ordered("<", self.value, self._lift(floor))
        return _Vector(self.builder, self.builder.select(low, self._lift(floor), self.value))

    def without_dust(self) -> "_Vector":
        """Zero where |self| < 1e-30. A state without input decays into denormal numbers, which are slow."""
        small = self.builder.and_(
            self.builder.fcmp_ordered("<", self.value, self._lift(1e-30)),
            self.builder.fcmp_ordered(">", self.value, self._lift(-1e-30)),
        )
        return _Vector(self.builder, self.builder.select(small, self._lift(0.0), self.value))

    def where_negative(self, negative: "_Vector", otherwise: "_Vector") -> "_Vector":
        test = self.builder.fcmp_ordered("<", self.value, self._lift(0.0))
        return _Vector(self.builder, self.builder.select(test, negative.value, otherwise.value))


def _polynomial(x: _Vector, coefficients: tuple[float, ...]) -> _Vector:
    """1 + c0 x + c1 x^2 + ... by Horner's rule."""
    value = x * coefficients[-1] + coefficients[-2]
    for c in reversed((1.0, *coefficients[:-2])):
        value = value * x + c
    return value


def _exp2(z: _Vector) -> _Vector:
    """2**z for z <= 0, relative error below 2e-7; results under 2**-126 are 2**-126."""
    z = z.at_least(-126.0)
    builder = z.builder
    # adding 1.5 * 2**23 rounds z to an integer k and leaves k in the low bits of the sum
    magic = 12582912.0
    shifted = z + magic
    fraction = _polynomial(z - (shifted - magic), _EXP2)
    # k is added to the exponent field; the shift pushes the bits of `magic` itself out
    exponent = builder.shl(builder.bitcast(shifted.value, _BITS), ir.Constant(_BITS, [23] * LANES))
    bits = builder.add(builder.bitcast(fraction.value, _BITS), exponent)
    return _Vector(builder, builder.bitcast(bits, _VECTOR))


def _softplus(v: _Vector) -> tuple[_Vector, _Vector]:
    """(softplus(v), its derivative), both without overflow."""
    negated = v * -1.0
    e = _exp2(v.where_negative(v, negated) * _LOG2E)  # exp(-|v|)
    log1p = e * _polynomial(e, _LOG1P)
    one = e * 0.0 + 1.0
    return v.where_negative(log1p, v + log1p), v.where_negative(e, one) / (e + 1.0)


class _Emitter:
    """Loads, stores and loops on raw addresses. An index counts vectors, in `broadcast` floats."""

    def __init__(self, builder: ir.IRBuilder) -> None:
        self.builder = builder

    def _pointer(self, address: ir.Value, index: ir.Value | int, kind: ir.Type, floats: int) -> ir.Value:
        index = ir.Constant(_INT, index) if isinstance(index, int) else index
        offset = self.builder.mul(index, ir.Constant(_INT, 4 * floats))
        return self.builder.inttoptr(self.builder.add(address, offset), kind.as_pointer())

    def load(self, address: ir.Value, index: ir.Value | int) -> _Vector:
        pointer = self._pointer(address, index, _VECTOR, LANES)
        return _Vector(self.builder, self.builder.load(pointer, align=4))

    def store(self, address: ir.Value, index: ir.Value | int, value: _Vector) -> None:
        self.builder.store(value.value, self._pointer(address, index, _VECTOR, LANES), align=4)

    def load_row(self, address: ir.Value, row: ir.Value, stride: ir.Value) -> _Vector:
        """LANES floats at float offset row * stride."""
        pointer = self._pointer(address, self.builder.mul(row, stride), _VECTOR, 1)
        return _Vector(self.builder, self.builder.load(pointer, align=4))

    def store_row(self, address: ir.Value, row: ir.Value, stride: ir.Value, value: _Vector) -> None:
        pointer = self._pointer(address, self.builder.mul(row, stride), _VECTOR, 1)
        self.builder.store(value.value, pointer, align=4)

    def broadcast(self, address: ir.Value, index: ir.Value) -> _Vector:
        scalar = self.builder.load(self._pointer(address, index, _FLOAT, 1))
        undefined = ir.Constant(_VECTOR, ir.Undefined)
        first = self.builder.insert_element(undefined, scalar, ir.Constant(ir.IntType(32), 0))
        mask = ir.Constant(_BITS, [0] * LANES)
        return _Vector(self.builder, self.builder.shuffle_vector(first, undefined, mask))

    def offset(self, index: ir.Value, factor: int, plus: int = 0) -> ir.Value:
        return self.builder.add(self.builder.mul(index, ir.Constant(_INT, factor)), ir.Constant(_INT, plus))

    def variable(self, value: _Vector) -> "_Variable":
        return _Variable(self.builder, value)

    def zero(self) -> _Vector:
        return _Vector(self.builder, ir.Constant(_VECTOR, [0.0] * LANES))

    @contextmanager
    def steps(self, count: ir.Value) -> Iterator[ir.Value]:
        with cgutils.for_range(self.builder, count, intp=_INT) as loop:
            yield loop.index

    @contextmanager
    def steps_back(self, count: ir.Value) -> Iterator[ir.Value]:
        last = self.builder.sub(count, ir.Constant(_INT, 1))
        with cgutils.for_range(self.builder, count, intp=_INT) as loop:
            yield self.builder.sub(last, loop.index)


class _Variable:
    """A vector carried round a loop. LLVM turns the stack slot into a register."""

    def __init__(self, builder: ir.IRBuilder, value: _Vector) -> None:
        self.builder = builder
        self.slot = cgutils.alloca_once(builder, _VECTOR)
        self.set(value)

    def get(self) -> _Vector:
        return _Vector(self.builder, self.builder.load(self.slot))

    def set(self, value: _Vector) -> None:
        self.builder.store(value.value, self.slot)


def _emitted(emit: Callable[..., None]) -> Any:
    """An intrinsic that takes a tuple of integers (counts, strides, addresses) and runs what `emit` emits."""

    @intrinsic
    def emitted(typingctx: Any, arguments: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            emit(_Emitter(builder), *cgutils.unpack_tuple(builder, values[0]))
            return context.get_dummy_value()

        return types.void(types.UniTuple(types.intp, len(arguments))), codegen

    return emitted


def _typed_address(typingctx: Any, array: Any, index: Any) -> Any:
    """The address of `array.ravel()[index]`, of a contiguous float32 array."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        data = cgutils.create_struct_proxy(signature.args[0])(context, builder, value=values[0]).data
        return builder.ptrtoint(builder.gep(data, [values[1]]), _INT)

    return types.intp(array, types.intp), codegen


_address: Any = intrinsic(_typed_address)


# ---- the innermost loops: one chunk, one block of channels -------------------------------------------------
# Scratch rows are in the order of the scan. `stride`, in floats, is that of the tensors: negative in reverse.


def _forward_stage(e, steps, u, delta, stride, D, bias, dt, x, y):
    """dt = softplus(delta + bias), x = dt u, y = D u."""
    skip, shift = e.load(D, 0), e.load(bias, 0)
    with e.steps(steps) as t:
        u_t = e.load_row(u, t, stride)
        dt_t, _ = _softplus(e.load_row(delta, t, stride) + shift)
        e.store(dt, t, dt_t)
        e.store(x, t, dt_t * u_t)
        e.store(y, t, skip * u_t)


def _forward_group(states: int) -> Callable[..., None]:
    def emit(e, steps, dt, x, y, A, B, C, stride, h_in, h_out):
        """h = exp(dt A) h + x B and y += h C for `states` states; A holds A log2(e)."""
        decay = [e.load(A, n) for n in range(states)]
        h = [e.variable(e.load(h_in, n)) for n in range(states)]
        with e.steps(steps) as t:
            dt_t, x_t, y_t = e.load(dt, t), e.load(x, t), e.load(y, t)
            row = e.builder.mul(t, stride)
            for n in range(states):
                at = e.offset(row, 1, n)
                h_n = _exp2(dt_t * decay[n]) * h[n].get() + x_t * e.broadcast(B, at)
                y_t = h_n * e.broadcast(C, at) + y_t
                h[n].set(h_n)
            e.store(y, t, y_t)
        for n in range(states):
            e.store(h_out, n, h[n].get().without_dust())

    return emit


def _backward_stage(e, steps, u, delta, grad_y, stride, bias, dt, x, dy, slope, dx, ddt):
    """Forward's dt and x again, dy = grad_y, slope = softplus', and dx = ddt = 0."""
    shift = e.load(bias, 0)
    with e.steps(steps) as t:
        dt_t, slope_t = _softplus(e.load_row(delta, t, stride) + shift)
        e.store(dt, t, dt_t)
        e.store(x, t, dt_t * e.load_row(u, t, stride))
        e.store(dy, t, e.load_row(grad_y, t, stride))
        e.store(slope, t, slope_t)
        e.store(dx, t, e.zero())
        e.store(ddt, t, e.zero())


def _backward_group(states: int) -> Callable[..., None]:
    def emit(e, steps, dt, x, dy, dx, ddt, A, B, C, stride, h_in, dh, dA, dB, dC, decay, before):
        """Recompute one chunk of `states` states from h_in, then send gradients back through it.

        dh is the gradient of the state after the chunk on entry, before it on exit. `decay` and `before` are
        scratch for exp(dt A) and for the state before each token; ddt lacks the factor ln 2.
        """
        A_n = [e.load(A, n) for n in range(states)]
        h = [e.variable(e.load(h_in, n)) for n in range(states)]
        with e.steps(steps) as t:
            dt_t, x_t, dy_t = e.load(dt, t), e.load(x, t), e.load(dy, t)
            row = e.builder.mul(t, stride)
            for n in range(states):
                at = e.offset(t, states, n)
                a = _exp2(dt_t * A_n[n])
                e.store(decay, at, a)
                e.store(before, at, h[n].get())
                h_n = a * h[n].get() + x_t * e.broadcast(B, e.offset(row, 1, n))
                e.store(dC, at, h_n * dy_t + e.load(dC, at))
                h[n].set(h_n)

        carry = [e.variable(e.load(dh, n)) for n in range(states)]
        grad_A = [e.variable(e.load(dA, n)) for n in range(states)]
        with e.steps_back(steps) as t:
            dt_t, x_t, dy_t = e.load(dt, t), e.load(x, t), e.load(dy, t)
            dx_t, ddt_t = e.load(dx, t), e.load(ddt, t)
            row = e.builder.mul(t, stride)
            for n in range(states):
                at = e.offset(t, states, n)
                g = dy_t * e.broadcast(C, e.offset(row, 1, n)) + carry[n].get()
                e.store(dB, at, g * x_t + e.load(dB, at))
                dx_t = g * e.broadcast(B, e.offset(row, 1, n)) + dx_t
                g = g * e.load(decay, at)
                carry[n].set(g)
                g = g * e.load(before, at)
                ddt_t = g * A_n[n] + ddt_t
                grad_A[n].set(g * dt_t + grad_A[n].get())
            e.store(dx, t, dx_t)
            e.store(ddt, t, ddt_t)
        for n in range(states):
            e.store(dh, n, carry[n].get().without_dust())
            e.store(dA, n, grad_A[n].get())

    return emit


def _backward_finish(e, steps, u, stride, D, dt, dy, slope, dx, ddt, du, ddelta, dD, dbias):
    """Gradients of u, delta, D and delta_bias from those of x and dt."""
    skip = e.load(D, 0)
    sum_D, sum_bias = e.variable(e.load(dD, 0)), e.variable(e.load(dbias, 0))
    with e.steps(steps) as t:
        u_t, dy_t, dx_t = e.load_row(u, t, stride), e.load(dy, t), e.load(dx, t)
        e.store_row(du, t, stride, dx_t * e.load(dt, t) + dy_t * skip)
        ddelta_t = (e.load(ddt, t) * _LN2 + dx_t * u_t) * e.load(slope, t)
        e.store_row(ddelta, t, stride, ddelta_t)
        sum_D.set(dy_t * u_t + sum_D.get())
        sum_bias.set(sum_bias.get() + ddelta_t)
    e.store(dD, 0, sum_D.get())
    e.store(dbias, 0, sum_bias.get())


def _copy_rows(e, steps, source, source_stride, target, target_stride):
    with e.steps(steps) as t:
        e.store_row(target, t, target_stride, e.load_row(source, t, source_stride))


def _sum_lanes(e, count, source, target):
    """target[i] = sum of the lanes of source vector i, for count * LANES vectors; source is left zero."""
    builder = e.builder
    even = ir.Constant(_BITS, list(range(0, 2 * LANES, 2)))
    odd = ir.Constant(_BITS, list(range(1, 2 * LANES, 2)))
    with e.steps(count) as i:
        vectors = []
        for j in range(LANES):
            at = e.offset(i, LANES, j)
            vectors.append(e.load(source, at))
            e.store(source, at, e.zero())
        # add neighbouring lanes of two vectors into one vector, until one is left
        while len(vectors) > 1:
            pairs = [(a.value, b.value) for a, b in zip(vectors[::2], vectors[1::2], strict=True)]
            vectors = [
                _Vector(builder, builder.shuffle_vector(*pair, even))
                + _Vector(builder, builder.shuffle_vector(*pair, odd))
                for pair in pairs
            ]
        e.store(target, i, vectors[0])


forward_stage = _emitted(_forward_stage)
forward_group_8 = _emitted(_forward_group(8))
forward_group_4 = _emitted(_forward_group(4))
forward_group_1 = _emitted(_forward_group(1))
backward_stage = _emitted(_backward_stage)
backward_group_8 = _emitted(_backward_group(8))
backward_group_4 = _emitted(_backward_group(4))
backward_group_1 = _emitted(_backward_group(1))
backward_finish = _emitted(_backward_finish)
copy_rows = _emitted(_copy_rows)
sum_lanes = _emitted(_sum_lanes)


# ---- the loops around them ---------------------------------------------------------------------------------


def _jit(function: Callable[..., Any]) -> Any:
    """Compile on the first call and keep the result: beside this file, else in the user's cache folder."""
    try:
        return njit(cache=True, nogil=True)(function)
    except RuntimeError:  # no folder can be written to: every process compiles anew
        return njit(nogil=True)(function)


@_jit
def _scratch(size: int) -> np.ndarray:
    """Zeros on a 64-byte boundary: an AVX-512 load across two cache lines costs two."""
    raw = np.zeros(size + 16, np.float32)
    start = (-_address(raw, 0) // 4) % 16
    return raw[start : start + size]


@_jit
def _pack(source: np.ndarray, scale: float) -> np.ndarray:
    """(dim, n) -> scale * source as flat (blocks, n, LANES); an empty source is all zeros."""
    dim, n = source.shape
    packed = _scratch((dim + LANES - 1) // LANES * LANES * n)
    for d in range(dim):
        for k in range(n):
            packed[(d // LANES * n + k) * LANES + d % LANES] = scale * source[d, k]
    return packed


@_jit
def _pack_states(source: np.ndarray, b: int, first: int, last: int, packed: np.ndarray, at: int) -> None:
    """Channels first .. last of source[b], (batch, dim, n) or of size zero for zeros -> packed[at:]."""
    n = source.shape[2]
    packed[at : at + (last - first + LANES - 1) // LANES * LANES * n] = 0.0
    if source.shape[0] > 0:
        for d in range(first, last):
            for k in range(n):
                packed[at + ((d - first) // LANES * n + k) * LANES + d % LANES] = source[b, d, k]


@_jit
def _unpack_states(packed: np.ndarray, at: int, b: int, first: int, last: int, target: np.ndarray) -> None:
    n = target.shape[2]
    for d in range(first, last):
        for k in range(n):
            target[b, d, k] = packed[at + ((d - first) // LANES * n + k) * LANES + d % LANES]


@_jit
def _group_size(left: int) -> int:
    return 8 if left >= 8 else 4 if left >= 4 else 1


@_jit
def _load_tail(flat: np.ndarray, first: int, steps: int, stride: int, width: int, target: np.ndarray) -> None:
    """Copy rows of fewer than LANES channels into whole vectors."""
    for t in range(steps):
        for lane in range(width):
            target[t * LANES + lane] = flat[first + t * stride + lane]


@_jit
def _store_tail(
    source: np.ndarray, flat: np.ndarray, first: int, steps: int, stride: int, width: int
) -> None:
    for t in range(steps):
        for lane in range(width):
            flat[first + t * stride + lane] = source[t * LANES + lane]


@_jit
def forward(
    u, delta, A, B, C, D, delta_bias, initial_state, reverse, keep,
    y, last_state, states, first_item, last_item,
):  # fmt: skip
    """Scan items first_item .. last_item.

    u, delta, y (batch, length, dim); A (dim, d_state); B, C (batch, length, d_state); D, delta_bias (dim, 1);
    initial_state, last_state (batch, dim, d_state), the former of size zero to start from zeros. With `keep`
    the state before chunk c goes to states[:, c]; without, `states` has one slot, which is overwritten.
    """
    _, length, dim = u.shape
    d_state = A.shape[1]
    blocks = (dim + LANES - 1) // LANES
    slabs = (blocks + SLAB - 1) // SLAB
    slots = states.shape[1]
    A_packed, D_packed, bias_packed = _pack(A, _LOG2E), _pack(D, 1.0), _pack(delta_bias, 1.0)
    dt, x, y_chunk = _scratch(CHUNK * LANES), _scratch(CHUNK * LANES), _scratch(CHUNK * LANES)
    u_tail, delta_tail = _scratch(CHUNK * LANES), _scratch(CHUNK * LANES)
    u_flat, delta_flat, y_flat, states_flat = u.ravel(), delta.ravel(), y.ravel(), states.ravel()
    direction = -1 if reverse else 1

    for item in range(first_item, last_item):
        b = item // slabs
        slab = item % slabs * SLAB
        slab_end = min(slab + SLAB, blocks)
        channels = slab * LANES, min(slab_end * LANES, dim)
        slot = (b * slots * blocks + slab) * d_state * LANES  # of this slab, in floats
        _pack_states(initial_state, b, channels[0], channels[1], states_flat, slot)

        for start in range(0, length, CHUNK):
            steps = min(CHUNK, length - start)
            token = b * length + (length - 1 - start if reverse else start)
            next_slot = slot + (blocks * d_state * LANES if keep else 0)
            for block in range(slab, slab_end):
                channel = block * LANES
                width = min(LANES, dim - channel)
                row = token * dim + channel
                if width == LANES:
                    inputs = (_address(u, row), _address(delta, row), direction * dim)
                else:
                    _load_tail(u_flat, row, steps, direction * dim, width, u_tail)
                    _load_tail(delta_flat, row, steps, direction * dim, width, delta_tail)
                    inputs = (_address(u_tail, 0), _address(delta_tail, 0), LANES)
                forward_stage((
                    steps, inputs[0], inputs[1], inputs[2],
                    _address(D_packed, channel), _address(bias_packed, channel),
                    _address(dt, 0), _address(x, 0), _address(y_chunk, 0),
                ))  # fmt: skip
                n = 0
                while n < d_state:
                    group = _group_size(d_state - n)
                    state = ((block - slab) * d_state + n) * LANES
                    arguments = (
                        steps, _address(dt, 0), _address(x, 0), _address(y_chunk, 0),
                        _address(A_packed, channel * d_state + n * LANES),
                        _address(B, token * d_state + n), _address(C, token * d_state + n),
                        direction * d_state,
                        _address(states, slot + state), _address(states, next_slot + state),
                    )  # fmt: skip
                    if group == 8:
                        forward_group_8(arguments)
                    elif group == 4:
                        forward_group_4(arguments)
                    else:
                        forward_group_1(arguments)
                    n += group
                if width == LANES:
                    copy_rows((steps, _address(y_chunk, 0), LANES, _address(y, row), direction * dim))
                else:
                    _store_tail(y_chunk, y_flat, row, steps, direction * dim, width)
            slot = next_slot
        _unpack_states(states_flat, slot, b, channels[0], channels[1], last_state)


@_jit
def backward(
    grad_y, grad_last_state, u, delta, A, B, C, D, delta_bias, reverse, states,
    du, ddelta, dA, dB, dC, dD, dbias, d_initial_state, first_item, last_item,
):  # fmt: skip
    """Backward of items first_item .. last_item, after `forward` with `keep`; shapes as there.

    grad_last_state may have size zero. dA (batch, blocks, d_state, LANES) and dD, dbias (batch, blocks, 1,
    LANES) must be zero on entry and are parts, to be summed over the batch. dB and dC (slabs, batch, length,
    d_state) are to be summed over the slabs.
    """
    batch, length, dim = u.shape
    d_state = A.shape[1]
    blocks = (dim + LANES - 1) // LANES
    slabs = (blocks + SLAB - 1) // SLAB
    slots = states.shape[1]
    A_packed, D_packed, bias_packed = _pack(A, _LOG2E), _pack(D, 1.0), _pack(delta_bias, 1.0)
    rows = CHUNK * LANES  # floats of one block in the scratch of a slab
    whole = min(SLAB, blocks) * rows
    dt, x, dy = _scratch(whole), _scratch(whole), _scratch(whole)
    slope, dx, ddt = _scratch(whole), _scratch(whole), _scratch(whole)
    u_tail, delta_tail, dy_tail = _scratch(rows), _scratch(rows), _scratch(rows)
    du_tail, ddelta_tail = _scratch(rows), _scratch(rows)
    decay, before = _scratch(8 * rows), _scratch(8 * rows)
    dB_lanes, dC_lanes = _scratch(8 * rows), _scratch(8 * rows)
    dB_sums, dC_sums = _scratch(8 * CHUNK), _scratch(8 * CHUNK)
    dh = _scratch(min(SLAB, blocks) * d_state * LANES)
    u_flat, delta_flat, grad_flat = u.ravel(), delta.ravel(), grad_y.ravel()
    du_flat, ddelta_flat, dB_flat, dC_flat = du.ravel(), ddelta.ravel(), dB.ravel(), dC.ravel()
    direction = -1 if reverse else 1

    for item in range(first_item, last_item):
        b = item // slabs
        slab = item % slabs * SLAB
        slab_end = min(slab + SLAB, blocks)
        channels = slab * LANES, min(slab_end * LANES, dim)
        _pack_states(grad_last_state, b, channels[0], channels[1], dh, 0)

        for chunk in range((length - 1) // CHUNK, -1, -1):
            start = chunk * CHUNK
            steps = min(CHUNK, length - start)
            token = b * length + (length - 1 - start if reverse else start)

            for block in range(slab, slab_end):
                channel = block * LANES
                width = min(LANES, dim - channel)
                row = token * dim + channel
                at = (block - slab) * rows
                if width == LANES:
                    inputs = (_address(u, row), _address(delta, row), _address(grad_y, row), direction * dim)
                else:
                    _load_tail(u_flat, row, steps, direction * dim, width, u_tail)
                    _load_tail(delta_flat, row, steps, direction * dim, width, delta_tail)
                    _load_tail(grad_flat, row, steps, direction * dim, width, dy_tail)
                    inputs = (_address(u_tail, 0), _address(delta_tail, 0), _address(dy_tail, 0), LANES)
                backward_stage((
                    steps, inputs[0], inputs[1], inputs[2], inputs[3], _address(bias_packed, channel),
                    _address(dt, at), _address(x, at), _address(dy, at), _address(slope, at),
                    _address(dx, at), _address(ddt, at),
                ))  # fmt: skip

            n = 0
            while n < d_state:
                group = _group_size(d_state - n)
                for block in range(slab, slab_end):
                    at = (block - slab) * rows
                    own = (block * d_state + n) * LANES
                    arguments = (
                        steps, _address(dt, at), _address(x, at), _address(dy, at), _address(dx, at),
                        _address(ddt, at), _address(A_packed, own),
                        _address(B, token * d_state + n), _address(C, token * d_state + n),
                        direction * d_state,
                        _address(states, (b * slots + chunk) * blocks * d_state * LANES + own),
                        _address(dh, own - slab * d_state * LANES),
                        _address(dA, b * blocks * d_state * LANES + own),
                        _address(dB_lanes, 0), _address(dC_lanes, 0), _address(decay, 0), _address(before, 0),
                    )  # fmt: skip
                    if group == 8:
                        backward_group_8(arguments)
                    elif group == 4:
                        backward_group_4(arguments)
                    else:
                        backward_group_1(arguments)
                vectors = (steps * group + LANES - 1) // LANES
                sum_lanes((vectors, _address(dB_lanes, 0), _address(dB_sums, 0)))
                sum_lanes((vectors, _address(dC_lanes, 0), _address(dC_sums, 0)))
                for t in range(steps):
                    at = (item % slabs * batch * length + token + direction * t) * d_state + n
                    for k in range(group):
                        dB_flat[at + k] = dB_sums[t * group + k]
                        dC_flat[at + k] = dC_sums[t * group + k]
                n += group

            for block in range(slab, slab_end):
                channel = block * LANES
                width = min(LANES, dim - channel)
                row = token * dim + channel
                at = (block - slab) * rows
                if width == LANES:
                    targets = (_address(u, row), _address(du, row), _address(ddelta, row), direction * dim)
                else:
                    _load_tail(u_flat, row, steps, direction * dim, width, u_tail)
                    targets = (_address(u_tail, 0), _address(du_tail, 0), _address(ddelta_tail, 0), LANES)
                backward_finish((
                    steps, targets[0], targets[3], _address(D_packed, channel),
                    _address(dt, at), _address(dy, at), _address(slope, at), _address(dx, at),
                    _address(ddt, at), targets[1], targets[2],
                    _address(dD, (b * blocks + block) * LANES), _address(dbias, (b * blocks + block) * LANES),
                ))  # fmt: skip
                if width < LANES:
                    _store_tail(du_tail, du_flat, row, steps, direction * dim, width)
                    _store_tail(ddelta_tail, ddelta_flat, row, steps, direction * dim, width)
        _unpack_states(dh, 0, b, channels[0], channels[1], d_initial_state)
