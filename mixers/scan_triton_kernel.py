# mypy: ignore-errors
# (kernels are Triton's language in Python's syntax: the docstrings and comments say what the arguments are)
"""Triton kernels of the selective scan, forward and hand-written backward, float32 inside.

With Delta = softplus(delta + bias), decay a[t] = exp(Delta[t] A) and x[t] = Delta[t] u[t], forward is

    h[t] = a[t] h[t-1] + x[t] B[t]              y[t] = sum over n of C[t] h[t]  +  D u[t]

Backward carries e[t], the gradient of h[t] by way of the tokens after t, from the last token to the first:

    g[t]   = e[t] + dy[t] C[t]                  e[t-1] = a[t] g[t]
    dC[t]  = sum over d of dy[t] h[t]           dB[t]  = sum over d of g[t] x[t]
    q[t]   = sum over n of g[t] B[t]            p[t]   = e[t-1] h[t-1], the gradient of Delta[t] A
    du[t]  = D dy[t] + Delta[t] q[t]            dDelta[t] = u[t] q[t] + sum over n of A p[t]
    dA     = sum over t of Delta[t] p[t]        ddelta[t] = dDelta[t] sigmoid(delta[t] + bias)

and the gradients of D and bias are the sums of dy u and of ddelta over tokens.

How the work is laid out, and why:

* A program walks over the tokens of one (batch item, block of channels, *chunk* of tokens). Its state is a
  tile (BLOCK_N, BLOCK_D) in registers, 16 numbers per thread.
* Chunks run in parallel, in three phases: what each chunk makes of a zero state (`local_states`), the states
  at the boundaries from these (`carry`, which needs nothing but the sum of Delta over each chunk, as the
  decays of a chunk multiply to exp(A sum Delta)), and the outputs (`forward`). Backward does the same with e.
  One chunk needs the third phase only.
* `forward` keeps the state before every *segment* of a chunk. `backward` takes the segments from the last to
  the first; in each it walks forward once to note the state before every *group* of tokens, then takes the
  groups from the last to the first with the states of one group in registers.
* Nothing is added atomically. Sums over channels are written per block, and sums over tokens per chunk; the
  caller adds the parts, so that the order of every sum depends on the shapes only.

Layouts, all contiguous: u, delta, y and their gradients (batch, length, DIM); B, C (batch, length, D_STATE);
A and every state (..., D_STATE, DIM), channels last so that lanes read neighbours. Token t of the scan is
row length - 1 - t of the tensors when REVERSE.
"""

import triton
import triton.language as tl

_LOG2_E = tl.constexpr(1.4426950408889634)
_LN_2 = tl.constexpr(0.6931471805599453)


# ---- where a program works ---------------------------------------------------------------------------------


@triton.jit
def _locate(parts, DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """(batch item, block of channels, part of the sequence) of this program, of `parts` in each sequence."""
    program = tl.program_id(0).to(tl.int64)  # products with it may exceed 32 bits
    blocks: tl.constexpr = (DIM + BLOCK_D - 1) // BLOCK_D
    return program // (parts * blocks), program // parts % blocks, (program % parts).to(tl.int32)


@triton.jit
def _tile(block, DIM: tl.constexpr, D_STATE: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr):
    """Channels d (BLOCK_D,), states n (BLOCK_N,), and offsets and mask of a state tile (BLOCK_N, BLOCK_D)."""
    d = block * BLOCK_D + tl.arange(0, BLOCK_D)
    n = tl.arange(0, BLOCK_N)
    return d, n, n[:, None] * DIM + d[None, :], (n < D_STATE)[:, None] & (d < DIM)[None, :]


# ---- one token ---------------------------------------------------------------------------------------------


@triton.jit
def _token(batch, t, length, d, n, REVERSE: tl.constexpr, DIM: tl.constexpr, D_STATE: tl.constexpr):
    """Row of token t of the scan, and masks over d and n that are empty past the last token."""
    row = batch * length + (length - 1 - t if REVERSE else t)
    return row, (d < DIM) & (t < length), (n < D_STATE) & (t < length)


@triton.jit
def _read(tensor, row, columns, mask, COLUMNS: tl.constexpr):
    """Some columns of a row, float32, zero outside of the mask."""
    return tl.load(tensor + row * COLUMNS + columns, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _softplus(x):
    """log(1 + exp(x)) with a small relative error also where it is small, and its derivative.

    log1p(z) = 2 atanh(s) with s = z / (2 + z) <= 1/3, by its power series; log(1 + z) would lose the digits
    of z. What the series leaves out is below 2e-8 of the result.
    """
    z = tl.exp(-tl.abs(x))
    s = z / (2.0 + z)
    s2 = s * s
    series = 1.0 / 11.0 + s2 * (1.0 / 13.0)
    series = 1.0 / 7.0 + s2 * (1.0 / 9.0 + s2 * series)
    series = 1.0 + s2 * (1.0 / 3.0 + s2 * (1.0 / 5.0 + s2 * series))
    return tl.maximum(x, 0.0) + 2.0 * s * series, tl.where(x >= 0.0, 1.0, z) / (1.0 + z)


@triton.jit
def _step_size(delta, bias, row, d, mask, DIM: tl.constexpr):
    """Delta and the slope of softplus, (BLOCK_D,). Outside of the mask no time passes: Delta is zero."""
    size, slope = _softplus(_read(delta, row, d, mask, DIM) + bias)
    return tl.where(mask, size, 0.0), slope


@triton.jit
def _advance(
    h,
    A2,
    u,
    delta,
    B,
    bias,
    batch,
    t,
    length,
    d,
    n,
    REVERSE: tl.constexpr,
    DIM: tl.constexpr,
    D_STATE: tl.constexpr,
):
    """The state after token t, with the Delta and u of the token; past the last token h itself."""
    row, channels, states = _token(batch, t, length, d, n, REVERSE, DIM, D_STATE)
    dt, _ = _step_size(delta, bias, row, d, channels, DIM)
    u_t = _read(u, row, d, channels, DIM)
    B_t = _read(B, row, n, states, D_STATE)
    return tl.exp2(dt[None, :] * A2) * h + B_t[:, None] * (dt * u_t)[None, :], dt, u_t


# ---- phases one and two ------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["length", "chunks", "chunk_tokens"])
def local_states(
    u,
    delta,
    A,
    B,
    delta_bias,
    local,  # out: (batch, chunks - 1, D_STATE, DIM)
    elapsed,  # out: (batch, chunks - 1, DIM), the sum of Delta
    length,
    chunks,
    chunk_tokens,
    REVERSE: tl.constexpr,
    DIM: tl.constexpr,
    D_STATE: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The state after each chunk but the last, when the one before it is zero."""
    batch, block, chunk = _locate(chunks - 1, DIM, BLOCK_D)
    d, n, tile, inside = _tile(block, DIM, D_STATE, BLOCK_D, BLOCK_N)
    A2 = tl.load(A + tile, mask=inside, other=0.0) * _LOG2_E
    bias = tl.load(delta_bias + d, mask=d < DIM, other=0.0)

    h = tl.full((BLOCK_N, BLOCK_D), 0.0, tl.float32)
    total = tl.full((BLOCK_D,), 0.0, tl.float32)
    for t in range(chunk * chunk_tokens, (chunk + 1) * chunk_tokens):
        h, dt, _ = _advance(h, A2, u, delta, B, bias, batch, t, length, d, n, REVERSE, DIM, D_STATE)
        total += dt

    boundary = batch * (chunks - 1) + chunk
    tl.store(local + boundary * D_STATE * DIM + tile, h, mask=inside)
    tl.store(elapsed + boundary * DIM + d, total, mask=d < DIM)


@triton.jit(do_not_specialize=["length", "chunks", "chunk_tokens"])
def local_adjoints(
    grad_y,
    delta,
    A,
    C,
    delta_bias,
    local,  # out: (batch, chunks - 1, D_STATE, DIM)
    elapsed,  # out: (batch, chunks - 1, DIM)
    length,
    chunks,
    chunk_tokens,
    REVERSE: tl.constexpr,
    DIM: tl.constexpr,
    D_STATE: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The e before each chunk but the first, when the one after it is zero."""
    batch, block, boundary = _locate(chunks - 1, DIM, BLOCK_D)
    d, n, tile, inside = _tile(block, DIM, D_STATE, BLOCK_D, BLOCK_N)
    A2 = tl.load(A + tile, mask=inside, other=0.0) * _LOG2_E
    bias = tl.load(delta_bias + d, mask=d < DIM, other=0.0)

    e = tl.full((BLOCK_N, BLOCK_D), 0.0, tl.float32)
    total = tl.full((BLOCK_D,), 0.0, tl.float32)
    first = (boundary + 1) * chunk_tokens
    last = tl.minimum(first + chunk_tokens, length) - 1
    for i in range(last - first + 1):
        row, channels, states = _token(batch, last - i, length, d, n, REVERSE, DIM, D_STATE)
        dt, _ = _step_size(delta, bias, row, d, channels, DIM)
        dy_t = _read(grad_y, row, d, channels, DIM)
        C_t = _read(C, row, n, states, D_STATE)
        e = tl.exp2(dt[None, :] * A2) * (e + C_t[:, None] * dy_t[None, :])
        total += dt

    slot = batch * (chunks - 1) + boundary
    tl.store(local + slot * D_STATE * DIM + tile, e, mask=inside)
    tl.store(elapsed + slot * DIM + d, total, mask=d < DIM)


@triton.jit(do_not_specialize=["chunks"])
def carry(
    A,
    start,  # (batch, D_STATE, DIM)
    local,  # (batch, chunks - 1, D_STATE, DIM)
    elapsed,  # (batch, chunks - 1, DIM)
    entering,  # out: (batch, chunks, D_STATE, DIM)
    chunks,
    ADJOINT: tl.constexpr,
    DIM: tl.constexpr,
    D_STATE: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """What enters every chunk: the state before it, or, if ADJOINT, the e after it.

    Boundary c lies between chunks c and c + 1. Forward the chunk left behind is c, backward it is c + 1.
    """
    batch, block, _ = _locate(1, DIM, BLOCK_D)
    d, _, tile, inside = _tile(block, DIM, D_STATE, BLOCK_D, BLOCK_N)
    A2 = tl.load(A + tile, mask=inside, other=0.0) * _LOG2_E
    state = tl.load(start + batch * D_STATE * DIM + tile, mask=inside, other=0.0)
    chunk = chunks - 1 if ADJOINT else 0
    tl.store(entering + (batch * chunks + chunk) * D_STATE * DIM + tile, state, mask=inside)
    for i in range(chunks - 1):
        boundary = chunks - 2 - i if ADJOINT else i
        slot = batch * (chunks - 1) + boundary
        total = tl.load(elapsed + slot * DIM + d, mask=d < DIM, other=0.0)
        passed = tl.load(local + slot * D_STATE * DIM + tile, mask=inside, other=0.0)
        state = tl.exp2(total[None, :] * A2) * state + passed
        chunk = boundary if ADJOINT else boundary + 1
        tl.store(entering + (batch * chunks + chunk) * D_STATE * DIM + tile, state, mask=inside)


# ---- phase three, forward ----------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["length", "chunks", "chunk_tokens"])
def forward(
    u,
    delta,
    A,
    B,
    C,
    D,
    delta_bias,
    entering,  # (batch, chunks, D_STATE, DIM)
    y,  # out
    last_state,  # out: (batch, D_STATE, DIM)
    checkpoints,  # out, if KEEP: (batch, segments, D_STATE, DIM), the state before every segment
    length,
    chunks,
    chunk_tokens,
    KEEP: tl.constexpr,
    REVERSE: tl.constexpr,
    DIM: tl.constexpr,
    D_STATE: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SEGMENT: tl.constexpr,
):
    """Outputs y (batch, length, DIM) of one chunk, from the state that enters it; other layouts above."""
    batch, block, chunk = _locate(chunks, DIM, BLOCK_D)
    d, n, tile, inside = _tile(block, DIM, D_STATE, BLOCK_D, BLOCK_N)
    A2 = tl.load(A + tile, mask=inside, other=0.0) * _LOG2_E
    bias = tl.load(delta_bias + d, mask=d < DIM, other=0.0)
    skip = tl.load(D + d, mask=d < DIM, other=0.0)

    h = tl.load(entering + (batch * chunks + chunk) * D_STATE * DIM + tile, mask=inside, other=0.0)
    first = chunk * chunk_tokens
    for t in range(first, tl.minimum(first + chunk_tokens, length)):
        if KEEP and t % SEGMENT == 0:
            segment = batch * tl.cdiv(length, SEGMENT) + t // SEGMENT
            tl.store(checkpoints + segment * D_STATE * DIM + tile, h, mask=inside)
        h, _, u_t = _advance(h, A2, u, delta, B, bias, batch, t, length, d, n, REVERSE, DIM, D_STATE)
        row, channels, states = _token(batch, t, length, d, n, REVERSE, DIM, D_STATE)
        C_t = _read(C, row, n, states, D_STATE)
        tl.store(y + row * DIM + d, tl.sum(C_t[:, None] * h, axis=0) + skip * u_t, mask=channels)
    if chunk == chunks - 1:
        tl.store(last_state + batch * D_STATE * DIM + tile, h, mask=inside)


# ---- phase three, backward ---------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["length", "chunks", "chunk_tokens", "rows"])
def backward(
    grad_y,
    u,
    delta,
    A,
    B,
    C,
    D,
    delta_bias,
    checkpoints,  # (batch, segments, D_STATE, DIM)
    entering,  # (batch, chunks, D_STATE, DIM), the e after every chunk
    notes,  # scratch: (programs, SEGMENT // GROUP, BLOCK_N, BLOCK_D), the state before every group
    du,  # out
    ddelta,  # out
    dA,  # out: (batch, chunks, D_STATE, DIM)
    dB,  # out: (blocks, batch, length, D_STATE)
    dC,  # out: (blocks, batch, length, D_STATE)
    dD,  # out: (batch, chunks, DIM)
    dbias,  # out: (batch, chunks, DIM)
    d_initial_state,  # out: (batch, D_STATE, DIM)
    rows,  # batch * length
    length,
    chunks,
    chunk_tokens,
    REVERSE: tl.constexpr,
    DIM: tl.constexpr,
    D_STATE: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SEGMENT: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Gradients of one chunk, from the e that enters it after its last token; layouts above.

    Sums over channels are left per block, sums over tokens per chunk, for the caller to add.
    """
    batch, block, chunk = _locate(chunks, DIM, BLOCK_D)
    d, n, tile, inside = _tile(block, DIM, D_STATE, BLOCK_D, BLOCK_N)
    A2 = tl.load(A + tile, mask=inside, other=0.0) * _LOG2_E
    bias = tl.load(delta_bias + d, mask=d < DIM, other=0.0)
    skip = tl.load(D + d, mask=d < DIM, other=0.0)
    notes += tl.program_id(0).to(tl.int64) * (SEGMENT // GROUP * BLOCK_N * BLOCK_D)
    note = tl.arange(0, BLOCK_N)[:, None] * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
    dB += block * rows * D_STATE
    dC += block * rows * D_STATE

    part = batch * chunks + chunk
    e = tl.load(entering + part * D_STATE * DIM + tile, mask=inside, other=0.0)
    A_sum = tl.full((BLOCK_N, BLOCK_D), 0.0, tl.float32)
    D_sum = tl.full((BLOCK_D,), 0.0, tl.float32)
    bias_sum = tl.full((BLOCK_D,), 0.0, tl.float32)
    segments = tl.cdiv(length, SEGMENT)
    first = chunk * (chunk_tokens // SEGMENT)
    end = tl.minimum(first + chunk_tokens // SEGMENT, segments)
    for i in range(end - first):
        segment = end - 1 - i
        start = segment * SEGMENT
        groups = tl.cdiv(tl.minimum(SEGMENT, length - start), GROUP)

        # the last group may reach past the last token, where h and e stay as they are
        h = tl.load(checkpoints + (batch * segments + segment) * D_STATE * DIM + tile, mask=inside, other=0.0)
        for group in range(groups):
            tl.store(notes + group * BLOCK_N * BLOCK_D + note, h)
            for j in tl.static_range(GROUP):
                t = start + group * GROUP + j
                h, _, _ = _advance(h, A2, u, delta, B, bias, batch, t, length, d, n, REVERSE, DIM, D_STATE)
        tl.debug_barrier()  # another thread than the one that wrote a number may read it

        for j in range(groups):
            t0 = start + (groups - 1 - j) * GROUP
            h = tl.load(notes + (groups - 1 - j) * BLOCK_N * BLOCK_D + note)
            before = (h,)  # the state before each token of the group
            for k in tl.static_range(GROUP - 1):
                t = t0 + k
                h, _, _ = _advance(h, A2, u, delta, B, bias, batch, t, length, d, n, REVERSE, DIM, D_STATE)
                before = before + (h,)  # noqa: RUF005 (Triton has no starred expressions)
            for k in tl.static_range(GROUP):
                t = t0 + GROUP - 1 - k
                h = before[GROUP - 1 - k]
                row, channels, states = _token(batch, t, length, d, n, REVERSE, DIM, D_STATE)
                dt, slope = _step_size(delta, bias, row, d, channels, DIM)
                u_t = _read(u, row, d, channels, DIM)
                dy_t = _read(grad_y, row, d, channels, DIM)
                B_t = _read(B, row, n, states, D_STATE)[:, None]
                C_t = _read(C, row, n, states, D_STATE)[:, None]

                decay = tl.exp2(dt[None, :] * A2)
                x_t = (dt * u_t)[None, :]
                tl.store(
                    dC + row * D_STATE + n, tl.sum(dy_t[None, :] * (decay * h + B_t * x_t), 1), mask=states
                )
                g = e + C_t * dy_t[None, :]
                tl.store(dB + row * D_STATE + n, tl.sum(g * x_t, 1), mask=states)
                q = tl.sum(g * B_t, 0)
                tl.store(du + row * DIM + d, skip * dy_t + dt * q, mask=channels)
                e = decay * g
                p = e * h
                ddelta_t = (u_t * q + _LN_2 * tl.sum(A2 * p, 0)) * slope
                tl.store(ddelta + row * DIM + d, ddelta_t, mask=channels)
                A_sum += dt[None, :] * p
                D_sum += dy_t * u_t
                bias_sum += tl.where(channels, ddelta_t, 0.0)
        tl.debug_barrier()  # the notes are written anew

    tl.store(dA + part * D_STATE * DIM + tile, A_sum, mask=inside)
    tl.store(dD + part * DIM + d, D_sum, mask=d < DIM)
    tl.store(dbias + part * DIM + d, bias_sum, mask=d < DIM)
    if chunk == 0:
        tl.store(d_initial_state + batch * D_STATE * DIM + tile, e, mask=inside)
