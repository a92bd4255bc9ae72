//go:build ignore

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Client calls of Go's net/http: round trips of a http.Transport, over HTTP/1 and
 * HTTP/2, and of golang.org/x/net's http2.Transport used by itself. A round trip
 * runs on its caller's goroutine from start to end.
 */
#include "go.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define METHOD_MAX     16
#define SCHEME_MAX     16
#define HOST_MAX       128
#define PATH_MAX       224
#define URL_MAX	       368 /* scheme://host/path in one piece */
#define ERROR_TEXT_MAX 64
#define SCRATCH_MAX    336
#define DATA_MAX       896

#define SCRATCH_AT (METHOD_MAX + URL_MAX)

_Static_assert(SCHEME_MAX + HOST_MAX + PATH_MAX == URL_MAX, "in three pieces it fits too");
_Static_assert(SCRATCH_AT % 8 == 0 && SCRATCH_AT + SCRATCH_MAX + 16 <= DATA_MAX,
	       "there is room to look at things");
_Static_assert(SCRATCH_AT + ERROR_TEXT_MAX <= DATA_MAX, "all strings fit");

enum result {
	RESULT_OPEN,
	RESULT_RESPONSE,
	RESULT_ERROR,	/* error_type and so on say which */
	RESULT_UNWOUND, /* panic or runtime.Goexit: see zs_head.flags */
};

/* Whose round trip began the call: what is called by it is not another one. */
enum began {
	BEGAN_TRANSPORT, /* net/http.Transport */
	BEGAN_H2_XNET,	 /* golang.org/x/net/http2.Transport */
};

struct call {
	struct zs_head head;
	__u16 status;
	__u8 result; /* enum result */
	__u8 proto_major, proto_minor;
	__u8 gap;	/* bytes between scheme and host: the URL is in one piece */
	__u8 has_query; /* the URL has one; it is not read */
	__u8 has_user;	/* the URL has a user name or password; they are not read */
	__u8 raw_path;	/* the path is escaped as it was given */
	__u8 context;	/* why the request's context has ended: enum context_end */
	__u16 resends;	/* redirects that led here, and retries on other connections */
	/*
	 * The error: the address of its type, where its value is and its text, if it has
	 * one. What a program can't read because its page was never touched, the agent
	 * finds in the executable.
	 */
	__u64 error_type, error_at, error_text, error_text_size;
	__u32 error_number;
	__u16 method_len, scheme_len, host_len, path_len, error_text_len;
	__u16 data_len;
	__u8 data[DATA_MAX]; /* the strings in the order of their lengths */
	/* Not part of the record. */
	__u64 stack;		    /* bytes of stack in use at the start */
	__u64 caller;		    /* the return address that lies there as long as the round trip runs */
	__u32 nested;		    /* round trips within this one that have not ended */
	__u8 began;		    /* enum began */
	struct go_iface of_request; /* its context */
};

enum context_end {
	CONTEXT_ALIVE,
	CONTEXT_CANCELLED,
	CONTEXT_DEADLINE,
};

_Static_assert(sizeof(struct call) <= ZS_CALL_MAX, "it fits into the map that all instrumentors share");

struct layout {
	struct go_runtime_layout rt;
	__u64 returns_from, returns_size; /* where the deferred end is called from, relative to its site */
	__u32 g_span;			  /* bytes of a g that are read */
	__u32 method, url, context, response; /* net/http.Request */
	__u32 request_span;
	__u32 url_scheme, url_user, url_host, url_path, url_raw_path, url_raw_query; /* net/url.URL */
	__u32 url_span;
	__u32 status, proto_major, proto_minor, request; /* net/http.Response */
	__u32 response_span;
	__u32 result_at, error_at; /* roundTrip's results on the stack, at the deferred end */
	__u32 frame_span;
	__u32 cancel_err; /* context.cancelCtx.err */
	__s64 skip;	  /* http.ErrSkipAltProtocol, relative to the site that asks for it */
};

const struct layout *unused_layout __attribute__((unused));
const struct call *unused_call __attribute__((unused));
const enum result *unused_result __attribute__((unused));
const enum context_end *unused_end __attribute__((unused));

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

/* A word, or two, of the struct that lies in scratch; what is absent lies behind it and is zero. */
static __always_inline __u64 word(const __u8 *scratch, __u32 offset)
{
	if (offset > SCRATCH_MAX)
		offset = SCRATCH_MAX;
	return *(__u64 *)(scratch + offset);
}

static __always_inline struct go_string text(const __u8 *scratch, __u32 offset)
{
	if (offset > SCRATCH_MAX)
		offset = SCRATCH_MAX;
	return *(struct go_string *)(scratch + offset);
}

static __always_inline bool look_at(struct call *c, __u64 from, __u32 size)
{
	if (size <= SCRATCH_MAX && zs_read(c->data + SCRATCH_AT, size, from))
		return true;
	c->head.flags |= ZS_FLAG_FAULT;
	return false;
}

static __always_inline __u16 append(struct call *c, const struct go_string *s, __u32 max)
{
	return zs_append(&c->head, c->data, DATA_MAX, &c->data_len, s->ptr, s->len, max);
}

/* Reads scheme, host and path of the *url.URL. */
static __always_inline void read_url(struct call *c, const struct layout *l, __u64 url)
{
	__u8 *scratch = c->data + SCRATCH_AT;
	struct go_string scheme, host, path, raw, all;
	__u16 len;

	if (!look_at(c, url, l->url_span))
		return;
	scheme = text(scratch, l->url_scheme);
	host = text(scratch, l->url_host);
	path = text(scratch, l->url_path);
	raw = text(scratch, l->url_raw_path);
	c->has_user = word(scratch, l->url_user) != 0;
	c->has_query = text(scratch, l->url_raw_query).len != 0;
	if (raw.len) {
		path = raw;
		c->raw_path = 1;
	}
	/* As url.Parse leaves them they are parts of one string: one read instead of three. */
	all.ptr = scheme.ptr;
	all.len = scheme.len + 3 + host.len + path.len;
	if (host.ptr == scheme.ptr + scheme.len + 3 && (path.ptr == host.ptr + host.len || !path.len) &&
	    scheme.len < SCHEME_MAX && host.len < HOST_MAX) {
		len = append(c, &all, URL_MAX);
		if (len >= scheme.len + 3 + host.len) {
			c->scheme_len = scheme.len;
			c->gap = 3;
			c->host_len = host.len;
			c->path_len = len - scheme.len - 3 - host.len;
		}
		return;
	}
	c->scheme_len = append(c, &scheme, SCHEME_MAX);
	c->host_len = append(c, &host, HOST_MAX);
	c->path_len = append(c, &path, PATH_MAX);
}

#define REDIRECTS_MAX 20

/* How many redirects led to this request: each request knows the response that caused it. */
static __noinline int count_redirects(const struct layout *l, __u64 response)
{
	int n = 0;

	for (; n < REDIRECTS_MAX && response; n++) {
		__u64 request = zs_read_u64(response, l->request);

		response = request ? zs_read_u64(request, l->response) : 0;
	}
	return n;
}

static __always_inline int begin(struct pt_regs *ctx, __u64 request, enum began began)
{
	__u64 cookie = zs_cookie(ctx), url, response;
	const struct layout *l = layout_of(cookie);
	struct go_string method, context;
	struct go_caller caller;
	struct go_iface from;
	struct zs_key key;
	struct call *c;
	__u8 *scratch;

	if (!l || go_is_stack_growth(ctx, cookie))
		return 0;
	key = go_key(ctx, zs_slot());
	c = bpf_map_lookup_elem(&zs_calls, &key);
	if (c) {
		/*
		 * A transport may call another within a round trip; that is no request
		 * of its own. Or is this what a panic left behind?
		 */
		__u64 goid = zs_read_u64(GO_G(ctx), l->rt.g_goid);
		__u64 top = zs_read_u64(GO_G(ctx), l->rt.g_stack_hi);

		if (goid == c->head.task && top - ctx->rsp > c->stack &&
		    zs_read_u64(top - c->stack, 0) == c->caller) {
			if (c->began == began)
				c->nested++;
			zs_count(ZS_STARTED);
			zs_count(ZS_SKIPPED);
			return 0;
		}
		zs_count(ZS_MISSED_END);
		zs_delete_entry(&key);
	}
	zs_count(ZS_STARTED);
	c = zs_make_entry(&key);
	if (!c)
		return 0;
	c->head.start = bpf_ktime_get_ns();
	c->head.tgid = key.tgid;
	c->head.target = zs_cookie_target(cookie);
	c->head.instrumentor = zs_instrumentor;
	c->began = began;
	c->caller = zs_read_u64(ctx->rsp, 0);
	scratch = c->data + SCRATCH_AT;
	if (!look_at(c, GO_G(ctx), l->g_span)) {
		zs_count(ZS_SKIPPED);
		zs_delete_entry(&key);
		return 0;
	}
	caller.goid = word(scratch, l->rt.g_goid);
	caller.parent_goid = word(scratch, l->rt.g_parent_goid);
	caller.waited = l->rt.g_waitreason == ZS_ABSENT || (__u8)word(scratch, l->rt.g_waitreason);
	c->stack = word(scratch, l->rt.g_stack_hi) - ctx->rsp;
	c->head.task = caller.goid;

	if (look_at(c, request, l->request_span)) {
		method = text(scratch, l->method);
		context = text(scratch, l->context); /* an interface has two words too */
		url = word(scratch, l->url);
		response = word(scratch, l->response);
		from.itab = c->of_request.itab = context.ptr;
		from.data = c->of_request.data = context.len;
		go_adopt_parent(&c->head, &key, &from, &caller);
		c->method_len = append(c, &method, METHOD_MAX);
		if (response)
			c->resends = count_redirects(l, response);
		if (url)
			read_url(c, l, url);
	}
	zs_identify(&c->head);
	return 0;
}

/*
 * Why the request's context has ended, if it has: what the transport returns may
 * be an error of the user's own. cancelCtx.err is an error or, since Go 1.25, an
 * atomic.Value: the second word of both leads to the value.
 */
static __noinline int why_ended(const struct layout *l, struct call *c)
{
	struct go_iface context = c->of_request, error = {};
	struct go_string message = {};

	for (int i = 0; i < 8; i++) {
		const struct go_type *type = context.itab ? go_type_of(c->head.target, context.itab) : NULL;

		if (!type || !(type->flags & GO_TYPE_CONTEXT))
			break;
		if (type->flags & GO_TYPE_CANCELS) {
			if (l->cancel_err == ZS_ABSENT ||
			    !zs_read(&error, sizeof(error), context.data + l->cancel_err) || !error.itab)
				return CONTEXT_ALIVE;
			/* context.Canceled is an errors.errorString, DeadlineExceeded has no fields. */
			if (bpf_probe_read_user(&message, sizeof(message), (void *)error.data))
				return CONTEXT_ALIVE;
			return message.len == sizeof("context canceled") - 1 ? CONTEXT_CANCELLED
									     : CONTEXT_DEADLINE;
		}
		if (!zs_read(&context, sizeof(context), context.data + type->next))
			break;
	}
	return CONTEXT_ALIVE;
}

/* Reads which error it is that a round trip returns. */
static __noinline int read_error(struct call *c, const struct layout *l, struct go_iface *error)
{
	const struct go_type *type;
	struct go_string message = {};

	go_innermost_error(c->head.target, error);
	c->error_type = zs_read_u64(error->itab, GO_ITAB_TYPE);
	c->error_at = error->data;
	type = go_type_of(c->head.target, error->itab);
	if (type && type->flags & GO_TYPE_TEXT &&
	    zs_read(&message, sizeof(message), error->data + type->text)) {
		c->error_text = message.ptr;
		c->error_text_size = message.len;
		c->error_text_len = append(c, &message, ERROR_TEXT_MAX);
	} else if (bpf_probe_read_user(&c->error_number, sizeof(c->error_number), (void *)error->data)) {
		c->error_number = 0; /* what it is, if it is a number, depends on the type */
	}
	c->context = why_ended(l, c);
	return 0;
}

static __always_inline struct call *begun(struct pt_regs *ctx, struct zs_key *key, enum began began)
{
	struct call *c;

	*key = go_key(ctx, zs_slot());
	c = bpf_map_lookup_elem(&zs_calls, key);
	if (!c) {
		zs_count(ZS_UNMATCHED_END);
		return NULL;
	}
	if (c->began != began)
		return NULL; /* the end of a transport that the one with the call uses */
	if (c->nested) {
		c->nested--;
		return NULL;
	}
	return c;
}

static __always_inline void finish(struct call *c, const struct zs_key *key)
{
	__u32 size = offsetof(struct call, data) + c->data_len;
	bool failed;

	c->head.end = bpf_ktime_get_ns();
	if (size > offsetof(struct call, stack))
		size = offsetof(struct call, stack);
	failed = c->status >= 400 || c->result != RESULT_RESPONSE;
	zs_emit(&c->head, size, c->status / 100, failed);
	zs_delete_entry(key);
}

static __always_inline void end(struct call *c, const struct zs_key *key, const struct layout *l,
				__u64 response, struct go_iface *error)
{
	__u8 *scratch = c->data + SCRATCH_AT;

	if (error->itab) {
		c->result = RESULT_ERROR;
		read_error(c, l, error);
	} else if (response) {
		c->result = RESULT_RESPONSE;
		if (look_at(c, response, l->response_span)) {
			c->status = word(scratch, l->status);
			c->proto_major = word(scratch, l->proto_major);
			c->proto_minor = word(scratch, l->proto_minor);
		}
	} else {
		c->result = RESULT_ERROR;
	}
	finish(c, key);
}

/* func (t *Transport) roundTrip(req *Request) (*Response, error) */
SEC("uprobe")
int round_trip(struct pt_regs *ctx)
{
	return begin(ctx, GO_R1(ctx), BEGAN_TRANSPORT);
}

/*
 * The deferred closure of roundTrip (Go 1.23 on). Its results lie on the stack
 * above if roundTrip itself called it; otherwise the goroutine unwinds.
 */
SEC("uprobe")
int round_trip_deferred(struct pt_regs *ctx)
{
	__u64 cookie = zs_cookie(ctx), arg[2] = {};
	const struct layout *l = layout_of(cookie);
	struct go_iface error;
	struct go_string pair;
	struct zs_key key;
	struct call *c;
	__u8 *scratch;

	if (!l || go_is_stack_growth(ctx, cookie))
		return 0;
	c = begun(ctx, &key, BEGAN_TRANSPORT);
	if (!c)
		return 0;
	scratch = c->data + SCRATCH_AT;
	if (!look_at(c, ctx->rsp, l->frame_span) ||
	    word(scratch, 0) - ctx->rip - l->returns_from >= l->returns_size) {
		c->result = RESULT_UNWOUND;
		c->head.flags |= go_unwinding(ctx, &l->rt, arg);
		finish(c, &key);
		return 0;
	}
	pair = text(scratch, l->error_at);
	error.itab = pair.ptr;
	error.data = pair.len;
	end(c, &key, l, word(scratch, l->result_at), &error);
	return 0;
}

/* A place where roundTrip's results are in registers. */
static __always_inline int returned(struct pt_regs *ctx, enum began began, bool if_ok)
{
	struct go_iface error = {.itab = GO_R1(ctx), .data = GO_R2(ctx)};
	const struct layout *l = layout_of(zs_cookie(ctx));
	struct zs_key key;
	struct call *c;

	if (!l || (if_ok && error.itab))
		return 0;
	c = begun(ctx, &key, began);
	if (c)
		end(c, &key, l, GO_R0(ctx), &error);
	return 0;
}

/* A RET of roundTrip that only failing calls come to. */
SEC("uprobe")
int round_trip_failed(struct pt_regs *ctx)
{
	return returned(ctx, BEGAN_TRANSPORT, false);
}

/* Inside roundTrip, behind resp, err = pconn.roundTrip(treq); an error may be retried. */
SEC("uprobe")
int round_trip_checked(struct pt_regs *ctx)
{
	return returned(ctx, BEGAN_TRANSPORT, true);
}

/* Inside roundTrip, behind resp, err := altRT.RoundTrip(req): an HTTP/2 connection that is open already. */
SEC("uprobe")
int round_trip_alternate(struct pt_regs *ctx)
{
	const struct layout *l = layout_of(zs_cookie(ctx));
	struct go_iface skip;

	/* What roundTrip itself has just compared the error with. */
	if (!l || !zs_read(&skip, sizeof(skip), ctx->rip + l->skip) ||
	    (skip.itab == GO_R1(ctx) && skip.data == GO_R2(ctx)))
		return 0;
	return returned(ctx, BEGAN_TRANSPORT, false);
}

/* Inside roundTrip, behind pconn.shouldRetryRequest(req, err), which only failing attempts come to. */
SEC("uprobe")
int round_trip_retried(struct pt_regs *ctx)
{
	struct zs_key key = go_key(ctx, zs_slot());
	struct call *c;

	zs_use_own_stack(ctx);
	c = bpf_map_lookup_elem(&zs_calls, &key);
	if (c && c->began == BEGAN_TRANSPORT && !c->nested && (__u8)GO_R0(ctx))
		c->resends++;
	return 0;
}

/* golang.org/x/net/http2: func (t *Transport) RoundTripOpt(req *http.Request, opt RoundTripOpt)
 * (*http.Response, error) */
SEC("uprobe")
int h2_round_trip(struct pt_regs *ctx)
{
	return begin(ctx, GO_R1(ctx), BEGAN_H2_XNET);
}

SEC("uprobe")
int h2_round_trip_checked(struct pt_regs *ctx)
{
	return returned(ctx, BEGAN_H2_XNET, true);
}

SEC("uprobe")
int h2_round_trip_failed(struct pt_regs *ctx)
{
	return returned(ctx, BEGAN_H2_XNET, false);
}
