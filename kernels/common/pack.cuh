// A pack is the elements of one 16-byte vector. This file has the packs of a row of any alignment.
//
// The packs of a row are laid so that every pack of the *anchor* buffer (x) starts at a multiple of
// 16 bytes. If x begins `skew` elements past such a multiple, pack k covers the row's elements
// [k·N − skew, (k+1)·N − skew). Only the first and the last pack of a row can be partial: the scalar
// head and tail. Another buffer of the same row is accessed with the widest vector that its own
// address allows at those places: 16 bytes if it has the same alignment as x, else 8, 4 or 2.
#pragma once

#include "args.cuh"
#include "dtype.cuh"

namespace xact {

// Vector accesses as single instructions. Written as assignments of uint4 and uint2, nvcc splits some
// of them into 4-byte stores.
__device__ inline uint4 load_vector(const uint4* p) {
    uint4 v;
    asm volatile("ld.global.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(__cvta_generic_to_global(p)));
    return v;
}
__device__ inline uint2 load_vector(const uint2* p) {
    uint2 v;
    asm volatile("ld.global.v2.b32 {%0, %1}, [%2];"
                 : "=r"(v.x), "=r"(v.y)
                 : "l"(__cvta_generic_to_global(p)));
    return v;
}
__device__ inline void store_vector(uint4* p, uint4 v) {
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(p)), "r"(v.x),
                 "r"(v.y), "r"(v.z), "r"(v.w)
                 : "memory");
}
__device__ inline void store_vector(uint2* p, uint2 v) {
    asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(__cvta_generic_to_global(p)), "r"(v.x), "r"(v.y)
                 : "memory");
}

// Bytes of the widest vector that can be accessed at an address: 16, 8, 4 or 2.
__device__ inline unsigned width_at(const void* p) {
    const unsigned at = static_cast<unsigned>(reinterpret_cast<unsigned long long>(p)) | 16u;
    return at & (0u - at);
}

template <class T>
struct alignas(16) Pack {
    static constexpr int N = 16 / sizeof(T);

    union {
        uint4 v16;
        uint2 v8[2];
        unsigned v4[4];
        unsigned short v2[8];
    };

    __device__ Pack() {}

    __device__ void set(uint4 v) {
        v4[0] = v.x;
        v4[1] = v.y;
        v4[2] = v.z;
        v4[3] = v.w;
    }

    // Rounds each value once to T.
    __device__ explicit Pack(const float (&in)[N]) {
#pragma unroll
        for (int i = 0; i < N; i += 2) {
            T pair[2];
            from_floats(in[i], in[i + 1], pair);
            reinterpret_cast<T*>(this)[i] = pair[0];
            reinterpret_cast<T*>(this)[i + 1] = pair[1];
        }
    }

    // From and to memory, with accesses of `width` bytes.
    __device__ void load(const T* at, unsigned width) {
        if (width >= 16) {
            set(load_vector(reinterpret_cast<const uint4*>(at)));
        } else if (width >= 8) {
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const uint2 v = load_vector(reinterpret_cast<const uint2*>(at) + i);
                v4[2 * i] = v.x;
                v4[2 * i + 1] = v.y;
            }
        } else if (sizeof(T) == 4 || width >= 4) {
#pragma unroll
            for (int i = 0; i < 4; ++i) v4[i] = reinterpret_cast<const unsigned*>(at)[i];
        } else {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const unsigned short* pair = reinterpret_cast<const unsigned short*>(at) + 2 * i;
                v4[i] = __byte_perm(pair[0], pair[1], 0x5410);
            }
        }
    }
    __device__ void store(T* at, unsigned width) const {
        if (width >= 16) {
            store_vector(reinterpret_cast<uint4*>(at), v16);
        } else if (width >= 8) {
#pragma unroll
            for (int i = 0; i < 2; ++i) store_vector(reinterpret_cast<uint2*>(at) + i, v8[i]);
        } else if (sizeof(T) == 4 || width >= 4) {
#pragma unroll
            for (int i = 0; i < 4; ++i) reinterpret_cast<unsigned*>(at)[i] = v4[i];
        } else {
#pragma unroll
            for (int i = 0; i < 8; ++i) reinterpret_cast<unsigned short*>(at)[i] = v2[i];
        }
    }

    // The same for the elements [begin, end) alone, one by one; a load gives the others as 0.
    __device__ void load_some(const T* at, long long begin, long long end) {
        set(make_uint4(0, 0, 0, 0));
#pragma unroll
        for (int i = 0; i < N; ++i) {
            if (i < begin || i >= end) continue;
            if constexpr (sizeof(T) == 4) {
                v4[i] = reinterpret_cast<const unsigned*>(at)[i];
            } else {
                v4[i / 2] |= static_cast<unsigned>(reinterpret_cast<const unsigned short*>(at)[i])
                             << i % 2 * 16;
            }
        }
    }
    __device__ void store_some(T* at, long long begin, long long end) const {
#pragma unroll
        for (int i = 0; i < N; ++i) {
            if (i < begin || i >= end) continue;
            if constexpr (sizeof(T) == 4) {
                reinterpret_cast<unsigned*>(at)[i] = v4[i];
            } else {
                reinterpret_cast<unsigned short*>(at)[i] = v2[i];
            }
        }
    }

    // The elements as f32, exactly.
    __device__ void unpack(float (&out)[N]) const {
#pragma unroll
        for (int i = 0; i < N; ++i) out[i] = element<T>(v4, i);
    }
};

// Two packs that hold elements of two matrices in turn, beginning with one of x, or with one of v if v_first:
// split makes a pack of each matrix of them, and weave undoes it.
template <class T>
struct InTurn {
    // The first element of each pair in two words, or the second.
    static constexpr unsigned kFirst = sizeof(T) == 4 ? 0x3210 : 0x5410;
    static constexpr unsigned kSecond = sizeof(T) == 4 ? 0x7654 : 0x7632;
};
template <class T>
__device__ inline void split(Pack<T>& x, Pack<T>& v, bool v_first) {
    const unsigned of_x = v_first ? InTurn<T>::kSecond : InTurn<T>::kFirst;
    const unsigned of_v = v_first ? InTurn<T>::kFirst : InTurn<T>::kSecond;
    const Pack<T> both[2] = {x, v};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const unsigned* pairs = both[i / 2].v4 + i % 2 * 2;
        x.v4[i] = __byte_perm(pairs[0], pairs[1], of_x);
        v.v4[i] = __byte_perm(pairs[0], pairs[1], of_v);
    }
}
template <class T>
__device__ inline void weave(Pack<T>& x, Pack<T>& v, bool v_first) {
    // Exchanges the operands.
    const unsigned exchange = v_first ? 0x4444 : 0;
    Pack<T> both[2];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        unsigned* pairs = both[i / 2].v4 + i % 2 * 2;
        pairs[0] = __byte_perm(x.v4[i], v.v4[i], InTurn<T>::kFirst ^ exchange);
        pairs[1] = __byte_perm(x.v4[i], v.v4[i], InTurn<T>::kSecond ^ exchange);
    }
    x = both[0];
    v = both[1];
}

// One row of one buffer, seen from the packs of the anchor, whose row starts `anchor_phase` bytes past
// a multiple of 16.
template <class T>
struct Row {
    T* base;         // the row's first element; null if there is no such buffer
    unsigned width;  // bytes of the widest vector usable at every pack: 16, 8, 4 or 2
    int skew;        // elements by which pack 0 begins before the row

    __device__ Row(const Matrix& matrix, unsigned long long row, unsigned anchor_phase)
        : base(matrix.ptr == 0 ? nullptr : reinterpret_cast<T*>(matrix.ptr) + row * matrix.pitch),
          skew(anchor_phase / sizeof(T)) {
        const unsigned off = (phase(matrix, row) - anchor_phase) & 15u;
        width = off == 0 ? 16u : (off & (0u - off));
    }

    // Bytes from the last multiple of 16 to the start of the row.
    __device__ static unsigned phase(const Matrix& matrix, unsigned long long row) {
        return static_cast<unsigned>(matrix.ptr + row * matrix.pitch * sizeof(T)) & 15u;
    }

    // Hides from the compiler that the width is the same at every access. Otherwise it compiles the
    // arithmetic between a load and a store once per combination of widths, four times the code.
    __device__ unsigned opaque_width() const {
        unsigned w = width;
        asm volatile("" : "+r"(w));
        return w;
    }

    // A pack of the anchor's own row, whose width is 16 by construction; `first` is its first element.
    __device__ Pack<T> load_aligned(long long first) const {
        Pack<T> p;
        p.set(load_vector(reinterpret_cast<const uint4*>(base + first)));
        return p;
    }
    __device__ void store_aligned(long long first, const Pack<T>& p) const {
        store_vector(reinterpret_cast<uint4*>(base + first), p.v16);
    }

    // A pack whose N elements all lie in the row.
    __device__ void store(long long first, const Pack<T>& p) const { p.store(base + first, opaque_width()); }
};

}  // namespace xact
