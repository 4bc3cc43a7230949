/*
 * xact from C99: an activation, a Goldfish mask and the loss on the host. For a CUDA device, the calls have two more
 * arguments, a device and a stream, and need a workspace. The pointers are to device memory:
 *
 *     xact_device *device;
 *     check(xact_device_open(0, &device));
 *     check(xact_device_preload(device, NULL));
 *     check(xact_activation_workspace_bytes(&op, args.dtype, args.rows, args.cols, &args.workspace_bytes));
 *     args.workspace = ...;
 *     check(xact_activation_backward(device, stream, &op, &args));
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "xact.h"

#define LEN(array) (sizeof(array) / sizeof *(array))

static void check(xact_status status)
{
    if (status != XACT_OK) {
        fprintf(stderr, "xact: error %d: %s\n", (int)status, xact_last_error());
        exit(1);
    }
}

static void expect(int ok, const char *what)
{
    if (!ok) {
        fprintf(stderr, "wrong: %s\n", what);
        exit(1);
    }
}

static int near_to(double got, double expected)
{
    return fabs(got - expected) <= 1e-5 * (1 + fabs(expected));
}

/* xIELU: f(x) = α_p·x² + β·x above 0, α_n·(e^x − 1 − x) + β·x below. */
static void activation(void)
{
    const float x[] = {-1, 0, 1, 2};
    const float dy[] = {1, 1, 1, 1};
    float y[LEN(x)], dx[LEN(x)];
    const float alpha_p = 0.8f, alpha_n = 0.8f;
    float dalpha_p, dalpha_n;
    const void *params[] = {&alpha_p, &alpha_n};
    float *dparams[] = {&dalpha_p, &dalpha_n};

    xact_activation op;
    check(xact_activation_init(&op, sizeof op, "xielu"));
    op.parameters = XACT_PARAMETERS_EFFECTIVE;

    xact_activation_args args = {0};
    args.size = sizeof args;
    args.rows = 1;
    args.cols = LEN(x);
    args.dtype = XACT_DTYPE_F32;
    args.params = params;
    args.param_count = LEN(params);
    args.x.ptr = (void *)x;
    args.y.ptr = y;
    check(xact_activation_forward_host(&op, &args));
    printf("y = %g %g %g %g\n", y[0], y[1], y[2], y[3]);
    expect(near_to(y[0], 0.8 * exp(-1) - 0.5) && y[1] == 0 && near_to(y[2], 1.3) && near_to(y[3], 4.2), "y");

    args.y.ptr = NULL;
    args.dy.ptr = (void *)dy;
    args.dx.ptr = dx;
    args.dparams = dparams;
    args.dparam_count = LEN(dparams);
    check(xact_activation_backward_host(&op, &args));
    printf("dx = %g %g %g %g, dalpha_p = %g, dalpha_n = %g\n", dx[0], dx[1], dx[2], dx[3], dalpha_p, dalpha_n);
    expect(near_to(dx[2], 2.1) && near_to(dx[3], 3.7), "dx");
    expect(near_to(dalpha_p, 5) && near_to(dalpha_n, exp(-1)), "the gradients of the parameters");

    /* A bad call returns an error number with a text, and writes nothing. */
    dx[0] = 77;
    args.dtype = 99;
    expect(xact_activation_backward_host(&op, &args) == XACT_ERROR_ENUM, "an unknown type");
    expect(strstr(xact_last_error(), "dtype is 99") != NULL && dx[0] == 77, "the text of an error");
    args.dtype = XACT_DTYPE_F32;
    args.x.ptr = NULL;
    expect(xact_activation_backward_host(&op, &args) == XACT_ERROR_NULL && dx[0] == 77, "a null pointer");
}

/* Prints the activations of the library and their parameters. */
static void names(void)
{
    expect(xact_abi_version() == XACT_ABI_VERSION, "the version of the interface");
    for (uint64_t i = 0; i < xact_activation_count(); i++) {
        xact_signature signature = {0};
        signature.size = sizeof signature;
        check(xact_activation_describe(xact_activation_name(i), &signature));
        printf("%s:", signature.name);
        for (uint64_t p = 0; p < signature.params; p++)
            printf(" %s%s", signature.param_names[p], p + signature.optional >= signature.params ? "?" : "");
        printf("%s\n", signature.gated ? ", also gated" : "");
    }
    xact_signature signature = {0};
    signature.size = sizeof signature;
    expect(xact_activation_describe("relu", &signature) == XACT_ERROR_UNKNOWN_OP, "an op that is not there");
}

/* Computes the loss without the rows that Goldfish drops, and overwrites the logits with their gradients. */
static void loss(void)
{
    enum { ROWS = 64, CLASSES = 50 };
    static float logits[ROWS][CLASSES];
    int32_t labels[ROWS];
    uint8_t keep[ROWS];
    int64_t counts[2];
    float losses[ROWS];
    for (int row = 0; row < ROWS; row++) {
        labels[row] = row * 7 % CLASSES;
        for (int column = 0; column < CLASSES; column++)
            logits[row][column] = (float)((row * 31 + column * 17) % 23) / 10;
    }
    labels[3] = -100;

    xact_goldfish_strategy strategy = {0};
    strategy.size = sizeof strategy;
    strategy.kind = XACT_STRATEGY_HASH64;
    strategy.k = 4;
    strategy.h = 5;
    xact_goldfish *goldfish;
    check(xact_goldfish_create(&strategy, &goldfish));

    xact_decision decision = {0};
    decision.size = sizeof decision;
    decision.goldfish = goldfish;
    decision.hash_ids = labels;
    decision.id_type = XACT_ID_I32;

    xact_goldfish_args mask = {0};
    mask.size = sizeof mask;
    mask.labels = ROWS;
    mask.decision = &decision;
    mask.keep = keep;
    mask.counts = counts;
    check(xact_goldfish_mask_host(&mask));
    printf("%d labels kept, %d dropped\n", (int)counts[0], (int)counts[1]);

    xact_cross_entropy op;
    check(xact_cross_entropy_init(&op, sizeof op));
    op.z_loss = 1e-4f;
    xact_cross_entropy_summary summary;
    xact_cross_entropy_args args = {0};
    args.size = sizeof args;
    args.rows = ROWS;
    args.cols = CLASSES;
    args.dtype = XACT_DTYPE_F32;
    args.label_type = XACT_ID_I32;
    args.logits.ptr = logits;
    args.labels = labels;
    args.decision = &decision;
    args.loss = losses;
    args.summary = &summary;
    check(xact_cross_entropy_forward_with_gradient_host(&op, &args));
    printf("mean loss %g of %d rows\n", summary.mean, (int)summary.kept);
    check(xact_goldfish_free(goldfish));

    double sum = 0;
    for (int row = 0; row < ROWS; row++) {
        double gradient = 0;
        for (int column = 0; column < CLASSES; column++)
            gradient += fabs(logits[row][column]);
        int kept = keep[row] && labels[row] != -100;
        expect((losses[row] > 0) == kept && (gradient > 0) == kept, "a row");
        sum += losses[row];
    }
    expect(near_to(summary.loss, sum) && near_to(summary.mean, sum / (double)summary.kept), "the totals");
    expect(counts[0] + counts[1] == ROWS && counts[1] > 0, "the counts");
}

int main(void)
{
    printf("xact %s\n", xact_version());
    if (xact_cuda_available() != XACT_OK)
        printf("no CUDA: %s\n", xact_last_error());
    names();
    activation();
    loss();
    return 0;
}
