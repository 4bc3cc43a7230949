// The elementwise loops. An activation is a functor that they call.
//
// A tensor has `rows` rows of `cols` elements, and each buffer has its own row pitch. The packs of all rows
// (pack.cuh, anchored at x) are numbered row by row, `packs_per_row` in each, and XACT_BLOCK·XACT_PACKS
// consecutive ones are a tile, so that several short rows share a tile. A block takes one chunk of tiles, or
// several in a grid-stride loop if the grid is smaller, and a chunk gives one partial sum per parameter. The
// division depends on the shape, the pitches and the alignment of x alone (src/geometry.rs), so the sums have
// the same bits on any grid.
//
// There are two loops. whole_tiles takes the tiles that lie in one row where all buffers are aligned alike;
// it is what training runs, and has no branch. any_tile takes the others.
//
// The columns of x and v, or of dx and dv, may alternate in blocks: of one, or of whole packs. Packs are then
// anchored at the start of a row.
//
// An activation f(x) = x·G(x) is used plain, y = f(x), or gated by a second input v:
//
//   order 1:  y = G(x)·v        order 2:  y = f(x)·v
//
//   dx = dy·v·g'(x)    dv = dy·g(x)    dp = Σ dy·v·∂g/∂p    with g = G or f, and v = 1 if plain
//
// A functor Op provides
//   kParams                  number of trainable scalars
//   kUsual                   the first kUsual of them are summed in whole_tiles; calls that want the sums of
//                            others too take any_tile. All of them, unless the op says otherwise
//   Op::with<T>(args, f)     reads the parameters, calls f with the functor of this launch
//   op.at(Order<1 or 2, what is used of the Point>, x, upstream)
//                            a Point of G or f; the compiler removes fields that are not used
//   op.chain[i]              factor from the i-th sum to the gradient of the parameter
//   op.kName                 loop_name("..."), if the op has several functors
#pragma once

#include <type_traits>

#include "args.cuh"
#include "pack.cuh"
#include "reduce.cuh"

#if !defined(XACT_BLOCK) || !defined(XACT_BLOCKS_OF_1) || !defined(XACT_BLOCKS_OF_2) || \
    !defined(XACT_BLOCKS_OF_3) || !defined(XACT_PACKS) || !defined(XACT_MAX_CHUNKS) || !defined(XACT_FOLDS)
#error "the XACT_ numbers come from src/geometry.rs through build.rs"
#endif

// A comment in the PTX from which `cargo xtask sass` knows a loop: the functor's name, the sums that are
// taken, and whether y is written. It is no instruction.
#define XACT_MARK(name, sums, with_y) \
    asm volatile("// xact loop %0 %1 %2" ::"n"(name), "n"(sums), "n"(static_cast<int>(with_y)))

namespace xact {

using u64 = unsigned long long;

// The form of an activation: plain, or gated with an order.
enum class Form { Plain, Gated1, Gated2 };

__host__ __device__ constexpr bool is_gated(Form form) { return form != Form::Plain; }
__host__ __device__ constexpr int order(Form form) { return form == Form::Gated1 ? 1 : 2; }

// What a caller uses of a Point: the forward its value, the plain backward all but its value.
enum class Use { Value, Derivatives, All };

// Chooses between the overloads of at().
template <int kOrder, Use kUse>
struct Order {};

// A function g at one x: g, g', and upstream·∂g/∂p for each parameter. A functor multiplies in an order in
// which no intermediate overflows, so that the terms are 0 for a finite x and an upstream gradient of 0.
template <int kParams>
struct Point {
    float value;
    float slope;
    float terms[kParams];
};

// A trainable scalar, read from the device: f32, or the tensor's own type.
template <class T>
__device__ inline float read_param(const ActivationArgs& args, int i) {
    return args.params_are_f32 ? *reinterpret_cast<const float*>(args.params[i])
                               : to_float(*reinterpret_cast<const T*>(args.params[i]));
}

// Up to 8 characters as a number, which an asm statement can print.
__host__ __device__ constexpr u64 loop_name(const char* text) {
    u64 name = 0;
    for (; *text != 0; ++text) name = name << 8 | static_cast<unsigned char>(*text);
    return name;
}

template <class Functor>
__host__ __device__ constexpr u64 name_of() {
    if constexpr (requires { Functor::kName; }) return Functor::kName;
    return 0;
}
template <class Op>
__host__ __device__ constexpr int usual_sums() {
    if constexpr (requires { Op::kUsual; }) return Op::kUsual;
    return Op::kParams;
}

// A pack: its row, and its first element in the row, which is negative in pack 0 of a row with a skew.
struct Spot {
    u64 row;
    long long first;
};

// Its address in a matrix of elements T, as a pointer to As.
template <class As, class T = As>
__device__ inline As* at(const Matrix& matrix, Spot spot) {
    return reinterpret_cast<As*>(reinterpret_cast<T*>(matrix.ptr) + (spot.row * matrix.pitch + spot.first));
}

// Pack 0 begins before the row by `skew_bits` of the address of the row of x.
template <class T>
__device__ inline Spot spot_of(const ActivationArgs& args, u64 pack, unsigned skew_bits = 15) {
    u64 row = 0;
    if (args.rows > 1) {
        // With row_factor = ⌊(2^64 − 1)/packs_per_row⌋ the quotient is exact or 1 too small.
        row = __umul64hi(pack, args.row_factor);
        pack -= row * args.packs_per_row;
        if (pack >= args.packs_per_row) {
            ++row;
            pack -= args.packs_per_row;
        }
    }
    const unsigned x = static_cast<unsigned>(args.x.ptr + row * args.x.pitch * sizeof(T));
    const int skew = (x & skew_bits) / sizeof(T);
    return {row, static_cast<long long>(pack * Pack<T>::N) - skew};
}

// The place of a pack in one of two matrices whose columns alternate in blocks of -blocks; without blocks,
// the same place.
__device__ inline Spot among(Spot spot, long long blocks) {
    spot.first += spot.first & blocks;
    return spot;
}

// A number that the compiler does not know to be the same at every tile, so that no registers keep what
// follows from it.
__device__ inline long long not_kept(long long number) {
    asm volatile("" : "+l"(number));
    return number;
}

// The packs of a tile.
constexpr int kTile = XACT_BLOCK * XACT_PACKS;

// Ends the basic block, at the cost of one instruction; `aligned` is not 0. Otherwise ptxas delays some of
// the loads before it until others have arrived, for a few registers.
__device__ inline void after_loads(unsigned aligned) {
    asm volatile("{.reg .pred p; setp.eq.u32 p, %0, 0; @p exit;}" ::"r"(aligned));
}

// The packs of a thread in a tile.
template <class T, int kInputs>
struct Packs {
    Pack<T> packs[XACT_PACKS][kInputs];

    // `from` are the first ones of each input.
    __device__ void load(const uint4* const (&from)[kInputs]) {
#pragma unroll
        for (int k = 0; k < XACT_PACKS; ++k) {
#pragma unroll
            for (int i = 0; i < kInputs; ++i) packs[k][i].set(load_vector(from[i] + k * XACT_BLOCK));
        }
    }

    template <int kOutputs, class Compute>
    __device__ void process(uint4* const (&to)[kOutputs], unsigned aligned, const Compute& compute) const {
        constexpr int N = Pack<T>::N;
#pragma unroll
        for (int k = 0; k < XACT_PACKS; ++k) {
            after_loads(aligned);
            float v[kInputs][N], result[kOutputs][N];
#pragma unroll
            for (int i = 0; i < kInputs; ++i) packs[k][i].unpack(v[i]);
            compute(v, result);
#pragma unroll
            for (int o = 0; o < kOutputs; ++o) {
                store_vector(to[o] + k * XACT_BLOCK, Pack<T>(result[o]).v16);
            }
        }
    }
};

// The next tiles of a block.
template <class T>
struct Ahead {
    Spot spot;       // of the thread's first pack
    unsigned tiles;  // how many lie in one row, where all buffers are aligned; if 0, any_tile takes the first

    // Looks at the `left` tiles from `tile` on. Without `fast`, any_tile takes all.
    __device__ Ahead(const ActivationArgs& args, bool fast, u64 tile, unsigned left) : tiles(0) {
        constexpr int N = Pack<T>::N;
        if (!fast) return;
        spot = spot_of<T>(args, tile * kTile);
        const long long ahead = args.cols - spot.first;
        if (spot.first < 0 || ahead < kTile * N) return;
        const u64 in_row = static_cast<u64>(ahead) / (kTile * N);
        tiles = in_row < left ? static_cast<unsigned>(in_row) : left;
        spot.first += static_cast<int>(threadIdx.x) * N;
    }

    // The places of the first packs in the matrices.
    template <class As, int kCount>
    __device__ void places(const Matrix* const (&matrices)[kCount], As* (&places)[kCount]) const {
#pragma unroll
        for (int i = 0; i < kCount; ++i) places[i] = at<As, T>(*matrices[i], spot);
    }
};

// The work of a thread on whole tiles of one row. `first` has the packs of the first tile, or is null.
template <class T, int kInputs, int kOutputs, class Compute>
__device__ inline void whole_tiles(const Matrix* const (&in)[kInputs], const Matrix* const (&out)[kOutputs],
                                   const Ahead<T>& ahead, const Packs<T, kInputs>* first, unsigned aligned,
                                   const Compute& compute) {
    const uint4* from[kInputs];
    uint4* to[kOutputs];
    ahead.places(in, from);
    ahead.places(out, to);
    const auto advance = [&] {
#pragma unroll
        for (int i = 0; i < kInputs; ++i) from[i] += kTile;
#pragma unroll
        for (int o = 0; o < kOutputs; ++o) to[o] += kTile;
    };
    unsigned left = ahead.tiles;
    if (first != nullptr) {
        first->process(to, aligned, compute);
        advance();
        --left;
    }
#pragma unroll 1
    for (; left > 0; --left) {
        compute.mark();
        Packs<T, kInputs> tile;
        tile.load(from);
        tile.process(to, aligned, compute);
        advance();
    }
}

// The work of a thread on its packs of one tile of any rows and alignments. An output without a buffer is not
// written. The elements that a partial pack lacks are computed as zeros, which add 0 to every sum.
template <class T, int kInputs, int kOutputs, class Compute>
__device__ inline void any_tile(const ActivationArgs& args, const Matrix* const (&in)[kInputs],
                                const Matrix* const (&out)[kOutputs], u64 tile, const Compute& compute) {
    constexpr int N = Pack<T>::N;
    constexpr int K = XACT_PACKS;
    constexpr int kOfV = Compute::kOfV;
    long long xv_blocks = Compute::kGated ? args.xv_blocks : 0;
    long long dxv_blocks = 0;
    if (kOfV > 0) {
        xv_blocks = not_kept(xv_blocks);
        dxv_blocks = not_kept(args.dxv_blocks);
    }
    // Whether these alternate one by one.
    const bool xv_by_one = xv_blocks == -1;
    const bool dxv_by_one = dxv_blocks == -1;
    const auto input = [&](int i, Spot spot) {
        const bool of_pair = Compute::kGated && (i == 0 || i == kInputs - 1);
        return at<T>(*in[i], of_pair ? among(spot, xv_blocks) : spot);
    };
    const auto output = [&](int o, Spot spot) {
        const bool of_pair = kOfV > 0 && o <= kOfV;
        return at<T>(*out[o], of_pair ? among(spot, dxv_blocks) : spot);
    };
    // The end of a row, seen from the place of a pack. If x and v alternate one by one, a pack of x and one
    // of v hold the 2·N elements from twice the place on.
    const auto end = [&](Spot spot, bool by_one, bool of_v) {
        const long long left = args.cols - spot.first;
        return by_one ? 2 * left - (of_v ? N : 0) : left;
    };
    const unsigned skew_bits = (xv_blocks | dxv_blocks) == 0 ? 15 : 0;
    Pack<T> packs[K][kInputs];
    Spot spots[K];
    bool whole[K];
    // If all packs are whole and aligned, one branch covers all loads. With a branch for each input, ptxas
    // waits for some of three 16-bit inputs before it loads the others.
    bool straight = true;
#pragma unroll
    for (int k = 0; k < K; ++k) {
        spots[k] = spot_of<T>(args, tile * kTile + k * XACT_BLOCK + threadIdx.x, skew_bits);
        // Packs beyond the last row have no elements.
        if (spots[k].row >= args.rows) spots[k].first = args.cols;
        whole[k] = spots[k].first >= 0 && spots[k].first + N <= args.cols;
        straight = straight && whole[k];
        // A plain x is the anchor.
#pragma unroll
        for (int i = Compute::kGated ? 0 : 1; i < kInputs; ++i)
            straight = straight && width_at(input(i, spots[k])) == 16;
    }
    if (straight) {
#pragma unroll
        for (int k = 0; k < K; ++k) {
#pragma unroll
            for (int i = 0; i < kInputs; ++i)
                packs[k][i].set(load_vector(reinterpret_cast<const uint4*>(input(i, spots[k]))));
        }
    } else {
#pragma unroll
        for (int k = 0; k < K; ++k) {
#pragma unroll
            for (int i = 0; i < kInputs; ++i) {
                const T* from = input(i, spots[k]);
                if (whole[k]) {
                    packs[k][i].load(from, width_at(from));
                } else {
                    const bool of_v = i == kInputs - 1;
                    const bool by_one = xv_by_one && (i == 0 || of_v);
                    packs[k][i].load_some(from, -spots[k].first, end(spots[k], by_one, of_v));
                }
            }
        }
    }
    // Not unrolled, for half the code.
#pragma unroll 1
    for (int k = 0; k < K; ++k) {
        float v[kInputs][N], result[kOutputs][N];
        if (xv_by_one) split(packs[0][0], packs[0][kInputs - 1], args.v_first != 0);
#pragma unroll
        for (int i = 0; i < kInputs; ++i) packs[0][i].unpack(v[i]);
        compute(v, result);
        Pack<T> gradients[2];
        if (kOfV > 0) {
            gradients[0] = Pack<T>(result[0]);
            gradients[1] = Pack<T>(result[kOfV]);
            if (dxv_by_one) weave(gradients[0], gradients[1], args.dv_first != 0);
        }
#pragma unroll
        for (int o = 0; o < kOutputs; ++o) {
            if (out[o]->ptr == 0) continue;
            const bool of_pair = kOfV > 0 && o <= kOfV;
            const auto pack = [&] { return of_pair ? gradients[o] : Pack<T>(result[o]); };
            T* to = output(o, spots[0]);
            if (whole[0]) {
                pack().store(to, width_at(to));
            } else {
                pack().store_some(to, -spots[0].first, end(spots[0], dxv_by_one && of_pair, o == kOfV));
            }
        }
#pragma unroll
        for (int j = 0; j + 1 < K; ++j) {
            spots[j] = spots[j + 1];
            whole[j] = whole[j + 1];
#pragma unroll
            for (int i = 0; i < kInputs; ++i) packs[j][i] = packs[j + 1][i];
        }
    }
}

// Inputs x (, v); output y.
template <class Functor, Form kForm>
struct Forward {
    static constexpr bool kGated = is_gated(kForm);
    static constexpr int kInputs = kGated ? 2 : 1;
    static constexpr int kOutputs = 1;
    static constexpr int kOfV = 0;

    const Functor& op;

    __device__ void mark() const { XACT_MARK(name_of<Functor>(), 0, 0); }

    template <int N>
    __device__ void operator()(const float (&in)[kInputs][N], float (&out)[kOutputs][N]) const {
#pragma unroll
        for (int i = 0; i < N; ++i) {
            const float g = op.at(Order<order(kForm), Use::Value>(), in[0][i], 0.0f).value;
            out[0][i] = is_gated(kForm) ? g * in[kInputs - 1][i] : g;
        }
    }
};

// Inputs x, dy (, v); outputs dx (, dv) and, if kWithY, y. Sums the terms of the first kSums parameter
// gradients.
template <class Functor, Form kForm, int kSums, bool kWithY>
struct Backward {
    static constexpr bool kGated = is_gated(kForm);
    static constexpr int kInputs = kGated ? 3 : 2;
    static constexpr int kOutputs = (kGated ? 2 : 1) + kWithY;
    static constexpr int P = Functor::kParams;
    static constexpr Use kUse = is_gated(kForm) ? Use::All : Use::Derivatives;

    const Functor& op;
    Sum (&sums)[P];

    __device__ void mark() const { XACT_MARK(name_of<Functor>(), kSums, kWithY); }

    template <int N>
    __device__ void operator()(const float (&in)[kInputs][N], float (&out)[kOutputs][N]) const {
        TreeSum<N> terms[P];
#pragma unroll
        for (int i = 0; i < N; ++i) {
            const float dy = in[1][i];
            const float dg = is_gated(kForm) ? dy * in[kInputs - 1][i] : dy;
            const Point<P> g = op.at(Order<order(kForm), kUse>(), in[0][i], dg);
            // With the formula of the forward, so that y has its bits.
            const float value = op.at(Order<order(kForm), Use::Value>(), in[0][i], 0.0f).value;
            if (kWithY) out[kOutputs - 1][i] = is_gated(kForm) ? value * in[kInputs - 1][i] : value;
            if (is_gated(kForm)) out[kOfV][i] = dy * g.value;
            out[0][i] = dg * g.slope;
#pragma unroll
            for (int p = 0; p < kSums; ++p) terms[p].add(i, g.terms[p]);
        }
#pragma unroll
        for (int p = 0; p < kSums; ++p) sums[p].add(terms[p].value());
    }

    // The place of dv among the outputs; without dv, that of dx.
    static constexpr int kOfV = kGated ? 1 : 0;
};

// The matrices that a backward reads and writes, in the order of Backward.
template <Form kForm>
struct Inputs {
    static constexpr int kCount = is_gated(kForm) ? 3 : 2;
    const Matrix* matrices[kCount];

    __device__ explicit Inputs(const ActivationArgs& args) {
        matrices[kCount - 1] = &args.v;
        matrices[0] = &args.x;
        matrices[1] = &args.dy;
    }
};
template <class Compute>
struct Outputs {
    const Matrix* matrices[Compute::kOutputs];

    __device__ explicit Outputs(const ActivationArgs& args) {
        matrices[Compute::kOutputs - 1] = &args.y;
        matrices[Compute::kOfV] = &args.dv;
        matrices[0] = &args.dx;
    }
};

// The chunks' sums of parameter p in the workspace: args.chunks pairs and, if the second stage has several
// blocks, a pair for each of at most XACT_FOLDS blocks, and a counter in place of a pair.
__device__ inline float2* partials_of(const ActivationArgs& args, int p) {
    const u64 pairs = args.chunks + (args.folds > 1 ? XACT_FOLDS + 1 : 0);
    return reinterpret_cast<float2*>(args.partials) + p * pairs;
}
__device__ inline unsigned* counter_of(const ActivationArgs& args, int p) {
    return reinterpret_cast<unsigned*>(partials_of(args, p) + args.chunks + XACT_FOLDS);
}

template <class Op, class T, Form kForm>
__device__ inline void forward(const ActivationArgs& args) {
    constexpr int kInputs = is_gated(kForm) ? 2 : 1;
    const Matrix* in[kInputs];
    in[kInputs - 1] = &args.v;
    in[0] = &args.x;
    const Matrix* const out[1] = {&args.y};
    // A chunk is a tile.
    u64 tile = blockIdx.x;
    Ahead<T> ahead(args, args.aligned != 0, tile, 1);
    // The first packs are loaded before the parameters are read, so that the block does not wait for the one
    // and then for the other.
    Packs<T, kInputs> first;
    const uint4* from[kInputs];
    if (ahead.tiles > 0) {
        ahead.places(in, from);
        first.load(from);
    }
    Op::template with<T>(args, [&](const auto& op) {
        const Forward<std::decay_t<decltype(op)>, kForm> compute{op};
        while (true) {
            if (ahead.tiles > 0) {
                whole_tiles<T>(in, out, ahead, &first, args.aligned, compute);
            } else {
                any_tile<T>(args, in, out, tile, compute);
            }
            tile += gridDim.x;
            if (tile >= args.chunks) break;
            ahead = Ahead<T>(args, args.aligned != 0, tile, 1);
            if (ahead.tiles > 0) {
                ahead.places(in, from);
                first.load(from);
            }
        }
    });
}

// The tile behind a chunk; the first long_chunks chunks have a tile more than the others. It is computed each
// time, from a number that the compiler does not know to be the same, so that no registers keep it.
__device__ inline u64 end_of(const ActivationArgs& args, unsigned chunk) {
    unsigned next = chunk + 1;
    asm volatile("" : "+r"(next));
    return static_cast<u64>(next) * args.tiles_per_chunk + min(next, args.long_chunks);
}

// Writes dx (and dv), y if it has a buffer, and one partial Sum per parameter and chunk.
template <class Op, class T, Form kForm>
__device__ inline void backward(const ActivationArgs& args) {
    constexpr int P = Op::kParams;
    constexpr int kUsual = usual_sums<Op>();
    __shared__ float2 scratch[P][XACT_BLOCK / 32];
    bool fast = args.aligned != 0;
#pragma unroll
    for (int p = kUsual; p < P; ++p) fast = fast && args.dparams[p] == 0;
    const Inputs<kForm> in(args);
    Op::template with<T>(args, [&](const auto& op) {
        using Functor = std::decay_t<decltype(op)>;
        using Usual = Backward<Functor, kForm, kUsual, false>;
        using UsualWithY = Backward<Functor, kForm, kUsual, true>;
        using All = Backward<Functor, kForm, P, true>;
        // Loaded before the parameters are read, the packs would take registers that spill.
        const Packs<T, in.kCount>* const none = nullptr;
        Sum sums[P];
        for (unsigned chunk = blockIdx.x; chunk < args.chunks; chunk += gridDim.x) {
            unsigned left = args.tiles_per_chunk + (chunk < args.long_chunks);
            while (left > 0) {
                const u64 tile = end_of(args, chunk) - left;
                const Ahead<T> ahead(args, fast, tile, left);
                if (ahead.tiles == 0) {
                    --left;
                    const Outputs<All> out(args);
                    any_tile<T>(args, in.matrices, out.matrices, tile, All{op, sums});
                    continue;
                }
                left -= ahead.tiles;
                if (args.y.ptr == 0) {
                    const Outputs<Usual> out(args);
                    whole_tiles<T>(in.matrices, out.matrices, ahead, none, args.aligned, Usual{op, sums});
                } else {
                    const Outputs<UsualWithY> out(args);
                    whole_tiles<T>(in.matrices, out.matrices, ahead, none, args.aligned,
                                   UsualWithY{op, sums});
                }
            }
            if (chunk != blockIdx.x) __syncthreads();  // thread 0 may still be reading scratch
#pragma unroll
            for (int p = 0; p < P; ++p) {
                if (args.dparams[p] == 0) continue;
                const Sum total = block_sum<XACT_BLOCK>(sums[p], scratch[p]);
                if (threadIdx.x == 0) {
                    partials_of(args, p)[chunk] = make_float2(total.sum, total.comp);
                    if (chunk == 0 && args.folds > 1) *counter_of(args, p) = 0;
                }
                sums[p] = Sum();
            }
        }
    });
}

// The second stage, of args.folds blocks for each parameter. A block adds its share of the partial sums, all
// read at once, and the block that is done last adds the sums of the blocks. The order depends on the number
// of chunks alone.
template <class Op, class T>
__device__ inline void dparams(const ActivationArgs& args) {
    constexpr int kEach = (XACT_MAX_CHUNKS + XACT_BLOCK * XACT_FOLDS - 1) / (XACT_BLOCK * XACT_FOLDS);
    __shared__ float2 scratch[XACT_BLOCK / 32];
    const unsigned folds = args.folds;
    const unsigned fold = blockIdx.x % folds;
#pragma unroll
    for (int p = 0; p < Op::kParams; ++p) {
        if (p != blockIdx.x / folds || args.dparams[p] == 0) continue;
        float2* partials = partials_of(args, p);
        float2 mine[kEach];
#pragma unroll
        for (int j = 0; j < kEach; ++j) {
            const u64 chunk = (j * folds + fold) * XACT_BLOCK + threadIdx.x;
            mine[j] = chunk < args.chunks ? partials[chunk] : make_float2(0.0f, 0.0f);
        }
        Sum sum;
#pragma unroll
        for (int j = 0; j < kEach; ++j) sum.add(Sum(mine[j].x, mine[j].y));
        sum = block_sum<XACT_BLOCK>(sum, scratch);
        if (threadIdx.x != 0) return;
        if (folds > 1) {
            float2* of_folds = partials + args.chunks;
            of_folds[fold] = make_float2(sum.sum, sum.comp);
            __threadfence();
            const bool last = atomicAdd(counter_of(args, p), 1u) == folds - 1;
            __threadfence();
            if (!last) return;
            float2 all[XACT_FOLDS];
#pragma unroll
            for (int f = 0; f < XACT_FOLDS; ++f) all[f] = f < folds ? of_folds[f] : make_float2(0.0f, 0.0f);
            sum = Sum();
#pragma unroll
            for (int f = 0; f < XACT_FOLDS; ++f) sum.add(Sum(all[f].x, all[f].y));
        }
        Op::template with<T>(args, [&](const auto& op) {
            float* out = reinterpret_cast<float*>(args.dparams[p]);
            const float value = op.chain[p] * sum.value();
            *out = args.accumulate ? *out + value : value;
        });
    }
}

}  // namespace xact

#define XACT_ENTRY(name, blocks, body)                               \
    extern "C" __global__ void __launch_bounds__(XACT_BLOCK, blocks) \
        name(const __grid_constant__ xact::ActivationArgs args) {    \
        body;                                                        \
    }

// The entries of an activation, named <name>_<task>_<dtype>.
#define XACT_FORM(name, Op, suffix, T, prefix, form, forward_blocks, backward_blocks) \
    XACT_ENTRY(name##_##prefix##forward_##suffix, forward_blocks,                     \
               (xact::forward<Op, T, xact::Form::form>(args)))                        \
    XACT_ENTRY(name##_##prefix##backward_##suffix, backward_blocks,                   \
               (xact::backward<Op, T, xact::Form::form>(args)))
#define XACT_PLAIN_OF(name, Op, suffix, T)                                      \
    XACT_FORM(name, Op, suffix, T, , Plain, XACT_BLOCKS_OF_1, XACT_BLOCKS_OF_2) \
    XACT_ENTRY(name##_dparams_##suffix, 1, (xact::dparams<Op, T>(args)))
#define XACT_GATED_OF(name, Op, suffix, T)                                              \
    XACT_FORM(name, Op, suffix, T, gated1_, Gated1, XACT_BLOCKS_OF_2, XACT_BLOCKS_OF_3) \
    XACT_FORM(name, Op, suffix, T, gated2_, Gated2, XACT_BLOCKS_OF_2, XACT_BLOCKS_OF_3)

// An activation, and its gated forms.
#define XACT_ACTIVATION(name, Op)        \
    XACT_PLAIN_OF(name, Op, f32, float)  \
    XACT_PLAIN_OF(name, Op, f16, __half) \
    XACT_PLAIN_OF(name, Op, bf16, __nv_bfloat16)
#define XACT_GATED(name, Op)             \
    XACT_GATED_OF(name, Op, f32, float)  \
    XACT_GATED_OF(name, Op, f16, __half) \
    XACT_GATED_OF(name, Op, bf16, __nv_bfloat16)
