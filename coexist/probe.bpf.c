//go:build ignore

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Counts how often a target's own OpenTelemetry SDK hands on what it collected. */
#include "go.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

struct exports {
	__u64 traces, metrics;
	__u32 batch; /* offset in sdk/trace.batchSpanProcessor: a slice */
	__u32 pad;
};

const struct exports *unused_exports __attribute__((unused));

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, __u32); /* target; the agent makes the entries */
	__type(value, struct exports);
} exported SEC(".maps");

static __always_inline struct exports *exports_of(struct pt_regs *ctx)
{
	__u32 target = zs_cookie_target(zs_cookie(ctx));

	return bpf_map_lookup_elem(&exported, &target);
}

/* func (bsp *batchSpanProcessor) exportSpans(ctx context.Context) error */
SEC("uprobe")
int batches(struct pt_regs *ctx)
{
	struct exports *e = exports_of(ctx);

	if (e && (e->batch == ZS_ABSENT || zs_read_u64(GO_R0(ctx) + 8, e->batch)))
		__sync_fetch_and_add(&e->traces, 1);
	return 0;
}

SEC("uprobe")
int traces(struct pt_regs *ctx)
{
	struct exports *e = exports_of(ctx);

	if (e)
		__sync_fetch_and_add(&e->traces, 1);
	return 0;
}

SEC("uprobe")
int metrics(struct pt_regs *ctx)
{
	struct exports *e = exports_of(ctx);

	if (e)
		__sync_fetch_and_add(&e->metrics, 1);
	return 0;
}
