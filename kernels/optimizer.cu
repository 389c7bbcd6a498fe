// A step of an optimizer for all parameters, in place, in one launch.
//
// The parameters are tables of arrays: theta[p] is the p-th array, g[p] its gradient, m[p], v[p] or velocity[p] what is
// kept beside it. A block owns a part of one parameter, elements first to end (a row of `parts`); a net has many small
// parameters and a few large ones, and so all of them are done at once, without a launch for each. A thread takes every
// THREADS-th element of its part, so that a warp moves 128 neighbouring bytes (float), and ITEMS of them at a time: all
// their loads are on their way before the first is waited for.
//
// Bytes an element, in float: Adam reads 16 and writes 12, SGD reads 12 and writes 8; about 12 and 6 FLOP: bound by
// memory. The rounding differs from the CPU's by multiplications joined with additions only.
#include "common.cuh"

constexpr int ITEMS = 4;

// Adam:  g <- g + decay θ;  m <- β1 m + (1 - β1) g;  v <- β2 v + (1 - β2) g²;
//        θ <- keep θ - rate m / (sqrt(v) correction + eps)
// rate[p] = lr / (1 - β1^t) and correction[p] = 1 / sqrt(1 - β2^t), t being the parameter's own step. AdamW has
// keep = 1 - lr · weight_decay and decay = 0, Adam keep = 1. 1 - β comes apart: float would lose its digits.
KERNEL __launch_bounds__(THREADS)
adam(INOUT real** theta, const real** g, INOUT real** m, INOUT real** v, const int* __restrict__ parts,
     const real* __restrict__ rates, const real* __restrict__ corrections, real beta1, real rest1, real beta2,
     real rest2, real eps, real keep, real decay)
{
    const int p = parts[3 * blockIdx.x], first = parts[3 * blockIdx.x + 1], end = parts[3 * blockIdx.x + 2];
    const real rate = rates[p], correction = corrections[p];
    real* const thetas = theta[p];
    const real* const gs = g[p];
    real* const ms = m[p];
    real* const vs = v[p];
    for (int start = first + threadIdx.x; start < end; start += ITEMS * THREADS) {
        real x[ITEMS] = {}, dx[ITEMS] = {}, mean[ITEMS] = {}, square[ITEMS] = {};
        #pragma unroll
        for (int item = 0; item < ITEMS; item++) {
            const int i = start + item * THREADS;
            if (i >= end) continue;
            x[item] = thetas[i];
            dx[item] = gs[i];
            mean[item] = ms[i];
            square[item] = vs[i];
        }
        #pragma unroll
        for (int item = 0; item < ITEMS; item++) {
            const int i = start + item * THREADS;
            if (i >= end) continue;
            real gradient = dx[item];
            if (decay != 0) gradient += decay * x[item];        // not 0 · infinity
            const real new_mean = beta1 * mean[item] + rest1 * gradient;
            const real new_square = beta2 * square[item] + rest2 * (gradient * gradient);
            ms[i] = new_mean;
            vs[i] = new_square;
            thetas[i] = keep * x[item] - rate * (new_mean / (sqrt(new_square) * correction + eps));
        }
    }
}

// SGD:  g <- g + decay θ;  velocity <- momentum velocity + g;  θ <- θ - lr velocity, or with Nesterov's momentum
//       θ - lr (g + momentum velocity)
KERNEL __launch_bounds__(THREADS)
sgd(INOUT real** theta, const real** g, INOUT real** velocity, const int* __restrict__ parts, real lr, real momentum,
    int nesterov, real decay)
{
    const int p = parts[3 * blockIdx.x], first = parts[3 * blockIdx.x + 1], end = parts[3 * blockIdx.x + 2];
    real* const thetas = theta[p];
    const real* const gs = g[p];
    real* const velocities = velocity[p];
    for (int start = first + threadIdx.x; start < end; start += ITEMS * THREADS) {
        real x[ITEMS] = {}, dx[ITEMS] = {}, speed[ITEMS] = {};
        #pragma unroll
        for (int item = 0; item < ITEMS; item++) {
            const int i = start + item * THREADS;
            if (i >= end) continue;
            x[item] = thetas[i];
            dx[item] = gs[i];
            speed[item] = velocities[i];
        }
        #pragma unroll
        for (int item = 0; item < ITEMS; item++) {
            const int i = start + item * THREADS;
            if (i >= end) continue;
            real gradient = dx[item];
            if (decay != 0) gradient += decay * x[item];
            const real new_speed = momentum * speed[item] + gradient;
            velocities[i] = new_speed;
            thetas[i] = x[item] - lr * (nesterov ? gradient + momentum * new_speed : new_speed);
        }
    }
}
