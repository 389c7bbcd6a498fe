// y = (R_height ⊗ R_width) x for images: every map that takes weighted rows and, independently, weighted columns.
//
// Resampling (nearest, bilinear, bicubic), padding (constant, edge, reflect) and cropping are of this kind, and so are
// their gradients, with the transposed matrices. The matrix of an axis is sparse, in compressed sparse rows: output row
// (or column) o is made of the entries start[o] .. start[o + 1] - 1 of `index` (which row or column of x) and `weight`.
// x (N, H, W, C) -> y (N, OH, OW, C),
//
//     y[n, oh, ow, c] = sum over rows i of oh, weight[i] * (sum over columns j of ow, weight[j] * x[n, i, j, c])
//
// and y = value where oh has no rows or ow no columns: a constant border, or 0.
//
// A thread owns VECTOR channels of one output pixel and sums in the order of the entries: no atomics, the same bits on
// each run. The threads of a warp own neighbouring channels, then columns: for every entry they read runs of x, and
// write one run of y; the entries themselves are few, the same for all channels, and stay in the L1 cache.
//
// Bytes: x and y once, as the up to 4 (bilinear) or 16 (bicubic) pixels behind an output are its neighbours' too and
// come out of the caches. FLOP: two for each of these, and two for each of their rows.
// variants: default; VECTOR=4
#include "common.cuh"
#include "vector.cuh"

KERNEL __launch_bounds__(THREADS)
separable(const real* __restrict__ x, real* __restrict__ y,
          const int* __restrict__ row_start, const int* __restrict__ row_index, const real* __restrict__ row_weight,
          const int* __restrict__ column_start, const int* __restrict__ column_index,
          const real* __restrict__ column_weight,
          int images, int height, int width, int channels, int out_height, int out_width, real value)
{
    const int index = thread_index(), groups = channels / VECTOR;
    if (index >= images * out_height * out_width * groups) return;
    const int c = index % groups * VECTOR, pixel = index / groups;
    const int ow = pixel % out_width, line = pixel / out_width;
    const int oh = line % out_height, n = line / out_height;
    const int first_row = row_start[oh], end_row = row_start[oh + 1];
    const int first_column = column_start[ow], end_column = column_start[ow + 1];

    const bool empty = first_row == end_row || first_column == end_column;
    Vector<real> sum = repeated<real>(empty ? value : 0);
    for (int i = first_row; i < end_row; i++) {
        const real* row = x + (n * height + row_index[i]) * width * channels + c;
        Vector<real> across = repeated<real>(0);
        #pragma unroll 1                        // one or two entries as a rule; unrolled it spills registers
        for (int j = first_column; j < end_column; j++) {
            const real weight = column_weight[j];
            const Vector<real> from = load(row + column_index[j] * channels);
            #pragma unroll
            for (int v = 0; v < VECTOR; v++) across.of[v] += weight * from.of[v];
        }
        const real weight = row_weight[i];
        #pragma unroll
        for (int v = 0; v < VECTOR; v++) sum.of[v] += weight * across.of[v];
    }
    store(y + index * VECTOR, sum);
}
