/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What every instrumentor's program shares: the record head, the ring, the
 * counters that make the books balance, and bounded reads of the target.
 * Nothing here knows a library.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <linux/bpf.h>
#include <linux/ptrace.h>
#include <bpf/bpf_helpers.h>

/*
 * Several programs can be interrupted by one another on one CPU (uprobe
 * programs are preemptible), so there is no per-CPU scratch memory: a call's
 * own map entry is the scratch space of the task that runs it.
 */

#define ZS_ABSENT 0xffffffffu /* a field that was not found in this binary */

/* Reported in zs_head.flags. */
enum zs_flag {
	ZS_FLAG_TRACEPARENT = 1 << 0, /* trace_id and parent_id came from the caller */
	ZS_FLAG_PANIC = 1 << 1,
	ZS_FLAG_GOEXIT = 1 << 2,
	ZS_FLAG_TRUNCATED = 1 << 3,    /* some string was longer than its bound */
	ZS_FLAG_FAULT = 1 << 4,	       /* some read of the target's memory failed */
	ZS_FLAG_EXTRA_USED = 1 << 5,   /* an extra site told what the end would not have known */
	ZS_FLAG_EXTRA_MISSED = 1 << 6, /* an extra site could have told what the end did not know */
	ZS_FLAG_LOCAL_PARENT = 1 << 7, /* the parent is a call of this process; trace ids are its own */
	ZS_FLAG_SDK_PARENT = 1 << 8, /* the parent is a span of the process's own SDK; trace_flags are its */
	ZS_FLAG_SDK_CLIENT = 1 << 9, /* and that span is a client's: the SDK sees this very call */
};

/* The head of every record; what follows it belongs to the instrumentor. */
struct zs_head {
	__u64 start;  /* ns, CLOCK_MONOTONIC */
	__u64 end;    /* ns, CLOCK_MONOTONIC; 0 while the call is open */
	__u64 task;   /* who runs the call: goroutine id, thread id */
	__u32 tgid;   /* process id in the initial PID namespace */
	__u32 target; /* the agent's number for the process, from the cookie */
	__u16 instrumentor;
	__u16 flags; /* enum zs_flag */
	__u8 trace_flags;
	__u8 pad[3];
	__u8 trace_id[16]; /* aligned to 8 bytes, as are the others */
	__u8 span_id[8];
	__u8 parent_id[8];
};

_Static_assert(offsetof(struct zs_head, trace_id) % 8 == 0, "ids are written as words");

/*
 * A task has at most one call that can be the parent of others (a server's), and
 * one of each instrumentor that only makes children.
 */
#define ZS_OWNER 0 /* zs_key.slot; otherwise 1 + the instrumentor's number: zs_slot() */

struct zs_key {
	__u64 task;
	__u32 tgid;
	__u32 slot;
};

/* What children find their parent by; kept beside a call, no part of its record. */
struct zs_owner {
	__u64 context;	  /* the address of the context that the call began with */
	__u64 itab;	  /* and its type */
	__u64 connection; /* that of the connection's context, or 0; both lead to the task through zs_index */
	__u64 task_id;	  /* the task's id: goroutine id */
	/*
	 * Which ids of tasks had not been given out when the call began: those from
	 * next on, and those in [low, high). Who has such an id began during the call.
	 */
	__u64 next, low, high;
	__u32 asked; /* a task that might be a child was seen: the ids are worth reading */
	__u32 begun; /* calls that the task has begun under this entry, but for the first */
};

#define ZS_CALL_MAX 1088 /* bytes of an instrumentor's struct call */

struct zs_entry {
	__u64 call[ZS_CALL_MAX / 8];
	struct zs_owner owner;
};

/* From a context's address or a task's id to the task that has the call. */
struct zs_index_key {
	__u64 value;
	__u32 tgid;
	__u32 pad;
};

/* Indices into zs_counts, per instrumentor. */
enum zs_counter {
	ZS_STARTED,	  /* calls begun */
	ZS_COMPLETED,	  /* calls ended, delivered or folded into zs_fallback */
	ZS_FALLBACK,	  /* of those: the ring was full, folded into zs_fallback */
	ZS_FALLBACK_LOST, /* of those: zs_fallback was full as well */
	ZS_EVICTED,	  /* begun, but no room in the call map */
	ZS_MISSED_END,	  /* the task began another call before this one's end was seen */
	ZS_UNMATCHED_END, /* an end whose start was not seen: begun before the attach */
	ZS_STACK_GROWTH,  /* hits ignored because the function was about to grow its stack */
	ZS_FAULTS,	  /* reads of target memory that failed */
	ZS_SKIPPED,	  /* requests that are no calls: HTTP/2 prefaces, unsupported carriers */
	ZS_COUNTERS = 16,
};

#define ZS_MAX_INSTRUMENTORS 64

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 22); /* resized by the agent */
} zs_ring SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, ZS_COUNTERS *ZS_MAX_INSTRUMENTORS);
	__type(key, __u32);
	__type(value, __u64);
} zs_counts SEC(".maps");

/* Shared with the consumer through mmap. */
struct zs_control {
	__u32 sleeping; /* the consumer waits in epoll: the next record must wake it */
	__u32 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct zs_control);
} zs_ctl SEC(".maps");

#define ZS_MAX_BOUNDS 16

/* Calls that found the ring full: counts, errors and durations stay exact. */
struct zs_fallback_key {
	__u32 target;
	__u16 instrumentor;
	__u8 class;  /* status class: 0 unknown, 1-5 for 1xx-5xx */
	__u8 bucket; /* index into zs_bounds: the first bound >= duration */
	__u8 error;
	__u8 pad[7];
};

struct zs_fallback_value {
	__u64 count;
	__u64 sum; /* ns */
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__type(key, struct zs_fallback_key);
	__type(value, struct zs_fallback_value);
} zs_fallback SEC(".maps");

/* Calls that are open, of all instrumentors. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192); /* resized by the agent */
	__type(key, struct zs_key);
	__type(value, struct zs_entry);
} zs_calls SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384); /* twice zs_calls */
	__type(key, struct zs_index_key);
	__type(value, __u64);
} zs_index SEC(".maps");

/* What a new entry starts as: there is no stack or per-CPU memory of that size. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct zs_entry);
} zs_blank SEC(".maps");

/* What the agent knows of a process; the key is the target's number. */
struct zs_process {
	__u64 bias; /* what to add to an address of the file */
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, __u32);
	__type(value, struct zs_process);
} zs_processes SEC(".maps");

/*
 * A task that runs one call after another (the goroutine of an HTTP/1
 * connection) can keep its entry in zs_calls between them, with head.start 0: to
 * make and delete one costs a tenth of a call. Only while the map is less than
 * half full: who idles must not displace calls.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64); /* entries in zs_calls; the agent corrects it, since it deletes some */
} zs_entries SEC(".maps");

/* Set by the agent before the programs are loaded. */
const volatile __u16 zs_instrumentor;
const volatile __u32 zs_no_cookies; /* the kernel has none: zs_cookies says what they would */
const volatile __u64 zs_seed[2];    /* random */
const volatile __u64 zs_keep_below; /* entries may be kept while there are fewer */
const volatile __u64
    zs_bounds[ZS_MAX_BOUNDS]; /* ns, upper bounds of the duration histogram; 0 ends the list */

static __always_inline void zs_count(enum zs_counter what)
{
	__u32 key = (__u32)zs_instrumentor * ZS_COUNTERS + what;
	__u64 *count = bpf_map_lookup_elem(&zs_counts, &key);

	if (count)
		__sync_fetch_and_add(count, 1);
}

struct zs_cookie_key {
	__u64 ip; /* of the probed instruction */
	__u32 tgid;
	__u32 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct zs_cookie_key);
	__type(value, __u64);
} zs_cookies SEC(".maps");

/* The attach cookie: target << 32 | site flags << 16 | index of the binary's layout. */
static __always_inline __u32 zs_cookie_layout(__u64 cookie)
{
	return cookie & 0xffff;
}

static __always_inline __u32 zs_cookie_target(__u64 cookie)
{
	return cookie >> 32;
}

#define ZS_SITE_STACK_CHECK (1 << 16) /* the site is the stack check's jbe: taken means no call yet */

static __always_inline __u32 zs_tgid(void)
{
	return bpf_get_current_pid_tgid() >> 32;
}

/*
 * From Linux 6.13 on the JIT gives each program of this type one stack for each
 * CPU, since such programs can't interrupt themselves; but uprobe programs are
 * preemptible, and then two tasks share it: it was seen to corrupt what is on it,
 * down to a fault that kills the target. A program that contains a tail call gets
 * no such stack, be it one that is never taken.
 */
const volatile __u32 zs_never;

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} zs_nowhere SEC(".maps");

static __always_inline void zs_use_own_stack(struct pt_regs *ctx)
{
	if (zs_never)
		bpf_tail_call(ctx, &zs_nowhere, 0);
}

/*
 * The cookie of the site that was hit; every program asks for it first. The verifier knows zs_no_cookies and
 * never looks at what it rules out, such as a helper that an older kernel does not have.
 */
static __always_inline __u64 zs_cookie(struct pt_regs *ctx)
{
	struct zs_cookie_key key = {};
	__u64 *cookie;

	zs_use_own_stack(ctx);
	if (!zs_no_cookies)
		return bpf_get_attach_cookie(ctx);
	key.ip = ctx->rip;
	key.tgid = zs_tgid();
	cookie = bpf_map_lookup_elem(&zs_cookies, &key);
	return cookie ? *cookie : ~0ULL; /* no layout has that number */
}

static __always_inline bool zs_read(void *dst, __u32 size, __u64 from)
{
	if (bpf_probe_read_user(dst, size, (const void *)from) == 0)
		return true;
	zs_count(ZS_FAULTS);
	return false;
}

static __always_inline __u64 zs_read_u64(__u64 base, __u32 offset)
{
	__u64 value = 0;

	if (offset != ZS_ABSENT)
		zs_read(&value, sizeof(value), base + offset);
	return value;
}

static __always_inline __u8 zs_read_u8(__u64 base, __u32 offset)
{
	__u8 value = 0;

	if (offset != ZS_ABSENT)
		zs_read(&value, sizeof(value), base + offset);
	return value;
}

/* The finaliser of splitmix64: a bijection whose outputs look random. */
static __always_inline __u64 zs_mix(__u64 x)
{
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
	x = (x ^ x >> 27) * 0x94d049bb133111eb;
	return x ^ x >> 31;
}

/*
 * Gives the call an identity: a span id always, a trace id unless a parent has
 * one. Both come from what is unique to the call, mixed with the agent's
 * seed: six calls of bpf_get_prandom_u32 cost more than the mixing.
 */
static __always_inline void zs_identify(struct zs_head *head)
{
	__u64 id = zs_mix(zs_mix(head->start ^ zs_seed[0]) ^ ((__u64)head->tgid << 32 ^ head->task));

	if (!(head->flags & (ZS_FLAG_TRACEPARENT | ZS_FLAG_LOCAL_PARENT | ZS_FLAG_SDK_PARENT))) {
		*(__u64 *)head->trace_id = zs_mix(id ^ zs_seed[1]);
		*(__u64 *)(head->trace_id + 8) = zs_mix(id + zs_seed[1]);
	}
	*(volatile __u64 *)head->span_id = zs_mix(id + 1); /* last: a child that sees it may take the rest */
}

static __always_inline __u32 zs_slot(void)
{
	return 1 + zs_instrumentor;
}

static __always_inline struct zs_head *zs_head_of(struct zs_entry *entry)
{
	return (struct zs_head *)entry->call;
}

static __always_inline struct zs_owner *zs_owner_of(void *call)
{
	return call + offsetof(struct zs_entry, owner);
}

static __always_inline __u64 *zs_entry_count(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&zs_entries, &zero);
}

/* A blank entry for a task that has none; NULL, and counted, if there is no room. */
static __always_inline void *zs_make_entry(const struct zs_key *key)
{
	__u32 zero = 0;
	void *entry = bpf_map_lookup_elem(&zs_blank, &zero);
	__u64 *n;

	if (!entry)
		return NULL;
	if (bpf_map_update_elem(&zs_calls, key, entry, BPF_ANY)) {
		zs_count(ZS_EVICTED);
		return NULL;
	}
	n = zs_entry_count();
	if (n)
		__sync_fetch_and_add(n, 1);
	return bpf_map_lookup_elem(&zs_calls, key);
}

static __always_inline void zs_delete_entry(const struct zs_key *key)
{
	__u64 *n = zs_entry_count();

	if (bpf_map_delete_elem(&zs_calls, key) == 0 && n)
		__sync_fetch_and_add(n, -1);
}

/*
 * Leads children that know value (an address, a task's id) to task. Without room
 * for it they find no parent: that is not worth a call.
 */
static __always_inline void zs_index_set(__u64 value, __u32 tgid, __u64 task)
{
	struct zs_index_key key = {.value = value, .tgid = tgid};

	if (value)
		bpf_map_update_elem(&zs_index, &key, &task, BPF_ANY);
}

/* An address may lead to another task by now: the memory was reused. */
static __noinline int zs_index_delete(__u64 value, __u32 tgid, __u64 task)
{
	struct zs_index_key key = {.value = value, .tgid = tgid};
	__u64 *leads_to = value ? bpf_map_lookup_elem(&zs_index, &key) : NULL;

	if (leads_to && *leads_to == task)
		bpf_map_delete_elem(&zs_index, &key);
	return 0;
}

/* Children don't find the call any more. */
static __noinline int zs_disown(void *call, const struct zs_key *key)
{
	struct zs_owner *owner = zs_owner_of(call);

	zs_index_delete(owner->context, key->tgid, key->task);
	zs_index_delete(owner->connection, key->tgid, key->task);
	zs_index_delete(owner->task_id, key->tgid, key->task);
	__builtin_memset(owner, 0, sizeof(*owner));
	return 0;
}

/* Deletes the entry of a task that can have children. */
static __always_inline void zs_delete_owner(const struct zs_key *key, void *call)
{
	zs_disown(call, key);
	zs_delete_entry(key);
}

/* The entry of the open call that has the key, or NULL. */
static __always_inline void *zs_open_call(const struct zs_key *key)
{
	struct zs_entry *entry = bpf_map_lookup_elem(&zs_calls, key);

	return entry && zs_head_of(entry)->start ? entry : NULL;
}

/* The open call of the task that value leads to. */
static __always_inline void *zs_open_by(__u64 value, __u32 tgid)
{
	struct zs_index_key by = {.value = value, .tgid = tgid};
	struct zs_key key = {.tgid = tgid, .slot = ZS_OWNER};
	__u64 *task = bpf_map_lookup_elem(&zs_index, &by);

	if (!task)
		return NULL;
	key.task = *task;
	return zs_open_call(&key);
}

/*
 * Makes the call a child of parent, which was found by its context or by its task's
 * id (the other is 0). Another CPU may end it meanwhile and begin anew: then there
 * is no parent, rather than a wrong one.
 */
static __always_inline void zs_adopt_parent(struct zs_head *head, void *parent_call, __u64 context,
					    __u64 task_id)
{
	const volatile struct zs_head *parent = parent_call;
	const volatile struct zs_owner *owner = zs_owner_of(parent_call);
	__u64 start = parent->start, trace_id[2], parent_id;
	__u16 flags = parent->flags;
	__u8 trace_flags = parent->trace_flags;

	trace_id[0] = *(const volatile __u64 *)parent->trace_id;
	trace_id[1] = *(const volatile __u64 *)(parent->trace_id + 8);
	parent_id = *(const volatile __u64 *)parent->span_id;
	if ((context && owner->context != context) || (task_id && owner->task_id != task_id) ||
	    parent->tgid != head->tgid || !start || parent->start != start || !parent_id)
		return;
	*(__u64 *)head->trace_id = trace_id[0];
	*(__u64 *)(head->trace_id + 8) = trace_id[1];
	*(__u64 *)head->parent_id = parent_id;
	head->trace_flags = trace_flags;
	head->flags |= ZS_FLAG_LOCAL_PARENT | (flags & ZS_FLAG_TRACEPARENT);
}

/* Keeps the compiler from proving a bound away that the verifier has to see. */
#define zs_opaque(v) asm volatile("" : "+r"(v))

/*
 * Appends at most max bytes of the target's memory at data[*used] and returns how
 * many. size is the size of data. used lies in the map entry and not in a
 * register: there the verifier forgets which path led to its value, and paths
 * that it cannot tell apart are checked once.
 */
static __always_inline __u16 zs_append(struct zs_head *head, __u8 *data, __u32 size, __u16 *used, __u64 from,
				       __u64 len, __u32 max)
{
	__u32 at = *used;

	if (len > max) {
		len = max;
		head->flags |= ZS_FLAG_TRUNCATED;
	}
	zs_opaque(at);
	if (len == 0 || at > size - max)
		return 0;
	zs_opaque(len);
	if (len > max)
		return 0;
	if (bpf_probe_read_user(data + at, len, (const void *)from)) {
		zs_count(ZS_FAULTS);
		head->flags |= ZS_FLAG_FAULT;
		return 0;
	}
	*used = at + len;
	return len;
}

static __always_inline void zs_fold(const struct zs_head *head, __u8 class, bool error)
{
	struct zs_fallback_key key = {
	    .target = head->target,
	    .instrumentor = zs_instrumentor,
	    .class = class,
	    .error = error,
	};
	struct zs_fallback_value zero = {}, *value;
	__u64 duration = head->end - head->start;

	for (__u32 i = 0; i < ZS_MAX_BOUNDS; i++) {
		if (zs_bounds[i] == 0 || duration <= zs_bounds[i])
			break;
		key.bucket = i + 1;
	}
	zs_count(ZS_FALLBACK);
	value = bpf_map_lookup_elem(&zs_fallback, &key);
	if (!value) {
		bpf_map_update_elem(&zs_fallback, &key, &zero, BPF_NOEXIST);
		value = bpf_map_lookup_elem(&zs_fallback, &key);
	}
	if (!value) {
		zs_count(ZS_FALLBACK_LOST);
		return;
	}
	__sync_fetch_and_add(&value->count, 1);
	__sync_fetch_and_add(&value->sum, duration);
}

/*
 * Hands a finished call to the consumer. size must be bounded by the caller.
 * The consumer drains by the clock while it is busy; only a sleeping one is woken.
 */
static __always_inline void zs_emit(struct zs_head *head, __u32 size, __u8 class, bool error)
{
	__u64 wake = BPF_RB_NO_WAKEUP;
	struct zs_control *control;
	__u32 zero = 0;

	zs_count(ZS_COMPLETED);
	control = bpf_map_lookup_elem(&zs_ctl, &zero);
	if (control && control->sleeping) {
		control->sleeping = 0;
		wake = BPF_RB_FORCE_WAKEUP;
	}
	if (bpf_ringbuf_output(&zs_ring, head, size, wake))
		zs_fold(head, class, error);
}

/*
 * Begins the call of the key, counts it and fills in the head but for what is the
 * library's: task, parent and ids. What the key leads to already is a call whose
 * end was not seen. NULL, and counted, if there is no room.
 */
static __always_inline void *zs_begin(const struct zs_key *key, __u64 cookie)
{
	struct zs_head *head;

	if (bpf_map_lookup_elem(&zs_calls, key)) {
		zs_count(ZS_MISSED_END);
		zs_delete_entry(key);
	}
	zs_count(ZS_STARTED);
	head = zs_make_entry(key);
	if (!head)
		return NULL;
	head->start = bpf_ktime_get_ns();
	head->tgid = key->tgid;
	head->target = zs_cookie_target(cookie);
	head->instrumentor = zs_instrumentor;
	return head;
}

/* Ends the call of the key: see zs_emit. */
static __always_inline void zs_finish(struct zs_head *head, const struct zs_key *key, __u32 size, __u8 class,
				      bool error)
{
	head->end = bpf_ktime_get_ns();
	zs_emit(head, size, class, error);
	zs_delete_entry(key);
}
