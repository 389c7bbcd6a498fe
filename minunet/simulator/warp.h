// Warp operations: the 32 lanes of a warp read each other's registers, without shared memory.
//
// Every lane that the mask names must come to the same operation. A lane may read from one that is not there, which on
// a GPU gives an undefined value; here the value is all ones, a NaN, so that it shows if it is used.

#pragma once

#include "machine.h"

namespace sim {

template <class T>
struct Shuffle {
    T value;
    int source;             // the lane to read from
};

template <class T>
SIM_UNCHECKED void exchange_shuffle(Thread* warp, unsigned lanes)
{
    for (int lane = 0; lane < WARP; lane++) {
        if (!(lanes >> lane & 1)) continue;
        const int source = ((const Shuffle<T>*)warp[lane].give)->source;
        if (lanes >> source & 1)
            *(T*)warp[lane].take = ((const Shuffle<T>*)warp[source].give)->value;
        else
            __builtin_memset(warp[lane].take, 0xff, sizeof(T));
    }
}

template <class T>
SIM_UNCHECKED T shuffle(unsigned mask, T value, int source, Place here)
{
    const Shuffle<T> give = {value, source};
    T take;
    warp_meet(mask, exchange_shuffle<T>, &give, &take, here);
    return take;
}

SIM_UNCHECKED inline void exchange_ballot(Thread* warp, unsigned lanes)
{
    unsigned votes = 0;
    for (int lane = 0; lane < WARP; lane++)
        if (lanes >> lane & 1 && *(const int*)warp[lane].give) votes |= 1u << lane;
    for (int lane = 0; lane < WARP; lane++)
        if (lanes >> lane & 1) *(unsigned*)warp[lane].take = votes;
}

SIM_UNCHECKED inline unsigned ballot(unsigned mask, int vote, Place here)
{
    unsigned take;
    warp_meet(mask, exchange_ballot, &vote, &take, here);
    return take;
}

SIM_UNCHECKED inline int my_lane() { return machine.current->lane; }

}  // namespace sim

inline void __syncwarp(unsigned mask = ~0u, sim::Place here = SIM_HERE)
{
    sim::warp_meet(mask, nullptr, nullptr, nullptr, here);
}

inline unsigned __ballot_sync(unsigned mask, int vote, sim::Place here = SIM_HERE)
{
    return sim::ballot(mask, vote, here);
}

inline int __any_sync(unsigned mask, int vote, sim::Place here = SIM_HERE)
{
    return sim::ballot(mask, vote, here) != 0;
}

inline int __all_sync(unsigned mask, int vote, sim::Place here = SIM_HERE)
{
    return sim::ballot(mask, !vote, here) == 0;
}

// Shuffles may divide the warp into segments of `width` lanes, a power of two; reading beyond one's segment gives one's
// own value.
template <class T>
inline T __shfl_sync(unsigned mask, T value, int source, int width = 32, sim::Place here = SIM_HERE)
{
    const int segment = sim::my_lane() & ~(width - 1);
    return sim::shuffle(mask, value, segment | (source & (width - 1)), here);
}

template <class T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, sim::Place here = SIM_HERE)
{
    const int lane = sim::my_lane();
    const bool inside = (lane & (width - 1)) + (int)delta < width;
    return sim::shuffle(mask, value, inside ? lane + (int)delta : lane, here);
}

template <class T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, sim::Place here = SIM_HERE)
{
    const int lane = sim::my_lane();
    const bool inside = (lane & (width - 1)) >= (int)delta;
    return sim::shuffle(mask, value, inside ? lane - (int)delta : lane, here);
}

template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, sim::Place here = SIM_HERE)
{
    const int lane = sim::my_lane();
    const int source = lane ^ bits;
    const bool inside = (source & ~(width - 1)) <= (lane & ~(width - 1));
    return sim::shuffle(mask, value, inside ? source : lane, here);
}
