//go:build ignore

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Server calls of Go's net/http: HTTP/1, HTTP/2 (bundled, golang.org/x/net,
 * net/http/internal/http2). A call is kept under its goroutine, which runs the
 * handler from start to end in all of them.
 */
#include "go.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define METHOD_MAX     16
#define TARGET_MAX     192
#define HOST_MAX       64
#define REMOTE_MAX     56
#define USER_AGENT_MAX 160
#define PATTERN_MAX    128
#define PANIC_MAX      64
#define DATA_MAX       904

/* While the request is read, the tail of data holds what is being looked at. */
#define SCRATCH_AT   (METHOD_MAX + TARGET_MAX + HOST_MAX + REMOTE_MAX)
#define REQUEST_MAX  320
#define RESPONSE_AT  (SCRATCH_AT + USER_AGENT_MAX + PATTERN_MAX)
#define RESPONSE_MAX 280
#define HEADERS_AT   (SCRATCH_AT + GO_MAP_GROUP_MAX)

_Static_assert(HEADERS_AT % 8 == 0 && HEADERS_AT + sizeof(struct go_headers) <= DATA_MAX,
	       "a map group fits too");
_Static_assert(SCRATCH_AT + REQUEST_MAX + 16 <= HEADERS_AT,
	       "what a blank entry has behind the request stays zero");
_Static_assert(SCRATCH_AT + USER_AGENT_MAX + PATTERN_MAX + PANIC_MAX <= DATA_MAX, "all strings fit");
_Static_assert(RESPONSE_AT % 8 == 0 && RESPONSE_AT + RESPONSE_MAX + 8 <= DATA_MAX,
	       "a response fits behind them");

enum outcome {
	OUTCOME_OPEN,
	OUTCOME_RETURNED, /* the handler returned and the response is being finished */
	OUTCOME_UNWOUND,  /* panic or runtime.Goexit: see zs_head.flags */
	OUTCOME_HIJACKED, /* the handler took the connection */
	OUTCOME_CLIENT_GONE,
};

struct call {
	struct zs_head head;
	__u64 writer;  /* the ResponseWriter's address: which call this goroutine runs */
	__u64 request; /* *http.Request */
	__s64 content_length;
	__s64 written;
	__u16 status;
	__u8 outcome;
	__u8 wrote_header;
	__u8 tls;
	__u8 proto_major, proto_minor;
	__u8 pattern_of_child; /* the pattern was seen on a goroutine that this one started */
	__u8 client_gone;
	__u8 gap; /* bytes between method and request target, which were read in one go */
	__u8 head_method;
	__u8 pad[5];
	__u16 remote_len, method_len, target_len, host_len, user_agent_len, pattern_len, panic_len;
	__u16 data_len;
	__u8 data[DATA_MAX]; /* the strings in the order of their lengths */
	/* What stays true from one request of a connection to the next; not part of the record. */
	__u64 remote_ptr;     /* whose text is at the start of data */
	__u64 user_agent_key; /* the address of the header's name, which net/http has once */
};

_Static_assert(offsetof(struct call, data) == 136, "the record has no holes that Go does not know");
_Static_assert(sizeof(struct call) <= ZS_CALL_MAX, "it fits into the map that all instrumentors share");

/* net/http.Request and net/http/internal/http2.ServerRequest, which have the same fields. */
struct request_layout {
	__u32 method, request_uri, proto_major, proto_minor, header, content_length, host, remote_addr, tls,
	    context, pattern;
	__u32 span; /* bytes from the struct's start that hold all of these but pattern */
};

struct h2_layout {
	__u32 ended;					 /* the end site of this HTTP/2 server is attached */
	__u32 writer_state;				 /* responseWriter.rws */
	__u32 status, wrote_header, wrote_bytes, stream; /* responseWriterState */
	__u32 stream_state;				 /* stream.state */
};

struct layout {
	struct request_layout request;
	struct request_layout h2_request;
	struct h2_layout h2_std, h2_xnet;
	struct go_map_layout header;
	struct go_runtime_layout rt;
	__u32 response_status, response_written, response_wrote_header, response_client_gone;
	__u32 response_span;	    /* sizeof(response) */
	__u32 handlers_on_children; /* http.TimeoutHandler is in this binary */
};

#define STREAM_CLOSED 4 /* stateClosed of both HTTP/2 servers */

const struct layout *unused_layout __attribute__((unused));
const struct call *unused_call __attribute__((unused));
const enum outcome *unused_outcome __attribute__((unused));

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1024); /* one a binary */
	__type(key, __u32);
	__type(value, struct layout);
} layouts SEC(".maps");

/*
 * Requests that golang.org/x/net serves over HTTP/2 after an "Upgrade: h2c":
 * they began as an HTTP/1 call, which was hijacked for it. The header map is the
 * one thing that both have in common in all versions.
 */
struct upgrade_key {
	__u64 header;
	__u32 tgid;
	__u32 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, struct upgrade_key);
	__type(value, __u8);
} upgraded SEC(".maps");

static __always_inline const struct layout *layout_of(__u64 cookie)
{
	__u32 index = zs_cookie_layout(cookie);

	return bpf_map_lookup_elem(&layouts, &index);
}

/*
 * A word, or a string header, of the struct that lies in scratch. What is absent
 * is read from behind the struct, where a blank entry is zero: a branch here
 * would double the verifier's work with every field.
 */
static __always_inline __u64 word(const __u8 *scratch, __u32 offset)
{
	if (offset > REQUEST_MAX)
		offset = REQUEST_MAX;
	return *(__u64 *)(scratch + offset);
}

static __always_inline struct go_string text(const __u8 *scratch, __u32 offset)
{
	if (offset > REQUEST_MAX)
		offset = REQUEST_MAX;
	return *(struct go_string *)(scratch + offset);
}

static __always_inline __u16 append(struct call *c, const struct go_string *s, __u32 max)
{
	return zs_append(&c->head, c->data, DATA_MAX, &c->data_len, s->ptr, s->len, max);
}

/* Reads what is known of the request at its start; false when it is no call. */
static __always_inline bool read_request(struct call *c, const struct layout *l,
					 const struct request_layout *rl)
{
	__u8 *scratch = c->data + SCRATCH_AT;
	struct go_headers *headers = (void *)(c->data + HEADERS_AT);
	struct go_string method, target, host, remote, context;
	__u32 span = rl->span, first;

	c->data_len = c->remote_len;
	if (span > REQUEST_MAX || !zs_read(scratch, span, c->request)) {
		c->head.flags |= ZS_FLAG_FAULT;
		return true;
	}
	method = text(scratch, rl->method);
	host = text(scratch, rl->host);
	remote = text(scratch, rl->remote_addr);
	target = text(scratch, rl->request_uri);
	headers->map = word(scratch, rl->header);
	context = text(scratch, rl->context);
	zs_owner_of(c)->itab = context.ptr;
	zs_owner_of(c)->context = context.len; /* an interface has two words too */
	c->content_length = rl->content_length == ZS_ABSENT ? -1 : word(scratch, rl->content_length);
	c->proto_major = word(scratch, rl->proto_major);
	c->proto_minor = word(scratch, rl->proto_minor);
	c->tls = word(scratch, rl->tls) != 0;
	/* A connection has one string for its peer: read once. */
	if (remote.ptr != c->remote_ptr) {
		c->data_len = 0;
		c->remote_len = append(c, &remote, REMOTE_MAX);
		c->remote_ptr = remote.ptr;
	}
	/*
	 * In HTTP/1 both are parts of the request line, "GET /path?query HTTP/1.1":
	 * one read instead of two. The query is cut off before anybody sees it.
	 */
	if (method.len && method.len < METHOD_MAX && target.ptr == method.ptr + method.len + 1) {
		struct go_string line = {.ptr = method.ptr, .len = method.len + 1 + target.len};
		__u16 len = append(c, &line, METHOD_MAX + TARGET_MAX);

		if (len > method.len) {
			c->method_len = method.len;
			c->gap = 1;
			c->target_len = len - method.len - 1;
		}
	} else {
		c->method_len = append(c, &method, METHOD_MAX);
		c->target_len = append(c, &target, TARGET_MAX);
	}
	first = c->remote_len;
	if (first <= REMOTE_MAX) {
		__u8 *m = c->data + first;

		/* The preface of an HTTP/2 connection with prior knowledge is no request. */
		if (c->method_len == 3 && m[0] == 'P' && m[1] == 'R' && m[2] == 'I')
			return false;
		c->head_method = c->method_len == 4 && m[0] == 'H' && m[1] == 'E';
	}
	c->host_len = append(c, &host, HOST_MAX);

	headers->user_agent_key = c->user_agent_key;
	go_scan_headers(&l->header, scratch, headers);
	c->user_agent_key = headers->user_agent_key;
	if (headers->traceparent.len)
		go_adopt_traceparent(&c->head, &headers->traceparent, scratch);
	c->user_agent_len = append(c, &headers->user_agent, USER_AGENT_MAX);
	return true;
}

/* Where a start was seen: the request's type, and whether it must be HTTP/2, follow from it. */
enum begin_at {
	BEGIN_HANDLER,	 /* net/http's own: *http.Request, any version */
	BEGIN_H2_XNET,	 /* *http.Request */
	BEGIN_H2_SERVER, /* *http2.ServerRequest */
};

static __always_inline int begin(struct pt_regs *ctx, __u64 writer, __u64 request, enum begin_at at)
{
	__u64 cookie = zs_cookie(ctx);
	const struct layout *l = layout_of(cookie);
	const struct request_layout *rl;
	struct zs_owner *owner;
	struct zs_key key;
	struct call *c;
	__u16 kept;

	if (!l || go_is_stack_growth(ctx, cookie))
		return 0;
	key = go_key(ctx, ZS_OWNER);
	c = bpf_map_lookup_elem(&zs_calls, &key);
	if (!c) {
		zs_count(ZS_STARTED);
		c = zs_make_entry(&key);
		if (!c)
			return 0;
	} else {
		owner = zs_owner_of(c);
		if (c->head.start && c->writer == writer) {
			/* A server that wraps another reports one request twice. */
			if (at == BEGIN_H2_SERVER)
				return 0;
			c->request = request;
			if (!owner->context && l->request.context != ZS_ABSENT) {
				owner->context = zs_read_u64(request, l->request.context + 8);
				zs_index_set(owner->context, key.tgid, key.task);
			}
			return 0;
		}
		owner->begun++;
		if (c->head.start) { /* another goroutine may have this g now */
			zs_count(ZS_MISSED_END);
			zs_disown(c, &key);
			c->remote_ptr = 0;
		}
		zs_count(ZS_STARTED);
		kept = c->remote_len;
		__builtin_memset(c, 0, offsetof(struct call, data));
		c->remote_len = kept;
		__builtin_memset(c->data + SCRATCH_AT + REQUEST_MAX, 0, 16);
		__builtin_memset(c->data + HEADERS_AT, 0, sizeof(struct go_headers));
	}
	owner = zs_owner_of(c);
	if (!owner->begun)
		zs_read(&owner->task_id, sizeof(owner->task_id), GO_G(ctx) + l->rt.g_goid);
	c->head.task = owner->task_id;
	c->head.tgid = key.tgid;
	c->head.target = zs_cookie_target(cookie);
	c->head.instrumentor = zs_instrumentor;
	c->writer = writer;
	c->request = request;
	rl = at == BEGIN_H2_SERVER ? &l->h2_request : &l->request;
	c->head.start = bpf_ktime_get_ns();
	if (!read_request(c, l, rl) || (c->proto_major == 2 && !l->h2_std.ended && !l->h2_xnet.ended)) {
		zs_count(ZS_SKIPPED);
		zs_delete_owner(&key, c);
		return 0;
	}
	if (at != BEGIN_HANDLER && c->proto_major == 1) {
		struct upgrade_key upgrade = {
		    .header = ((struct go_headers *)(c->data + HEADERS_AT))->map,
		    .tgid = key.tgid,
		};
		__u8 one = 1;

		bpf_map_update_elem(&upgraded, &upgrade, &one, BPF_ANY);
	}
	if (at == BEGIN_H2_SERVER)
		c->request = 0; /* it has no pattern; a *http.Request may follow */
	go_own(ctx, c, &l->rt, &key, c->head.target, at != BEGIN_HANDLER || c->proto_major == 2);
	zs_identify(&c->head);
	return 0;
}

/* Keeps the text of a panic's value if it points to a string header, as an errors.New does. */
static __always_inline void read_panic(struct call *c, const __u64 arg[2])
{
	struct go_string message = {};

	if (!arg[1] || bpf_probe_read_user(&message, sizeof(message), (void *)arg[1]) ||
	    message.len > PANIC_MAX)
		return;
	c->panic_len = append(c, &message, PANIC_MAX);
}

/*
 * Whether the request is still the one that began. Over HTTP/2 net/http does not
 * always keep it: a handler that is done with it lets the collector have it.
 */
static __always_inline bool owns_request(struct call *c, const struct layout *l)
{
	struct go_headers *headers = (void *)(c->data + HEADERS_AT);

	return c->proto_major != 2 || zs_read_u64(c->request, l->request.header) == headers->map;
}

/*
 * The pattern that ServeMux stored in the request that the server made. Where
 * middleware copied it, only mux_found knows; the agent learns from the flags
 * whether that site is worth its price.
 */
static __always_inline void read_pattern(struct call *c, const struct layout *l)
{
	struct go_string pattern = {};

	if (l->request.pattern != ZS_ABSENT && c->request && owns_request(c, l))
		zs_read(&pattern, sizeof(pattern), c->request + l->request.pattern);
	if (c->pattern_len) {
		if (!pattern.len)
			c->head.flags |= ZS_FLAG_EXTRA_USED;
		return;
	}
	c->pattern_len = append(c, &pattern, PATTERN_MAX);
	if (!c->pattern_len && c->status != 404)
		c->head.flags |= ZS_FLAG_EXTRA_MISSED;
}

static __always_inline void finish(struct call *c, const struct zs_key *key, const struct layout *l,
				   const __u64 *panic, bool keep)
{
	__u16 status;
	bool failed;
	__u32 size;
	__u64 *n;

	c->head.end = bpf_ktime_get_ns();
	read_pattern(c, l);
	if (panic)
		read_panic(c, panic);
	size = offsetof(struct call, data) + c->data_len;
	if (size > offsetof(struct call, remote_ptr))
		size = offsetof(struct call, remote_ptr);
	status = c->status;
	if (!status && c->outcome == OUTCOME_RETURNED)
		status = 200; /* what net/http sends for a handler that sets none */
	failed = status >= 500 || c->outcome == OUTCOME_UNWOUND || c->outcome == OUTCOME_CLIENT_GONE;
	zs_emit(&c->head, size, status / 100, failed);
	n = keep ? zs_entry_count() : NULL;
	if (n && *n < zs_keep_below) {
		c->head.start = 0;
		c->writer = 0;
		zs_owner_of(c)->context = 0; /* its memory may soon be another's */
	} else {
		zs_delete_owner(key, c);
	}
}

static __always_inline __u64 response_word(const __u8 *scratch, __u32 offset)
{
	if (offset > RESPONSE_MAX)
		offset = RESPONSE_MAX;
	return *(__u64 *)(scratch + offset);
}

/* What a *response knows; one read is cheaper than one a field. */
static __always_inline void read_response(struct call *c, const struct layout *l)
{
	__u8 *scratch = c->data + RESPONSE_AT;
	__u32 size = l->response_span;

	if (size > RESPONSE_MAX || !zs_read(scratch, size, c->writer))
		return;
	c->wrote_header = response_word(scratch, l->response_wrote_header) & 1;
	c->status = response_word(scratch, l->response_status);
	c->written = response_word(scratch, l->response_written);
	c->client_gone = response_word(scratch, l->response_client_gone) & 1;
}

/* func (sh serverHandler) ServeHTTP(rw ResponseWriter, req *Request) */
SEC("uprobe")
int serve_http(struct pt_regs *ctx)
{
	return begin(ctx, GO_R2(ctx), GO_R3(ctx), BEGIN_HANDLER);
}

/* func (w *response) finishRequest() */
SEC("uprobe")
int finish_request(struct pt_regs *ctx)
{
	__u64 cookie = zs_cookie(ctx);
	const struct layout *l = layout_of(cookie);
	struct zs_key key;
	struct call *c;

	if (!l || go_is_stack_growth(ctx, cookie))
		return 0;
	key = go_key(ctx, ZS_OWNER);
	c = bpf_map_lookup_elem(&zs_calls, &key);
	if (!c || c->writer != GO_R0(ctx)) {
		zs_count(ZS_UNMATCHED_END);
		return 0;
	}
	read_response(c, l);
	c->outcome = c->client_gone ? OUTCOME_CLIENT_GONE : OUTCOME_RETURNED;
	finish(c, &key, l, NULL, true);
	return 0;
}

/*
 * The deferred closure of func (c *conn) serve(ctx context.Context). Once a
 * connection; a call is still open here after a panic, runtime.Goexit or Hijack.
 */
SEC("uprobe")
int conn_served(struct pt_regs *ctx)
{
	__u64 cookie = zs_cookie(ctx), arg[2] = {};
	const struct layout *l = layout_of(cookie);
	struct zs_key key;
	struct call *c;
	__u16 unwinding;

	if (!l || go_is_stack_growth(ctx, cookie))
		return 0;
	key = go_key(ctx, ZS_OWNER);
	c = bpf_map_lookup_elem(&zs_calls, &key);
	if (!c)
		return 0;
	if (!c->head.start) { /* the connection ends between requests */
		zs_delete_owner(&key, c);
		return 0;
	}
	unwinding = go_unwinding(ctx, &l->rt, arg);
	if (!unwinding) {
		struct upgrade_key upgrade = {
		    .header = zs_read_u64(c->request, l->request.header),
		    .tgid = key.tgid,
		};

		if (bpf_map_delete_elem(&upgraded, &upgrade) == 0) {
			zs_count(ZS_SKIPPED);
			zs_delete_owner(&key, c);
			return 0;
		}
	}
	read_response(c, l);
	c->outcome = unwinding ? OUTCOME_UNWOUND : OUTCOME_HIJACKED;
	c->head.flags |= unwinding;
	finish(c, &key, l, arg, false);
	return 0;
}

/* The deferred closure of func (sc *serverConn) runHandler(rw *responseWriter, req *Request, handler) */
static __always_inline int h2_end(struct pt_regs *ctx, bool xnet)
{
	__u64 cookie = zs_cookie(ctx), arg[2] = {}, state, stream;
	const struct layout *l = layout_of(cookie);
	const struct h2_layout *h2;
	struct zs_key key;
	struct call *c;
	__u16 unwinding;

	if (!l || go_is_stack_growth(ctx, cookie))
		return 0;
	h2 = xnet ? &l->h2_xnet : &l->h2_std;
	key = go_key(ctx, ZS_OWNER);
	c = zs_open_call(&key);
	if (!c) {
		zs_count(ZS_UNMATCHED_END);
		return 0;
	}
	unwinding = go_unwinding(ctx, &l->rt, arg);
	c->outcome = unwinding ? OUTCOME_UNWOUND : OUTCOME_RETURNED;
	c->head.flags |= unwinding;
	state = zs_read_u64(c->writer, h2->writer_state);
	if (state) {
		c->wrote_header = zs_read_u8(state, h2->wrote_header);
		c->status = zs_read_u64(state, h2->status);
		c->written = zs_read_u64(state, h2->wrote_bytes);
		stream = zs_read_u64(state, h2->stream);
		/* Closed before the handler is done: reset by the client, or its connection is gone.
		 * An answer to HEAD closes the stream with its headers. */
		if (!unwinding && !c->head_method && stream &&
		    zs_read_u8(stream, h2->stream_state) == STREAM_CLOSED)
			c->outcome = OUTCOME_CLIENT_GONE;
	}
	finish(c, &key, l, arg, false);
	return 0;
}

SEC("uprobe")
int h2_std_end(struct pt_regs *ctx)
{
	return h2_end(ctx, false);
}

SEC("uprobe")
int h2_xnet_end(struct pt_regs *ctx)
{
	return h2_end(ctx, true);
}

/* golang.org/x/net/http2: func (sc *serverConn) runHandler(rw *responseWriter, req *http.Request, handler) */
SEC("uprobe")
int h2_xnet_start(struct pt_regs *ctx)
{
	return begin(ctx, GO_R1(ctx), GO_R2(ctx), BEGIN_H2_XNET);
}

/* net/http/internal/http2: func (sc *serverConn) runHandler(rw *responseWriter, req *ServerRequest, handler)
 */
SEC("uprobe")
int h2_std_start(struct pt_regs *ctx)
{
	return begin(ctx, GO_R1(ctx), GO_R2(ctx), BEGIN_H2_SERVER);
}

/*
 * Inside func (mux *ServeMux) ServeHTTP, behind
 * h, r.Pattern, r.pat, r.matches = mux.findHandler(r): middleware may have
 * copied the request, and then only the copy gets the pattern.
 */
SEC("uprobe")
int mux_found(struct pt_regs *ctx)
{
	__u64 cookie = zs_cookie(ctx);
	const struct layout *l = layout_of(cookie);
	struct go_string pattern = {.ptr = GO_R2(ctx), .len = GO_R3(ctx)};
	struct zs_key key;
	struct call *c;

	if (!l || pattern.len == 0)
		return 0;
	key = go_key(ctx, ZS_OWNER);
	c = zs_open_call(&key);
	if (!c) {
		/* http.TimeoutHandler runs its handler on a goroutine of its own. */
		__u64 goid;

		if (!l->handlers_on_children || l->rt.g_parent_goid == ZS_ABSENT)
			return 0;
		goid = zs_read_u64(GO_G(ctx), l->rt.g_parent_goid);
		c = zs_open_by(goid, key.tgid);
		if (!c || c->head.task != goid)
			return 0;
		c->pattern_of_child = 1;
	}
	c->data_len -= c->pattern_len; /* the innermost mux has the last word */
	c->pattern_len = append(c, &pattern, PATTERN_MAX);
	return 0;
}
