// xact from C++17: handles and calls that throw, and every type of element on the host.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <stdexcept>
#include <thread>
#include <vector>

#include "xact.h"

namespace {

struct Error : std::runtime_error {
    explicit Error(xact_status status) : std::runtime_error(xact_last_error()), status(status) {}
    xact_status status;
};

void check(xact_status status)
{
    if (status != XACT_OK)
        throw Error(status);
}

void expect(bool ok, const char *what)
{
    if (!ok)
        throw std::logic_error(what);
}

template <typename Args>
Args sized()
{
    Args args{};
    args.size = sizeof args;
    return args;
}

struct Free {
    void operator()(xact_goldfish *goldfish) const { xact_goldfish_free(goldfish); }
};
using Goldfish = std::unique_ptr<xact_goldfish, Free>;

Goldfish goldfish(std::int32_t kind, std::uint32_t k, std::uint64_t h)
{
    auto strategy = sized<xact_goldfish_strategy>();
    strategy.kind = kind;
    strategy.k = k;
    strategy.h = h;
    xact_goldfish *handle = nullptr;
    check(xact_goldfish_create(&strategy, &handle));
    return Goldfish(handle);
}

float from_bf16(std::uint16_t bits)
{
    std::uint32_t wide = std::uint32_t(bits) << 16;
    float value;
    static_assert(sizeof value == sizeof wide);
    __builtin_memcpy(&value, &wide, sizeof value);
    return value;
}

// y = f(x)·v of xSiLU in bf16: gate and value are the halves of each row, the parameter is an f32.
void gated()
{
    constexpr std::uint64_t rows = 3, cols = 5;
    std::vector<std::uint16_t> xv(rows * 2 * cols, 0x3f80), y(rows * cols);  // 1.0
    const float alpha = 0;
    const void *params[] = {&alpha};
    xact_activation op;
    check(xact_activation_init(&op, sizeof op, "xsilu"));
    auto args = sized<xact_activation_args>();
    args.rows = rows;
    args.cols = cols;
    args.dtype = XACT_DTYPE_BF16;
    args.order = XACT_ORDER_SECOND;
    args.params = params;
    args.param_count = 1;
    args.x = {xv.data(), 2 * cols};
    args.v = {xv.data() + cols, 2 * cols};
    args.y = {y.data(), 0};
    check(xact_activation_forward_host(&op, &args));
    // With α = 0 it is SiLU: 1/(1 + e⁻¹), to the 8 bits of a bf16.
    for (auto bits : y)
        expect(std::abs(from_bf16(bits) - 0.731059) < 2e-3, "y of xSiLU");

    // The gradients over gate and value.
    std::vector<std::uint16_t> dy(rows * cols, 0x3f80);
    args.y = {};
    args.dy = {dy.data(), 0};
    args.dx = args.x;
    args.dv = args.v;
    check(xact_activation_backward_host(&op, &args));
    expect(std::abs(from_bf16(xv[0]) - 0.927671) < 4e-3, "dx of xSiLU");
    expect(std::abs(from_bf16(xv[cols]) - 0.731059) < 2e-3, "dv of xSiLU");
}

// Columns of two ranks: each saves the stats of its own, and all finish from what was gathered.
void ranks()
{
    constexpr std::uint64_t rows = 4, cols = 6, half = cols / 2;
    std::vector<float> logits(rows * cols), losses(rows), again(rows);
    for (std::size_t i = 0; i < logits.size(); i++)
        logits[i] = float(i * 7 % 11);
    const std::vector<std::int64_t> labels{0, 5, -100, 3};
    xact_cross_entropy op;
    check(xact_cross_entropy_init(&op, sizeof op));
    xact_cross_entropy_summary summary;
    auto args = sized<xact_cross_entropy_args>();
    args.rows = rows;
    args.cols = cols;
    args.dtype = XACT_DTYPE_F32;
    args.label_type = XACT_ID_I64;
    args.logits = {logits.data(), cols, 0, 0};
    args.labels = labels.data();
    args.loss = losses.data();
    args.summary = &summary;
    check(xact_cross_entropy_forward_host(&op, &args));

    std::uint64_t bytes = 0;
    check(xact_cross_entropy_saved_bytes(&op, rows, &bytes));
    std::vector<std::uint32_t> gathered(2 * bytes / sizeof(std::uint32_t));
    auto *place = reinterpret_cast<unsigned char *>(gathered.data());
    args.cols = half;
    args.classes = cols;
    for (std::uint64_t rank = 0; rank < 2; rank++) {
        args.logits.ptr = logits.data() + rank * half;
        args.first_class = rank * half;
        args.saved = place + rank * bytes;
        check(xact_cross_entropy_partial_stats_host(&op, &args));
    }
    args.gathered = place;
    args.ranks = 2;
    args.saved = nullptr;
    args.loss = again.data();
    check(xact_cross_entropy_finish_host(&op, &args));
    for (std::size_t row = 0; row < rows; row++)
        expect(std::abs(losses[row] - again[row]) < 1e-5, "the losses of two ranks");
    expect(again[2] == 0 && summary.kept == 3 && summary.bad_row == UINT64_MAX, "the summary of two ranks");
}

void errors()
{
    try {
        goldfish(XACT_STRATEGY_HASH64, 1, 13);
        expect(false, "k = 1 is refused");
    } catch (const Error &error) {
        expect(error.status == XACT_ERROR_OUT_OF_RANGE, error.what());
    }
    // Each thread has its own text.
    std::thread([] { expect(*xact_last_error() == 0, "another thread's error"); }).join();
    expect(*xact_last_error() != 0, "this thread's error");
}

}  // namespace

int main()
{
    try {
        check(xact_set_num_threads(2));
        gated();
        ranks();
        errors();
        auto of_table = goldfish(XACT_STRATEGY_PRODUCT_TABLE, 4, 13);
        double share = 0;
        check(xact_goldfish_dropped_share(of_table.get(), &share));
        expect(std::abs(share - 0.25) < 1e-3, "the share that is dropped");
    } catch (const std::exception &error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
    std::puts("ok");
    return 0;
}
