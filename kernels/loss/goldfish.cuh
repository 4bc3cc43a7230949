// Whether Goldfish drops a label. The decision uses integer arithmetic only, so every device and every grid
// decides alike. src/loss/goldfish.rs documents the rule of each strategy and has the reference.
//
// A window is the h ids that end at the label. Its key is a product or a sum of one term per id, so
// the lanes of a warp may each take a part of the window and combine their parts in any order.
#pragma once

#include "args.cuh"
#include "ids.cuh"

namespace xact {

// The position of a label.
struct GoldfishPlace {
    unsigned long long segment;
    // The index in the segment.
    unsigned long long column;
    // The index in the row or the document.
    unsigned long long position;
    // The number of ids before the label that its window may use.
    unsigned long long previous;
};

// The place of the label that has this number where no rows are interleaved.
__device__ inline GoldfishPlace goldfish_place(const GoldfishArgs& args, unsigned long long number) {
    GoldfishPlace at;
    // This is nearly always true and avoids a 64-bit division of a hundred instructions.
    at.segment = number < args.len ? 0 : number / args.len;
    at.column = number - at.segment * args.len;
    at.position = at.column;
    at.previous = at.column + args.halo_len;
    if (args.offsets == 0) return at;
    // The last boundary that is not after the label. For any offsets, also wrong ones, the search ends,
    // offset low - 1 has been compared, and a boundary can only shorten a window.
    const int* cu_seqlens = reinterpret_cast<const int*>(args.cu_seqlens);
    unsigned long long low = 0;
    unsigned long long high = args.offsets;
    while (low < high) {
        const unsigned long long middle = low + (high - low) / 2;
        if (cu_seqlens[middle] <= static_cast<long long>(number)) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    if (args.preceding != 0) {
        // A chunk is a segment. The labels before the first chunk and those behind the last one have no halo.
        const long long start = low == 0 ? 0 : cu_seqlens[low - 1];
        at.segment = low - 1;
        at.column = start < 0 ? number : number - start;
        at.position = at.previous = at.column;
        if (low == 0 || low == args.offsets) return at;
        const long long preceding = reinterpret_cast<const long long*>(args.preceding)[low - 1];
        if (preceding > 0) {
            at.position += preceding;
            at.previous += min(static_cast<unsigned long long>(preceding), args.halo_len);
        }
        return at;
    }
    if (low > 0) {
        at.position = number - static_cast<long long>(cu_seqlens[low - 1]);
        if (at.position < at.previous) at.previous = at.position;
    }
    return at;
}

__device__ inline long long goldfish_id(const GoldfishArgs& args, unsigned long long ids,
                                        unsigned long long index) {
    return read_id(ids, args.id_type, index);
}

// The id `distance` before the label `index`; `distance` is at most at.previous.
__device__ inline long long goldfish_id_before(const GoldfishArgs& args, const GoldfishPlace& at,
                                               unsigned long long index, unsigned distance) {
    if (distance <= at.column) return goldfish_id(args, args.ids, index - distance * args.interleaved);
    return goldfish_id(args, args.halo, (at.segment + 1) * args.halo_len - (distance - at.column));
}

// The finaliser of SplitMix64, a bijection in which every bit of the input moves every bit of the
// output (variant 13 of Stafford, "Better Bit Mixing", 2011).
__device__ inline unsigned long long mix64(unsigned long long z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

// The `index`-th output of SplitMix64.
__device__ inline unsigned long long split_mix(unsigned long long seed, unsigned long long index) {
    return mix64(seed + (index + 1) * 0x9e3779b97f4a7c15ull);
}

// `hashint` of the official code, whose masks keep 32 bits after some of the steps only.
__device__ inline unsigned long long avalanche(unsigned long long a) {
    constexpr unsigned long long kMask = 0xffffffffull;
    a = (~a + (a << 21)) & kMask;
    a = (a << 21) - a - 1;
    a ^= a >> 24;
    a = (a + (a << 3) + (a << 8)) & kMask;
    a *= 265;
    a ^= a >> 14;
    a = (a + (a << 2) + (a << 4)) & kMask;
    a *= 21;
    a ^= a >> 28;
    return (a + (a << 31)) & kMask;
}

// The addend of Hash64 for the id at a distance from the label: the `distance`-th output of SplitMix64. A
// thread that works alone reads it from the arguments, at the same address as its neighbours. The lanes of a
// warp have different distances, and such reads would be serialised, so they compute it.
template <int kLanes>
__device__ inline unsigned long long goldfish_place_constant(const GoldfishArgs& args, unsigned distance) {
    if (kLanes == 1 && distance < sizeof(args.places) / sizeof(args.places[0])) return args.places[distance];
    return split_mix(args.seed, distance);
}

// The key of the window that ends at `index`. kLanes threads, one or a converged warp, share the work
// and all get it.
template <int kLanes>
__device__ inline unsigned long long goldfish_key(const GoldfishArgs& args, const GoldfishPlace& at,
                                                  unsigned long long index) {
    static_assert(kLanes == 1 || kLanes == 32, "a thread or a warp");
    const bool product =
        args.strategy == GOLDFISH_PRODUCT_TABLE || args.strategy == GOLDFISH_PRODUCT_AVALANCHE;
    const unsigned long long* coefficients = reinterpret_cast<const unsigned long long*>(args.coefficients);
    unsigned long long key = product ? 1 : 0;
    for (unsigned j = kLanes == 1 ? 0 : threadIdx.x % kLanes; j < args.h; j += kLanes) {
        const unsigned long long id = goldfish_id_before(args, at, index, j);
        if (product) {
            key *= id;
        } else if (args.strategy == GOLDFISH_DOT_TABLE) {
            key += coefficients[args.h - 1 - j] * id;
        } else {
            key += mix64(id + goldfish_place_constant<kLanes>(args, j));
        }
    }
#pragma unroll
    for (int offset = kLanes / 2; offset > 0; offset /= 2) {
        const unsigned long long other = __shfl_xor_sync(0xffffffffu, key, offset);
        key = product ? key * other : key + other;
    }
    return key;
}

// Whether an id is among the exempt ones.
template <int kLanes>
__device__ inline bool goldfish_exempts(const GoldfishArgs& args, unsigned long long index) {
    const long long id = goldfish_id(args, args.ids, index);
    const long long* exempt = reinterpret_cast<const long long*>(args.exempt);
    bool found = false;
    for (unsigned long long i = kLanes == 1 ? 0 : threadIdx.x % kLanes; i < args.exempts; i += kLanes) {
        found |= exempt[i] == id;
    }
    return kLanes == 1 ? found : __any_sync(0xffffffffu, found);
}

// Whether the label `index` is dropped. With kLanes = 1 the calling thread works alone; with
// kLanes = 32 all lanes of a converged warp call it with the same index, and all get the answer.
template <int kLanes>
__device__ inline bool goldfish_drops(const GoldfishArgs& args, unsigned long long index) {
    if (args.strategy == GOLDFISH_NONE) return false;
    bool drops;
    unsigned long long number = index;
    if (args.interleaved != 1) {
        const unsigned long long of_row = index / args.interleaved;
        number = (index - of_row * args.interleaved) * args.interleaved_len + of_row;
    }
    if (args.strategy == GOLDFISH_RANDOM) {
        drops = split_mix(args.seed, number) < args.cut;
    } else {
        GoldfishPlace at = goldfish_place(args, number);
        if (args.strategy == GOLDFISH_STATIC) {
            drops = at.position >= args.start && (at.position - args.start) % args.k == 0;
        } else {
            if (args.interleaved != 1) {
                // No window crosses the start of an interleaved row. The division is done again, because
                // keeping its result would take the mask from 32 registers to 38.
                const unsigned long long of_row = index / args.interleaved;
                if (at.column > of_row) at.previous = min(at.previous, of_row);
            }
            if (at.previous < args.h - 1) return false;
            const unsigned long long key = goldfish_key<kLanes>(args, at, index);
            if (args.strategy == GOLDFISH_HASH64) {
                drops = mix64(key) < args.cut;
            } else if (args.strategy == GOLDFISH_PRODUCT_AVALANCHE) {
                drops = avalanche(key) < args.cut;
            } else {
                // The key is signed, and the remainder is that of a floored division, by a constant.
                constexpr long long kLen = GOLDFISH_TABLE_LEN;
                long long entry = static_cast<long long>(key) % kLen;
                if (entry < 0) entry += kLen;
                const unsigned* bitmap = reinterpret_cast<const unsigned*>(args.bitmap);
                drops = (bitmap[entry / 32] >> (entry % 32)) & 1;
            }
        }
    }
    if (drops && args.exempts != 0) drops = !goldfish_exempts<kLanes>(args, index);
    return drops;
}

}  // namespace xact
