//go:build ignore

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Commands that a Go program runs with os/exec's (*Cmd).Run, which Output and
 * CombinedOutput call too. One goroutine runs it from start to end.
 */
#include "go.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define PATH_MAX 64

enum result {
	RESULT_OPEN,   /* or it has ended, and how could not be read */
	RESULT_FAILED, /* there is no exit status: error_type says why */
	RESULT_EXITED, /* status says how */
};

struct call {
	struct zs_head head;
	__u64 error_type; /* the address of the error's type */
	__u32 status;	  /* as wait(2) reports it */
	__u8 result;	  /* enum result */
	__u8 pad;
	__u16 path_len;
	__u8 path[PATH_MAX]; /* its end, where the name is */
};

_Static_assert(sizeof(struct call) <= ZS_CALL_MAX, "it fits into the map that all instrumentors share");

struct layout {
	struct go_runtime_layout rt;
	__u32 path, context; /* os/exec.Cmd */
	__u32 status;	     /* os.ProcessState */
};

const struct layout *unused_layout __attribute__((unused));
const struct call *unused_call __attribute__((unused));
const enum result *unused_result __attribute__((unused));

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1024); /* one a binary */
	__type(key, __u32);
	__type(value, struct layout);
} layouts SEC(".maps");

static __always_inline const struct layout *layout_of(__u64 cookie)
{
	__u32 index = zs_cookie_layout(cookie);

	return bpf_map_lookup_elem(&layouts, &index);
}

/* func (c *Cmd) Run() error */
SEC("uprobe")
int run(struct pt_regs *ctx)
{
	__u64 cookie = zs_cookie(ctx), cmd = GO_R0(ctx);
	const struct layout *l = layout_of(cookie);
	struct zs_key key = go_key(ctx, zs_slot());
	struct go_caller caller = {};
	struct go_iface context = {};
	struct go_string path = {};
	struct call *c;

	if (!l || go_is_stack_growth(ctx, cookie))
		return 0;
	c = zs_begin(&key, cookie);
	if (!c)
		return 0;
	caller.goid = c->head.task = zs_read_u64(GO_G(ctx), l->rt.g_goid);
	caller.parent_goid = zs_read_u64(GO_G(ctx), l->rt.g_parent_goid);
	if (l->context != ZS_ABSENT)
		zs_read(&context, sizeof(context), cmd + l->context);
	go_adopt_parent(&c->head, &key, &context, &caller);
	zs_identify(&c->head);

	if (l->path != ZS_ABSENT)
		zs_read(&path, sizeof(path), cmd + l->path);
	if (path.len > PATH_MAX) {
		path.ptr += path.len - PATH_MAX;
		path.len = PATH_MAX;
	}
	zs_append(&c->head, c->path, PATH_MAX, &c->path_len, path.ptr, path.len, PATH_MAX);
	return 0;
}

/* Ends the goroutine's call, if it has one, with an error or else a *ProcessState. */
static __always_inline int end(struct pt_regs *ctx, __u64 error, __u64 state)
{
	const struct layout *l = layout_of(zs_cookie(ctx));
	struct zs_key key = go_key(ctx, zs_slot());
	struct call *c = zs_open_call(&key);
	__u32 size;

	if (!l || !c)
		return 0;
	if (error) {
		c->result = RESULT_FAILED;
		c->error_type = zs_read_u64(error, GO_ITAB_TYPE);
	} else if (zs_read(&c->status, sizeof(c->status), state + l->status)) {
		c->result = RESULT_EXITED;
	}
	size = offsetof(struct call, path) + c->path_len;
	if (size > sizeof(*c)) /* it is not, but the verifier does not know */
		size = sizeof(*c);
	zs_finish(&c->head, &key, size, 0, c->result == RESULT_FAILED || c->status);
	return 0;
}

/* Inside Run, behind err := c.Start(). */
SEC("uprobe")
int run_started(struct pt_regs *ctx)
{
	__u64 error = GO_R0(ctx);

	return error ? end(ctx, error, 0) : 0;
}

/*
 * Inside Wait, behind state, err := c.Process.Wait(). A program that calls Start
 * and Wait itself comes by as well: it has no call, and that is no end that was missed.
 */
SEC("uprobe")
int run_waited(struct pt_regs *ctx)
{
	return end(ctx, GO_R1(ctx), GO_R0(ctx));
}
