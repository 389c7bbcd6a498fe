"""Kernels of the tests' own, each with its case: run on the simulated GPU and compared with NumPy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from minunet import cuda, simulator

KERNELS = Path(__file__).parent / "kernels"
NAN = np.float32(np.nan)


def text_of(file):
    return (KERNELS / f"{file}.cu").read_text(encoding="utf-8")


def launch(file, name, text, grid, *arguments, threads=None, shared=0, defines=()):
    """Launch a kernel of a text; Python numbers become int and float."""
    kernel = cuda.parse(file, text)[name]
    if threads:
        kernel = replace(kernel, threads=threads)
    passed = [np.int32(a) if isinstance(a, int) else np.float32(a) if isinstance(a, float) else a for a in arguments]
    simulator.launch("#define INOUT\n#line 1\n" + text, kernel, defines, (*grid, 1, 1)[:3], passed, shared)


def numbers(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def close(result, expected, tolerance=1e-4):
    np.testing.assert_allclose(result, expected, rtol=tolerance, atol=tolerance)


def gemm(text):
    M, N, K = 70, 65, 37
    A, B, C = numbers(M, K), numbers(K, N), np.full((M, N), NAN)
    # C is read where beta is not 0
    launch("gemm", "gemm", text.replace("INOUT ", ""), (2, 2), A, B, C, M, N, K, 1.0, 0.0)
    close(C, A.astype("f8") @ B)
    C = numbers(M, N)
    expected = 2.0 * (A.astype("f8") @ B) + 3.0 * C
    launch("gemm", "gemm", text, (2, 2), A, B, C, M, N, K, 2.0, 3.0)
    close(C, expected)


def statistics(text, threads=256):
    x, mean, rstd = numbers(8, 12, 12, 16) * 2 + 3, np.full(16, NAN), np.full(16, NAN)
    launch("statistics", "statistics", text, (16,), x, mean, rstd, 8 * 12 * 12, 16, 1e-5, threads=threads)
    close(mean, x.mean((0, 1, 2), dtype="f8"), 1e-5)
    close(rstd, 1 / np.sqrt(x.var((0, 1, 2), dtype="f8") + 1e-5), 1e-5)


def total(text, shared=512):
    x, out = numbers(5000) + 1, np.zeros(1, np.float32)
    launch("statistics", "total", text, (8,), x, out, x.size, shared=shared)
    close(out[0], x.sum(dtype="f8"), 1e-5)


def patches(x, kernel, pad, stride):
    """(N, H, W, C) -> (N * OH * OW, kernel * kernel * C)."""
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (kernel, kernel), (1, 2))[:, ::stride, ::stride]
    windows = windows.transpose(0, 1, 2, 4, 5, 3)           # (N, OH, OW, kernel, kernel, C)
    return windows.reshape(-1, kernel * kernel * x.shape[3])


def convolution(text):
    n, h, w, c, f, pad, stride = 2, 9, 11, 5, 67, 1, 2
    x, weight, bias, oh, ow = numbers(n, h, w, c), numbers(9 * c, f), numbers(f), 5, 6
    y = np.full((n * oh * ow, f), NAN)
    launch("convolution", "convolution", text, (1, 2), x, weight, bias, y, n, h, w, c, f, pad, stride, oh, ow)
    close(y, patches(x, 3, pad, stride).astype("f8") @ weight + bias)


def im2col(text):
    x, columns = numbers(1, 8, 8, 3), np.full((64, 27), NAN)
    launch("im2col", "im2col", text, (5,), x, columns, 1, 8, 8, 3, 3, 1, 1, 8, 8)
    np.testing.assert_array_equal(columns, patches(x, 3, 1, 1))


def tf32(a):
    """float32 rounded to TF32's 10 bits after the point, ties away from zero."""
    return ((a.view(np.uint32).astype(np.uint64) + 0x1000) & 0xffffe000).astype(np.uint32).view(np.float32)


def gemm_tf32(text):
    M, N, K = 128, 64, 48
    A, B, C = numbers(M, K), numbers(K, N), np.full((M, N), NAN)
    launch("tensor_cores", "gemm_tf32", text, (N // 64, M // 64), A, B, C, M, N, K)
    close(C, tf32(A).astype("f8") @ tf32(B), 1e-5 * K**0.5)


def bf16(a):
    bits = a.view(np.uint32).astype(np.uint64)
    return ((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000).astype(np.uint32).view(np.float32)


def gemm_bf16(text, threads=32):
    M, N, K = 32, 24, 48
    A, B, C = numbers(M, K), numbers(K, N), np.full((M, N), NAN)
    launch("tensor_cores", "gemm_bf16", text, (N // 8, M // 16), A, B, C, M, N, K, threads=threads)
    close(C, bf16(A).astype("f8") @ bf16(B), 1e-5 * K**0.5)


def staging(text):
    x, y = numbers(2, 4, 32, 6), np.full((2, 4, 32), NAN)
    launch("staging", "staging", text, (2,), x, y, 6)
    close(y, (x[:, :, ::-1] * np.float32([1, 2, 3, 4, 1, 2]) + x[:, :, :1]).sum(-1))


CASES = {"gemm": gemm, "statistics": statistics, "total": total, "convolution": convolution, "im2col": im2col,
         "gemm_tf32": gemm_tf32, "gemm_bf16": gemm_bf16, "staging": staging}
FILES = {"total": "statistics", "gemm_tf32": "tensor_cores", "gemm_bf16": "tensor_cores"}


def source(case):
    return text_of(FILES.get(case, case))
