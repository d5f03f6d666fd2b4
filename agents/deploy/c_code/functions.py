"""The C functions that a policy's file may need: each is written where something calls it, and nowhere else."""

LINEAR = """
/* y = W x + b; four sums at a time round less than one, and wait less. */
static void linear(const float *weight, const float *bias, int rows, int columns, const float *x, float *y)
{
    for (int row = 0; row < rows; row++, weight += columns) {
        float a = 0.0f, b = 0.0f, c = 0.0f, d = 0.0f;
        int i = 0;
        for (; i + 4 <= columns; i += 4) {
            a += weight[i] * x[i];
            b += weight[i + 1] * x[i + 1];
            c += weight[i + 2] * x[i + 2];
            d += weight[i + 3] * x[i + 3];
        }
        for (; i < columns; i++)
            a += weight[i] * x[i];
        y[row] = ((a + b) + (c + d)) + (bias ? bias[row] : 0.0f);
    }
}
"""
LINEAR8 = """
/* y = step W x + b, W in eight bits and a step for each row; four sums at a time round less than one, and wait less. */
static void linear8(const signed char *weight, const float *step, const float *bias, int rows, int columns,
                    const float *x, float *y)
{
    for (int row = 0; row < rows; row++, weight += columns) {
        float a = 0.0f, b = 0.0f, c = 0.0f, d = 0.0f;
        int i = 0;
        for (; i + 4 <= columns; i += 4) {
            a += (float)weight[i] * x[i];
            b += (float)weight[i + 1] * x[i + 1];
            c += (float)weight[i + 2] * x[i + 2];
            d += (float)weight[i + 3] * x[i + 3];
        }
        for (; i < columns; i++)
            a += (float)weight[i] * x[i];
        y[row] = step[row] * ((a + b) + (c + d)) + (bias ? bias[row] : 0.0f);
    }
}
"""
ELEMENTWISE = """
static void NAME_all(float *x, int n)
{
    for (int i = 0; i < n; i++)
        x[i] = EXPRESSION;
}
"""
EXPRESSIONS = {  # as torch.nn's modules with their defaults
    "tanh": "tanhf(x[i])",
    "relu": "x[i] < 0.0f ? 0.0f : x[i]",
    "gelu": "0.5f * x[i] * (1.0f + erff(x[i] * 0.707106781f))",
    "silu": "x[i] / (1.0f + expf(-x[i]))",
    "elu": "x[i] > 0.0f ? x[i] : expm1f(x[i])",
    "leaky_relu": "x[i] > 0.0f ? x[i] : 0.01f * x[i]",
    "mish": "x[i] * tanhf(x[i] > 20.0f ? x[i] : log1pf(expf(x[i])))",
}
AFFINE = """
static void affine(const float *scale, const float *shift, float *x, int n)
{
    for (int i = 0; i < n; i++)
        x[i] = x[i] * scale[i] + shift[i];
}
"""
LAYER_NORM = """
static void layer_norm(const float *weight, const float *bias, float eps, float *x, int n)
{
    float mean = 0.0f, square = 0.0f;
    for (int i = 0; i < n; i++)
        mean += x[i];
    mean /= (float)n;
    for (int i = 0; i < n; i++)
        square += (x[i] - mean) * (x[i] - mean);
    square = 1.0f / sqrtf(square / (float)n + eps);
    for (int i = 0; i < n; i++)
        x[i] = (x[i] - mean) * square * weight[i] + bias[i];
}
"""
SIGMOID = """
static float sigmoid(float x)
{
    return 1.0f / (1.0f + expf(-x));
}
"""
GRU = """
/* A cell of n units (Cho et al. 2014), from what its input (x) and its past (y) give: 3 n each. */
static void gru(const float *x, const float *y, float *h, int n)
{
    for (int i = 0; i < n; i++) {
        const float reset = sigmoid(x[i] + y[i]), keep = sigmoid(x[n + i] + y[n + i]);
        const float fresh = tanhf(x[2 * n + i] + reset * y[2 * n + i]);
        h[i] = fresh + keep * (h[i] - fresh);
    }
}
"""
LSTM = """
/* A cell of n units (Hochreiter and Schmidhuber 1997), from what its input (x) and its past (y) give: 4 n each. */
static void lstm(const float *x, const float *y, float *h, float *c, int n)
{
    for (int i = 0; i < n; i++) {
        const float in = sigmoid(x[i] + y[i]), keep = sigmoid(x[n + i] + y[n + i]);
        c[i] = keep * c[i] + in * tanhf(x[2 * n + i] + y[2 * n + i]);
        h[i] = sigmoid(x[3 * n + i] + y[3 * n + i]) * tanhf(c[i]);
    }
}
"""
CLIP = """
static float clip(float x, float low, float high)
{
    return x < low ? low : x > high ? high : x;
}
"""
CHOICE = """
/* The first of the largest. */
static int choice(const float *x, int n)
{
    int best = 0;
    for (int i = 1; i < n; i++)
        if (x[i] > x[best])
            best = i;
    return best;
}
"""
FUNCTIONS = {  # in the order in which they stand in a file
    "linear": LINEAR,
    "linear8": LINEAR8,
    **{f"{name}_all": ELEMENTWISE.replace("NAME", name).replace("EXPRESSION", e) for name, e in EXPRESSIONS.items()},
    "affine": AFFINE,
    "layer_norm": LAYER_NORM,
    "sigmoid": SIGMOID,
    "gru": GRU,
    "lstm": LSTM,
    "clip": CLIP,
    "choice": CHOICE,
}
MAIN = """
#ifdef POLICY_MAIN
#include <stdio.h>

/* Reads numbers and prints a line of actions for each step, until the input ends; a run is one episode. A step is,
   group by group and agent by agent, the observation, and then, where choices may be forbidden, a 1 or a 0 for each. */
static int number(float *x)
{
    return scanf("%f", x);
}

int main(void)
{
@MEMORY@    for (;;) {
        float first;
        const int found = number(&first);
        if (found == EOF)
            return 0;
        int at_start = 1;
        const char *gap = "";
        if (found != 1)
            break;
@GROUPS@        printf("\\n");
        (void)at_start;
        continue;
    }
cut_short:
    fprintf(stderr, "a step's input ends early or holds what is no number\\n");
    return 1;
}
#endif
"""
OF_GROUP = """\
        for (int agent = 0; agent < @AGENTS@; agent++) {
            float observation[@FEATURES@];
            for (int i = 0; i < @FEATURES@; i++) {
                if (at_start)
                    observation[i] = first;
                else if (number(observation + i) != 1)
                    goto cut_short;
                at_start = 0;
            }
@MASK@            @KIND@ action[@ACTIONS@];
            @CALL@
            for (int i = 0; i < @ACTIONS@; i++, gap = " ")
                printf("%s@FORMAT@", gap, @PRINTED@);
        }
"""
READ_MASK = """\
            unsigned char allowed[@CHOICES@];
            for (int i = 0; i < @CHOICES@; i++) {
                float x;
                if (number(&x) != 1)
                    goto cut_short;
                allowed[i] = x != 0.0f;
            }
"""
