// What the losses from logits (pixels, classes) share: their struct, who owns which logits, and a pixel's softmax.
//
// A group of lanes of a warp owns a pixel, as many as the power of two from `classes` up (32 at most); lane l of it
// owns the classes l, l + group, ...: a warp reads neighbouring addresses whatever the number of classes, and the
// softmax's maximum and sum are a few shuffles within the group. Up to 32 classes a loop over a lane's classes runs
// once, so it is not unrolled. Lanes beyond the last class, or the last pixel, work along on a copy (a shuffle needs
// its whole warp) and write nothing.
//
//     group = 4, classes = 3:    | p0 p0 p0 .  | p1 p1 p1 .  | p2 p2 p2 .  | ...     a warp holds 8 pixels
//
// What is ignored may hold anything, NaN too: it is read, and thrown away by a selection, never by a product with 0.

#pragma once
#include "common.cuh"
#include "group.cuh"

// ignore: the target's value whose pixels count for nothing (-1, which no pixel has, if all count). weighted and
// class_weighted: whether the array is given; if not, all weights are 1 and the array is empty. of_ids: for Dice,
// whether the target holds class ids (softmax) or fractions (sigmoid).
struct Loss { int pixels, classes, group, ignore, weighted, class_weighted, of_ids; };

constexpr int SHARING = 4;      // blocks on a multiprocessor; left to itself the compiler tries more, and spills

// A pixel's softmax: p_k = exp(z_k - top) / sum
struct Softmax { real top, sum; };

__device__ __forceinline__ Softmax group_softmax(const real* __restrict__ z, int lane, Loss loss)
{
    Softmax s;
    s.top = z[lane < loss.classes ? lane : 0];
    #pragma unroll 1
    for (int k = lane + loss.group; k < loss.classes; k += loss.group) s.top = z[k] > s.top ? z[k] : s.top;
    s.top = group_max(s.top, loss.group);
    s.sum = 0;
    #pragma unroll 1
    for (int k = lane; k < loss.classes; k += loss.group) s.sum += exp(z[k] - s.top);
    s.sum = group_sum(s.sum, loss.group);
    return s;
}
