#include "worker/bench/report.h"

#include <inttypes.h>
#include <math.h>

#include "base/sizes.h"

double bench_floor(const struct bench_phase *p) {
    return p->flops / p->gemm;
}

static double parameters(const struct model *m) {
    double sum = m->arch.tied ? 0 : (double)m->embedding->count;
    for (int64_t i = 0; i < m->linear_count; i++)
        sum += (double)m->linears[i].weight->count;
    return sum;
}

/* --- the table --- */

static void fixed(FILE *out, int width, int digits, double value) {
    if (isfinite(value))
        fprintf(out, " %*.*f", width, digits, value);
    else
        fprintf(out, " %*s", width, "-");
}

/* Four significant digits: from a tiny model's microseconds to a large one's minutes. */
static void significant(FILE *out, int width, double value) {
    if (isfinite(value))
        fprintf(out, " %*.4g", width, value);
    else
        fprintf(out, " %*s", width, "-");
}

static void print_head(const struct bench_report *r, FILE *out) {
    const struct arch *a = &r->model->arch;
    double count = parameters(r->model);
    fprintf(out, "%s: %d blocks, hidden %d, intermediate %d, %d heads over %d, vocab %d, %.4g %c parameters\n",
            a->family, a->blocks, a->hidden, a->intermediate, a->heads, a->kv_heads, a->vocab,
            count >= 1e9 ? count * 1e-9 : count * 1e-6, count >= 1e9 ? 'G' : 'M');
    fprintf(out, "%s (%s), %s, %" PRId64 " windows of %" PRId64 " tokens, weights generated in %.1f s\n", r->device,
            r->hardware, r->arithmetic, r->windows, r->length, r->generate_seconds);
}

static void print_phase(const struct bench_phase *p, FILE *out) {
    fprintf(out, "%-22s %9" PRId64, p->name, p->tokens);
    significant(out, 10, p->seconds);
    fixed(out, 9, 3, p->other);
    fixed(out, 8, 3, p->load);
    fixed(out, 10, 0, (double)p->tokens / p->seconds);
    significant(out, 9, p->flops / p->seconds * 1e-12);
    significant(out, 10, bench_floor(p));
    fixed(out, 7, 2, p->seconds / bench_floor(p));
    fputc('\n', out);
}

static void print_quantizers(const struct bench_report *r, FILE *out) {
    if (r->quantizer_count == 0) return;
    fprintf(out, "\n%-22s %9s %10s %9s\n", "quantize a block", "M weights", "seconds", "Gweight/s");
    for (int i = 0; i < r->quantizer_count; i++) {
        const struct bench_quantizer *q = &r->quantizers[i];
        fprintf(out, "%-22s %9.4g %10.4g %9.4g\n", q->candidate, q->weights * 1e-6, q->seconds,
                q->weights / q->seconds * 1e-9);
    }
}

static void print_summary(const struct bench_report *r, FILE *out) {
    char peak[24], limit[24];
    fputc('\n', out);
    if (isfinite(r->paired_ratio)) fprintf(out, "%-26s %.2f\n", "paired eval / eval", r->paired_ratio);
    if (isfinite(r->candidate_seconds)) fprintf(out, "%-26s %.3f s\n", "one further candidate", r->candidate_seconds);
    if (isfinite(r->fisher_ratio))
        fprintf(out, "%-26s %.2f (4 and 1 s a candidate: %.2f)\n", "fisher / eval", r->fisher_ratio, r->fisher_allowed);
    fprintf(out, "%-26s %s", "peak device memory", size_format(r->memory_peak, peak, sizeof peak));
    if (r->memory_limit > 0) fprintf(out, " of %s", size_format(r->memory_limit, limit, sizeof limit));
    fputc('\n', out);
}

void bench_report_print(const struct bench_report *r, FILE *out) {
    print_head(r, out);
    if (r->phase_count)
        fprintf(out, "\n%-22s %9s %10s %9s %8s %10s %9s %10s %7s\n", "phase", "tokens", "seconds", "other s", "load s",
                "tokens/s", "TFLOP/s", "floor s", "ratio");
    for (int i = 0; i < r->phase_count; i++)
        print_phase(&r->phases[i], out);
    print_quantizers(r, out);
    print_summary(r, out);
}

/* --- JSON --- */

static json_t *number(double value) {
    return isfinite(value) ? json_real(value) : json_null();
}

static json_t *phase_json(const struct bench_phase *p) {
    return json_pack("{ss sI so so so so so so so so so sI}", "phase", p->name, "tokens", (json_int_t)p->tokens,
                     "seconds", number(p->seconds), "other_seconds", number(p->other), "load_seconds", number(p->load),
                     "tokens_per_second", number((double)p->tokens / p->seconds), "flops", number(p->flops), "tflops",
                     number(p->flops / p->seconds * 1e-12), "gemm_tflops", number(p->gemm * 1e-12), "floor_seconds",
                     number(bench_floor(p)), "ratio", number(p->seconds / bench_floor(p)), "memory_peak",
                     (json_int_t)p->memory_peak);
}

static json_t *quantizer_json(const struct bench_quantizer *q) {
    return json_pack("{ss so so so}", "candidate", q->candidate, "weights", number(q->weights), "seconds",
                     number(q->seconds), "weights_per_second", number(q->weights / q->seconds));
}

static json_t *model_json(const struct model *m) {
    const struct arch *a = &m->arch;
    return json_pack("{ss si si si si si si so}", "family", a->family, "blocks", a->blocks, "hidden", a->hidden,
                     "intermediate", a->intermediate, "heads", a->heads, "kv_heads", a->kv_heads, "vocab", a->vocab,
                     "parameters", number(parameters(m)));
}

json_t *bench_report_json(const struct bench_report *r) {
    json_t *phases = json_array(), *quantizers = json_array();
    for (int i = 0; i < r->phase_count; i++)
        json_array_append_new(phases, phase_json(&r->phases[i]));
    for (int i = 0; i < r->quantizer_count; i++)
        json_array_append_new(quantizers, quantizer_json(&r->quantizers[i]));
    return json_pack("{ss so s{ss ss ss} sI sI so so so so so so so sI sI}", "config", r->config, "model",
                     model_json(r->model), "device", "name", r->device, "hardware", r->hardware, "arithmetic",
                     r->arithmetic, "windows", (json_int_t)r->windows, "length", (json_int_t)r->length,
                     "generate_seconds", number(r->generate_seconds), "phases", phases, "quantize", quantizers,
                     "paired_ratio", number(r->paired_ratio), "candidate_seconds", number(r->candidate_seconds),
                     "fisher_ratio", number(r->fisher_ratio), "fisher_allowed", number(r->fisher_allowed),
                     "memory_peak", (json_int_t)r->memory_peak, "memory_limit", (json_int_t)r->memory_limit);
}
