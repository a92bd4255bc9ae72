/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * How a Go program's registers and memory are read: the register ABI of
 * amd64 (Go's internal/abi, ABIInternal, since Go 1.17), strings, interfaces,
 * contexts, errors, and the two map implementations (buckets up to Go 1.23,
 * Swiss tables since 1.24).
 */
#pragma once

#include "probe.h"

/* Integer argument and result registers in order; the current g; the closure context. */
#define GO_R0(ctx)	((ctx)->rax)
#define GO_R1(ctx)	((ctx)->rbx)
#define GO_R2(ctx)	((ctx)->rcx)
#define GO_R3(ctx)	((ctx)->rdi)
#define GO_R4(ctx)	((ctx)->rsi)
#define GO_G(ctx)	((ctx)->r14)
#define GO_CLOSURE(ctx) ((ctx)->rdx)

#define GO_FLAGS_CF_OR_ZF 0x41 /* what jbe tests */

struct go_string {
	__u64 ptr;
	__u64 len;
};

/* An interface value other than any. */
struct go_iface {
	__u64 itab;
	__u64 data;
};

/* Offsets in the runtime's structs, and addresses as the file has them. */
struct go_runtime_layout {
	__u64 goidgen; /* runtime.sched.goidgen: the last goroutine id of the last batch; 0 if unknown */
	__u32 g_m, m_p;
	__u32 p_goidcache, p_goidcacheend; /* the batch that a P gives ids out of */
	__u32 g_stack_hi;
	__u32 g_waitreason; /* 0 until it waits for something for the first time */
	__u32 g_goid;
	__u32 g_parent_goid; /* since Go 1.21 */
	__u32 g_panic;
	__u32 panic_goexit;
	__u32 panic_arg;
};

/*
 * What a type has to do with contexts and errors. It is known by the address of
 * its descriptor, which is not read: its page may never have been touched, and
 * then a program can't read it.
 */
struct go_type_key {
	__u64 type;
	__u32 target;
	__u32 pad;
};

enum go_type_flag {
	GO_TYPE_CONTEXT = 1 << 0, /* a context; next is the context that it was derived from */
	GO_TYPE_CANCEL = 1 << 1,  /* context.cancelCtx, which servers make for each request */
	GO_TYPE_CANCELS = 1 << 2, /* has a context.cancelCtx at its start */
	GO_TYPE_ERROR = 1 << 3,	  /* an error; next is the error that it wraps, or absent */
	GO_TYPE_TEXT = 1 << 4,	  /* an error whose text is a field */
	GO_TYPE_VALUE = 1 << 5,	  /* context.valueCtx */
	GO_TYPE_SDK_SPAN = 1 << 6 /* a span of the OpenTelemetry SDK */
};

struct go_type {
	__u32 flags; /* enum go_type_flag; 0: a type that does not matter */
	__u32 next;  /* offset of an interface */
	__u32 text;  /* offset of a string */
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct go_type_key);
	__type(value, struct go_type);
} go_types SEC(".maps");

/* Where a context holds the span of the process's own OpenTelemetry SDK. The key is the target's number. */
struct go_sdk {
	__u64 key_type;					 /* of the context's key */
	__u32 value_val, pad;				 /* context.valueCtx.val */
	__u32 trace_id, span_id, trace_flags, span_kind; /* sdk/trace.recordingSpan */
};

#define GO_SDK_KIND_CLIENT 3 /* trace.SpanKindClient */

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, __u32);
	__type(value, struct go_sdk);
} go_sdks SEC(".maps");

/* From an itab's address to its type: an itab stays where it is as long as the process lives. */
struct go_itab_key {
	__u64 itab;
	__u32 target;
	__u32 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct go_itab_key);
	__type(value, struct go_type);
} go_itabs SEC(".maps");

#define GO_ITAB_TYPE 8 /* internal/abi.ITab.Type (before Go 1.22 runtime.itab._type), 1.18 to 1.27 */

enum go_map_kind {
	GO_MAP_NONE,
	GO_MAP_BUCKETS, /* runtime.hmap */
	GO_MAP_SWISS,	/* internal/runtime/maps.Map */
};

/*
 * A map[string][]string. A group is a bucket or a Swiss group: eight control
 * bytes, then keys and elements at a stride.
 */
struct go_map_layout {
	__u32 kind; /* enum go_map_kind */
	__u32 keys, key_stride;
	__u32 elems, elem_stride;
	__u32 group_size;
	__u32 groups;			/* hmap.buckets, Map.dirPtr */
	__u32 count;			/* hmap.B, Map.dirLen */
	__u32 old_groups;		/* hmap.oldbuckets */
	__u32 table_groups, table_mask; /* table.groups.data, table.groups.lengthMask */
};

#define GO_MAP_SLOTS	  8
#define GO_MAP_CANDIDATES 5   /* names of the right lengths in one group that are looked at */
#define GO_MAP_GROUP_MAX  344 /* 8 control bytes, 8 slots of 40 bytes, an overflow pointer, rounded up */
#define GO_MAP_GROUPS_MAX                                                                                    \
	16 /* 64 headers with their overflow buckets, or more; the rest is not looked at                     \
	    */

/* 1 where the two are equal, without a branch: each branch here would multiply the verifier's paths. */
static __always_inline __u64 go_equal(__u64 a, __u64 b)
{
	__u64 x = a ^ b;

	x |= -x;
	zs_opaque(x); /* or the compiler makes a branch of it */
	return x >> 63 ^ 1;
}

static __always_inline bool go_is_stack_growth(struct pt_regs *ctx, __u64 cookie)
{
	if (!(cookie & ZS_SITE_STACK_CHECK) || !(ctx->eflags & GO_FLAGS_CF_OR_ZF))
		return false;
	zs_count(ZS_STACK_GROWTH);
	return true;
}

/*
 * The key under which the current goroutine's call is kept: the address of its g,
 * which no other goroutine has before this one has ended. (The goroutine's id
 * would have to be read from memory at each hit.)
 */
static __always_inline struct zs_key go_key(struct pt_regs *ctx, __u32 slot)
{
	struct zs_key key = {
	    .task = GO_G(ctx),
	    .tgid = zs_tgid(),
	    .slot = slot,
	};
	return key;
}

/* Whether the goroutine unwinds: ZS_FLAG_PANIC, ZS_FLAG_GOEXIT or 0. arg is the panic's value (an any). */
static __always_inline __u16 go_unwinding(struct pt_regs *ctx, const struct go_runtime_layout *rt,
					  __u64 arg[2])
{
	__u64 panic = zs_read_u64(GO_G(ctx), rt->g_panic);

	if (!panic)
		return 0;
	if (zs_read_u8(panic, rt->panic_goexit))
		return ZS_FLAG_GOEXIT;
	if (rt->panic_arg != ZS_ABSENT)
		zs_read(arg, 16, panic + rt->panic_arg);
	return ZS_FLAG_PANIC;
}

/*
 * The two header values that are looked for, as they lie in the target's memory.
 * Kept in a map value: what the verifier knows of the stack would multiply its paths.
 */
struct go_headers {
	__u64 map; /* net/http.Header */
	__u64 buckets;
	struct go_string traceparent;
	struct go_string user_agent;
	/*
	 * The address of the last User-Agent key, if known: canonical names are constants
	 * of the program (net/textproto and http2 intern them), so that the same address
	 * need not be read again.
	 */
	__u64 user_agent_key;
};

#define GO_HEADER_TRACEPARENT_LEN 11
#define GO_HEADER_USER_AGENT_LEN  10

/* The index of the only bit that is set in an eight-bit number (a de Bruijn sequence; BPF has no count of
 * zeros). */
static __always_inline __u32 go_bit_index(__u32 bit)
{
	return 0x34572610 >> ((bit * 0x1d & 0xff) >> 5) * 4 & 7;
}

/*
 * Looks through one group in scratch (GO_MAP_GROUP_MAX bytes of a map value).
 * Control bytes are not consulted: empty and deleted slots hold no key (both
 * implementations clear keys that have pointers), so the length alone tells.
 */
static __noinline int go_scan_group(const struct go_map_layout *m, __u8 *scratch, __u64 addr,
				    struct go_headers *out)
{
	__u32 size = m->group_size, keys = m->keys, stride = m->key_stride, candidates = 0;

	if (size > GO_MAP_GROUP_MAX || !zs_read(scratch, size, addr))
		return 0;
	if (keys > GO_MAP_GROUP_MAX / 2 || stride > 40)
		return 0;
	for (int i = 0; i < GO_MAP_SLOTS; i++) {
		__u32 at = keys + i * stride + offsetof(struct go_string, len);

		if (at > GO_MAP_GROUP_MAX - sizeof(__u64))
			at = 0;
		__u64 len = *(__u64 *)(scratch + at);
		candidates |=
		    (go_equal(len, GO_HEADER_TRACEPARENT_LEN) | go_equal(len, GO_HEADER_USER_AGENT_LEN)) << i;
	}
	for (int i = 0; i < GO_MAP_CANDIDATES && candidates; i++) {
		__u32 slot = go_bit_index(candidates & -candidates), at;
		__u64 name[2] = {}, strings;
		struct go_string key;

		candidates &= candidates - 1;
		at = keys + slot * stride;
		if (at > GO_MAP_GROUP_MAX - sizeof(key))
			at = 0;
		key = *(struct go_string *)(scratch + at);
		at = m->elems + slot * m->elem_stride;
		if (at > GO_MAP_GROUP_MAX - sizeof(strings))
			at = 0;
		/* The element is a []string; the value is its first string. */
		strings = *(__u64 *)(scratch + at);
		if (key.len == GO_HEADER_TRACEPARENT_LEN) {
			if (zs_read(name, GO_HEADER_TRACEPARENT_LEN, key.ptr) &&
			    name[0] == 0x7261706563617254 /* Tracepar */ && name[1] == 0x746e65 /* ent */ &&
			    strings)
				zs_read(&out->traceparent, sizeof(out->traceparent), strings);
		} else {
			if (key.ptr == out->user_agent_key) {
				if (strings)
					zs_read(&out->user_agent, sizeof(out->user_agent), strings);
				continue;
			}
			if (zs_read(name, GO_HEADER_USER_AGENT_LEN, key.ptr) &&
			    name[0] == 0x6567412d72657355 /* User-Age */ && name[1] == 0x746e /* nt */ &&
			    strings) {
				zs_read(&out->user_agent, sizeof(out->user_agent), strings);
				out->user_agent_key = key.ptr;
			}
		}
	}
	return 0;
}

#define GO_MAP_HEAD                                                                                          \
	48 /* both kinds of map and the Swiss table are read up to their last field that counts              \
	    */
#define GO_MAP_TABLE 32

/* A word of what lies in scratch, at an offset within GO_MAP_HEAD. */
static __always_inline __u64 go_map_word(const __u8 *scratch, __u32 offset)
{
	if (offset > GO_MAP_HEAD - sizeof(__u64))
		return 0;
	return *(__u64 *)(scratch + offset);
}

/* Walks the header map for traceparent and user-agent; scratch holds GO_MAP_GROUP_MAX bytes. */
static __always_inline void go_scan_headers(const struct go_map_layout *m, __u8 *scratch,
					    struct go_headers *out)
{
	__u64 groups, old = 0, n, at;
	__u32 i;

	if (m->kind == GO_MAP_NONE || !out->map || !zs_read(scratch, GO_MAP_HEAD, out->map))
		return;
	groups = go_map_word(scratch, m->groups);
	if (!groups)
		return;
	n = go_map_word(scratch, m->count);
	if (m->kind == GO_MAP_SWISS) {
		if (n == 0) { /* a small map: dirPtr is the only group */
			n = 1;
		} else { /* dirPtr is an array of tables; headers fit into the first */
			at = zs_read_u64(groups, 0);
			if (!at || !zs_read(scratch, GO_MAP_TABLE, at))
				return;
			groups = go_map_word(scratch, m->table_groups);
			n = go_map_word(scratch, m->table_mask) + 1;
		}
	} else {
		out->buckets = n = 1ULL << (n & 63); /* hmap.B is one byte; more than 2^63 buckets are none */
		old = go_map_word(scratch, m->old_groups);
	}
	for (i = 0, at = groups; i < GO_MAP_GROUPS_MAX; i++) {
		go_scan_group(m, scratch, at, out);
		if (out->traceparent.ptr && out->user_agent.ptr)
			break;
		__u64 overflow = 0;
		__u32 last = m->group_size - sizeof(overflow);
		if (m->kind == GO_MAP_BUCKETS && last <= GO_MAP_GROUP_MAX - sizeof(overflow))
			overflow = *(__u64 *)(scratch + last);
		if (overflow) {
			at = overflow;
			continue;
		}
		if (--n == 0) {
			if (!old)
				break;
			/* A growing map: what has not moved yet is in the old buckets. */
			at = groups = old;
			n = out->buckets / 2;
			if (n == 0)
				break;
			old = 0;
			continue;
		}
		groups += m->group_size;
		at = groups;
	}
}

/* 1 where first <= c <= last, without a branch (see go_equal). */
static __always_inline __u64 go_in_range(__u64 c, __u64 first, __u64 last)
{
	__u64 outside = (last - c) | (c - first);

	zs_opaque(outside);
	return outside >> 63 ^ 1;
}

/* The value of a lower-case hex digit; clears *valid when it is none. */
static __always_inline __u32 go_hex(__u8 c, __u64 *valid)
{
	*valid &= go_in_range(c, '0', '9') | go_in_range(c, 'a', 'f');
	return ((c & 0xf) + 9 * (c >> 6)) & 0xf;
}

#define GO_TRACEPARENT_LEN 55

/*
 * W3C Trace Context: "00-<32 hex>-<16 hex>-<2 hex>", lower case, ids not all
 * zero; later versions may be longer. Anything else is treated as absent.
 */
static __noinline int go_parse_traceparent(struct zs_head *head, const __u8 *text)
{
	__u64 valid = 1, trace_id[2], parent_id;
	__u8 bytes[26];

	for (int i = 0, at = 0; i < 26; i++) {
		if (i == 1 || i == 17 || i == 25)
			valid &= go_equal(text[at++], '-');
		bytes[i] = go_hex(text[at], &valid) << 4;
		bytes[i] |= go_hex(text[at + 1], &valid);
		at += 2;
	}
	__builtin_memcpy(trace_id, bytes + 1, sizeof(trace_id));
	__builtin_memcpy(&parent_id, bytes + 17, sizeof(parent_id));
	if (!valid || bytes[0] == 0xff || !(trace_id[0] | trace_id[1]) || !parent_id)
		return 0;
	__builtin_memcpy(head->trace_id, trace_id, sizeof(trace_id));
	__builtin_memcpy(head->parent_id, &parent_id, sizeof(parent_id));
	head->trace_flags = bytes[25];
	head->flags |= ZS_FLAG_TRACEPARENT;
	return 1;
}

/* Reads and parses a traceparent value; scratch holds GO_TRACEPARENT_LEN + 1 bytes. */
static __always_inline void go_adopt_traceparent(struct zs_head *head, const struct go_string *value,
						 __u8 *scratch)
{
	if (value->len < GO_TRACEPARENT_LEN)
		return;
	/* Version 00 is exactly this long; a later one goes on after another dash. */
	__u32 size = GO_TRACEPARENT_LEN + (value->len > GO_TRACEPARENT_LEN);
	scratch[GO_TRACEPARENT_LEN] = '-';
	if (!zs_read(scratch, size, value->ptr) || scratch[GO_TRACEPARENT_LEN] != '-')
		return;
	if (value->len > GO_TRACEPARENT_LEN && scratch[0] == '0' && scratch[1] == '0')
		return;
	go_parse_traceparent(head, scratch);
}

/* What is known of the type of an interface value. */
static __noinline const struct go_type *go_type_of(__u32 target, __u64 itab)
{
	struct go_itab_key key = {.itab = itab, .target = target};
	const struct go_type *known = bpf_map_lookup_elem(&go_itabs, &key);
	struct go_type_key by = {.target = target};
	struct go_type found = {};

	if (known)
		return known;
	by.type = zs_read_u64(itab, GO_ITAB_TYPE);
	if (!by.type)
		return NULL;
	known = bpf_map_lookup_elem(&go_types, &by);
	if (known)
		found = *known;
	bpf_map_update_elem(&go_itabs, &key, &found, BPF_ANY);
	return bpf_map_lookup_elem(&go_itabs, &key);
}

static __noinline int go_find_sdk(__u32 target, __u64 *key_type)
{
	const struct go_sdk *sdk = bpf_map_lookup_elem(&go_sdks, &target);

	if (sdk)
		*key_type = sdk->key_type;
	return 0;
}

/* Makes the call a child of the SDK's span that a context.valueCtx holds. */
static __noinline int go_adopt_sdk(struct zs_head *head, __u64 value)
{
	const struct go_sdk *sdk = bpf_map_lookup_elem(&go_sdks, &head->target);
	struct go_type_key key = {.target = head->target};
	const struct go_type *type;
	__u64 span[2] = {}, ids[3] = {}; /* an any: the address of its type, not of an itab, and the data's */
	__u8 flags, kind;

	if (!sdk || !zs_read(span, sizeof(span), value + sdk->value_val))
		return 0;
	key.type = span[0];
	type = bpf_map_lookup_elem(&go_types, &key);
	if (!type || !(type->flags & GO_TYPE_SDK_SPAN) || !zs_read(ids, 16, span[1] + sdk->trace_id) ||
	    !zs_read(&ids[2], 8, span[1] + sdk->span_id) || !(ids[0] | ids[1]) || !ids[2])
		return 0;
	flags = zs_read_u8(span[1], sdk->trace_flags);
	kind = zs_read_u8(span[1], sdk->span_kind);
	__builtin_memcpy(head->trace_id, ids, 16);
	__builtin_memcpy(head->parent_id, &ids[2], 8);
	head->trace_flags = flags;
	head->flags |= ZS_FLAG_SDK_PARENT | (kind == GO_SDK_KIND_CLIENT ? ZS_FLAG_SDK_CLIENT : 0);
	return 1;
}

#define GO_CONTEXT_MAX 48 /* contexts around one another that are looked at */

/*
 * Walks up from a context to one that an open call began with. net/http's server
 * makes one for each connection, and from it one for each request: an HTTP/1
 * connection is indexed once by its own, and the request's must be the one below.
 * On the way, *value becomes the first context.valueCtx whose key has the type
 * scratch->itab, if that is not 0; scratch->context becomes that of the call. (They
 * lie in a map's value: there the verifier does not know the 0 that it would walk
 * for once more.)
 */
static __noinline void *go_context_owner(const struct zs_head *head, const struct go_iface *from, void *own,
					 struct zs_owner *scratch, __u64 *value)
{
	__u64 below = 0, at, found = 0, match, key_type = scratch->itab;
	struct {
		struct go_iface context;
		__u64 key; /* the first word of context.valueCtx.key, which follows */
	} next = {.context = *from};

	for (int i = 0; i < GO_CONTEXT_MAX; i++) {
		const struct go_type *type;
		struct zs_owner *owner;
		__u32 size;
		void *call;

		at = next.context.data;
		if (!next.context.itab || !at)
			break;
		type = go_type_of(head->target, next.context.itab);
		if (!type || !(type->flags & GO_TYPE_CONTEXT))
			break;
		if (type->flags & GO_TYPE_CANCEL) {
			if (own && zs_owner_of(own)->context == at) {
				scratch->context = at;
				*value = found;
				return own;
			}
			call = zs_open_by(at, head->tgid);
			if (call) {
				owner = zs_owner_of(call);
				if (owner->context == at || (below && owner->context == below)) {
					scratch->context = owner->context == at ? at : below;
					*value = found;
					return call;
				}
			}
			below = at;
		}
		match = type->flags / GO_TYPE_VALUE & 1;
		size = sizeof(next.context) + 8 * match;
		if (!zs_read(&next, size, at + type->next))
			break;
		/* Without branches: each would multiply the verifier's paths. */
		match &= go_equal(next.key, key_type) & (go_equal(key_type, 0) ^ 1) & go_equal(found, 0);
		found |= at & -match;
	}
	*value = found;
	return NULL;
}

/* What a call that makes no children knows of its goroutine. */
struct go_caller {
	__u64 goid, parent_goid;
	__u64 stack; /* bytes in use: who was called later has more, also when the stack moves */
	bool waited;
};

/*
 * The open call of the goroutine that started this one, if it is certain that it
 * did so during that call: goroutine ids are given out in ascending batches, one
 * for each P (runtime.newproc1), and this id had not been when the call began.
 * Who has waited since may be a worker that was given something to do by another
 * call.
 */
static __always_inline void *go_starter(const struct go_caller *caller, __u32 tgid)
{
	struct zs_owner *owner;
	void *call = caller->parent_goid && !caller->waited ? zs_open_by(caller->parent_goid, tgid) : NULL;

	if (!call)
		return NULL;
	owner = zs_owner_of(call);
	if (owner->task_id != caller->parent_goid)
		return NULL;
	if (caller->goid >= owner->next || (caller->goid >= owner->low && caller->goid < owner->high))
		return call;
	owner->asked = 1;
	return NULL;
}

/*
 * Finds the parent of a call, in the order of certainty: the context that was
 * handed to it, its own goroutine, the one that started it.
 */
static __always_inline void go_adopt_parent(struct zs_head *head, const struct zs_key *call,
					    const struct go_iface *context, const struct go_caller *caller)
{
	struct zs_key key = {.task = call->task, .tgid = call->tgid, .slot = ZS_OWNER};
	void *own = zs_open_call(&key), *parent;
	struct zs_owner *scratch = zs_owner_of(head); /* a child has no other use for it */
	__u64 value = 0;

	if (own && zs_owner_of(own)->task_id != caller->goid)
		own = NULL; /* an earlier goroutine's, whose end was not seen */
	if (own && zs_owner_of(own)->context == context->data) {
		zs_adopt_parent(head, own, 0, caller->goid);
		return;
	}
	go_find_sdk(head->target, &scratch->itab);
	scratch->context = 0;
	parent = go_context_owner(head, context, own, scratch, &value);
	if (value && go_adopt_sdk(head, value))
		return;
	if (parent) {
		zs_adopt_parent(head, parent, scratch->context, 0);
		return;
	}
	if (own) {
		zs_adopt_parent(head, own, 0, caller->goid);
		return;
	}
	parent = go_starter(caller, key.tgid);
	if (parent)
		zs_adopt_parent(head, parent, 0, caller->parent_goid);
}

/* Reads which goroutine ids have not been given out yet. */
static __always_inline void go_read_ids(struct pt_regs *ctx, const struct go_runtime_layout *rt, __u32 target,
					struct zs_owner *owner)
{
	const struct zs_process *process;
	__u64 m, p, last;

	if (rt->g_m == ZS_ABSENT || rt->m_p == ZS_ABSENT || rt->p_goidcache == ZS_ABSENT ||
	    rt->p_goidcacheend == ZS_ABSENT || !rt->goidgen)
		return;
	process = bpf_map_lookup_elem(&zs_processes, &target);
	m = zs_read_u64(GO_G(ctx), rt->g_m);
	p = m ? zs_read_u64(m, rt->m_p) : 0;
	if (!process || !p || !zs_read(&last, sizeof(last), process->bias + rt->goidgen))
		return;
	owner->low = zs_read_u64(p, rt->p_goidcache);
	owner->high = zs_read_u64(p, rt->p_goidcacheend);
	owner->next = last + 1;
}

/*
 * Makes a server's call, whose context is noted, findable by its children. alone says that the goroutine
 * was started for this call and runs no other.
 */
static __always_inline void go_own(struct pt_regs *ctx, void *call, const struct go_runtime_layout *rt,
				   const struct zs_key *key, __u32 target, bool alone)
{
	struct zs_owner *owner = zs_owner_of(call);
	bool first = owner->begun == 0;

	if (first && rt->g_parent_goid != ZS_ABSENT)
		zs_index_set(owner->task_id, key->tgid, key->task);
	if (alone) {
		owner->next = 0; /* whoever it started, it did during the call */
		zs_index_set(owner->context, key->tgid, key->task);
		return;
	}
	if (first) {
		const struct go_type *type = owner->itab ? go_type_of(target, owner->itab) : NULL;
		struct go_iface of_connection = {};

		if (type && type->flags & GO_TYPE_CANCEL &&
		    zs_read(&of_connection, sizeof(of_connection), owner->context + type->next)) {
			owner->connection = of_connection.data;
			zs_index_set(owner->connection, key->tgid, key->task);
		}
	}
	owner->low = owner->high = 0;
	owner->next = ~0ULL;
	if ((first || owner->asked) && rt->g_parent_goid != ZS_ABSENT)
		go_read_ids(ctx, rt, target, owner);
}

#define GO_ERROR_MAX 8 /* errors around one another that are looked at */

/* The error that is wrapped innermost. */
static __noinline int go_innermost_error(__u32 target, struct go_iface *error)
{
	for (int i = 0; i < GO_ERROR_MAX; i++) {
		const struct go_type *type = go_type_of(target, error->itab);
		struct go_iface inner = {};

		if (!type || !(type->flags & GO_TYPE_ERROR) || type->next == ZS_ABSENT ||
		    !zs_read(&inner, sizeof(inner), error->data + type->next) || !inner.itab)
			break;
		*error = inner;
	}
	return 0;
}
