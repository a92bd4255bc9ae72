//go:build ignore

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Probes for zerospan's own helper processes. Each program uses one feature,
 * so that a kernel without it refuses that program and no other.
 */
#include <linux/bpf.h>
#include <linux/ptrace.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* Hits by thread: bpf_get_current_pid_tgid. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, __u64);
	__type(value, __u64);
} hits SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} answer SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} ring SEC(".maps");

static __always_inline int reply(__u64 value)
{
	__u32 zero = 0;

	bpf_map_update_elem(&answer, &zero, &value, BPF_ANY);
	return 0;
}

/* Needs nothing but the permission to load it. */
SEC("uprobe")
int empty(struct pt_regs *ctx)
{
	return 0;
}

SEC("uprobe")
int hit(struct pt_regs *ctx)
{
	__u64 thread = bpf_get_current_pid_tgid(), one = 1;
	__u64 *n = bpf_map_lookup_elem(&hits, &thread);

	if (n)
		(*n)++; /* a thread does not run beside itself */
	else
		bpf_map_update_elem(&hits, &thread, &one, BPF_NOEXIST);
	return 0;
}

SEC("uprobe")
int cookie(struct pt_regs *ctx)
{
	return reply(bpf_get_attach_cookie(ctx));
}

/* func probed(p *uint64): what p points to */
SEC("uprobe")
int memory(struct pt_regs *ctx)
{
	__u64 value = 0;

	bpf_probe_read_user(&value, sizeof(value), (const void *)ctx->rax);
	return reply(value);
}

/* The thread that was hit. */
SEC("uprobe")
int record(struct pt_regs *ctx)
{
	__u64 *r = bpf_ringbuf_reserve(&ring, sizeof(*r), 0);

	if (r) {
		*r = bpf_get_current_pid_tgid();
		bpf_ringbuf_submit(r, 0);
	}
	return 0;
}

static long add(__u32 i, __u64 *sum)
{
	*sum += i;
	return 0;
}

SEC("uprobe")
int loop(struct pt_regs *ctx)
{
	__u64 sum = 0;

	bpf_loop(10, add, &sum, 0); /* 0 + 1 + ... + 9 */
	return reply(sum);
}
