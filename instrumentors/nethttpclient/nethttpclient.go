// Package nethttpclient traces the client side of Go's net/http: round trips of
// http.Client and http.Transport over HTTP/1.1 and HTTP/2, and those of
// golang.org/x/net's http2.Transport used by itself.
package nethttpclient

import (
	"encoding/binary"
	"errors"
	"net/url"
	"strings"
	"unsafe"

	"go.opentelemetry.io/otel/semconv/v1.43.0"
	"golang.org/x/arch/x86/x86asm"
	"golang.org/x/sys/unix"

	"github.com/zerospan/zerospan/bpf"
	"github.com/zerospan/zerospan/instrumentors"
	"github.com/zerospan/zerospan/offsets"
	"github.com/zerospan/zerospan/telemetry"
)

const (
	groupDeferred = "the deferred end of Go 1.23 on"
	groupChecked  = "the end of Go up to 1.22"
	groupRetry    = "retries"
	groupH2XNet   = "golang.org/x/net/http2.Transport by itself"

	roundTrip = "net/http.(*Transport).roundTrip"
	xnet      = "golang.org/x/net/http2."
	onlyFails = "only failing calls come by"
)

func init() {
	results := []x86asm.Reg{x86asm.RAX, x86asm.RBX, x86asm.RCX}
	xnetRoundTrip := []string{xnet + "(*Transport).roundTripViaPool", xnet + "(*Transport).RoundTripOpt"}
	instrumentors.Register(&instrumentors.Spec{
		Name:    "nethttp-client",
		Title:   "Go net/http clients",
		Library: "net/http",
		Docs: []string{
			"Go 1.18 to 1.27, amd64; normal, stripped (`-s -w`), position-independent and cgo binaries",
			"`http.Client` and `http.Transport`, HTTP/1.1 and HTTP/2, bundled, `golang.org/x/net/http2`, `net/http/internal/http2`; one call a round trip",
			"attributes: `http.request.method`, `url.full` (user names, passwords and queries are not read: `REDACTED` stands for them), " +
				"`http.response.status_code`, `server.address`, `server.port`, `network.protocol.version`, `http.request.resend_count` " +
				"(redirects that led to the request, and HTTP/1 retries on another connection), `error.type`",
			"`error.type`: the status from 400 on, `connection_refused`, `connection_reset`, `name_resolution_error`, `server_certificate_invalid`, " +
				"`tls_error`, `timeout`, `response_header_timeout`, `cancelled`, `unexpected_eof`, `malformed_response`, `unsupported_scheme`, `panic`, else the errno's or the error type's name",
			"the duration ends when the response's header is there; its body is not waited for",
			"parents: the context of the request, the goroutine, the goroutine that started it (Go 1.21 on); see performance.md for what that finds",
			"at most 368 bytes of scheme, host and path",
			"not seen: other transports (HTTP/3), which `http.RoundTripper`s of other packages are; requests that a transport makes within a round trip, such as in `Proxy`",
			"up to Go 1.22 a panic within a round trip ends it only when its goroutine makes the next one",
			"not attached, with the reason in `explain`: binaries built with `-race` or `-gcflags=-N`, where the code after the calls differs",
		},
		Load: loadClient,
		Sites: []instrumentors.Site{
			{Program: "round_trip", Group: instrumentors.Required, Role: instrumentors.Start, At: offsets.AtEntry(), Symbols: []string{roundTrip}},
			{Program: "round_trip_alternate", Group: instrumentors.Required, Role: instrumentors.End, Symbols: []string{roundTrip},
				At: offsets.AtGlobalCheckAfterIndirectCall(x86asm.RBX, results...), Rare: "only with HTTPS"},
			{Program: "round_trip_failed", Group: instrumentors.Required, Role: instrumentors.End, Symbols: []string{roundTrip},
				At: offsets.AtNilReturns(), Rare: onlyFails},
			{Program: "round_trip_deferred", Group: groupDeferred, Role: instrumentors.End, Symbols: []string{roundTrip},
				At: offsets.AtDeferredClosure()},
			{Program: "round_trip_checked", Group: groupChecked, Role: instrumentors.End, Symbols: []string{roundTrip},
				At: offsets.AtSharedCheckAfterCall("net/http.(*persistConn).roundTrip", results...), Instead: groupDeferred},
			{Program: "round_trip_retried", Group: groupRetry, Role: instrumentors.Extra, Symbols: []string{roundTrip}, Rare: onlyFails,
				At: offsets.AtCheckAfterCall("net/http.(*persistConn).shouldRetryRequest", x86asm.RAX)},
			{Program: "h2_round_trip", Group: groupH2XNet, Role: instrumentors.Start, At: offsets.AtEntry(), Symbols: xnetRoundTrip},
			{Program: "h2_round_trip_checked", Group: groupH2XNet, Role: instrumentors.End, Symbols: xnetRoundTrip,
				At: offsets.AtFirst(offsets.AtCheckAfterCall(xnet+"(*ClientConn).RoundTrip", results...),
					offsets.AtCheckAfterCall(xnet+"(*ClientConn).roundTrip", results...))},
			{Program: "h2_round_trip_failed", Group: groupH2XNet, Role: instrumentors.End, Symbols: xnetRoundTrip,
				At: offsets.AtNilReturns(), Rare: onlyFails},
		},
		Layout: layout,
		Metric: &telemetry.Metric{
			Name:        "http.client.request.duration",
			Description: "Duration of HTTP client requests.",
			Bounds:      telemetry.HTTPBounds,
			Active:      "http.client.active_requests",
		},
		Decode: decode,
		Folded: instrumentors.FoldedHTTP,
		Active: 3, // http.request.method, server.address, server.port
	})
}

// The bounds below are those of probe.bpf.c.
const (
	scratchMax   = 336
	errorTextMax = 64
)

func layout(b *offsets.Binary, p *instrumentors.Plan) (any, []offsets.Field, error) {
	l := &clientLayout{}
	if deferred, ok := p.Site("round_trip_deferred"); ok {
		l.ReturnsFrom = uint64(deferred.Caller.Entry - deferred.Addr)
		l.ReturnsSize = deferred.Caller.Size
		l.ResultAt, l.ErrorAt = deferred.Results[0], deferred.Results[1]
		l.FrameSpan = max(l.ResultAt+8, l.ErrorAt+16)
		if deferred.Results[2] != l.ErrorAt+8 || l.FrameSpan > scratchMax {
			return nil, nil, errors.New("the results of " + roundTrip + " lie apart")
		}
	} else if !p.Complete(groupChecked) {
		return nil, nil, errors.New("the end of " + roundTrip + " was not found in this version of net/http")
	}
	if alternate, ok := p.Site("round_trip_alternate"); ok {
		l.Skip = int64(alternate.Global - alternate.Addr)
	}
	fields := instrumentors.GoRuntime(b, (*bpf.SharedGoRuntimeLayout)(unsafe.Pointer(&l.Rt)))
	const redirects = "http.request.resend_count"
	fields = append(fields,
		offsets.Field{Into: &l.Method, Paths: []string{"net/http.Request.Method"}, Required: true},
		offsets.Field{Into: &l.Url, Paths: []string{"net/http.Request.URL"}, Required: true},
		offsets.Field{Into: &l.Context, Paths: []string{"net/http.Request.ctx"}, Loses: "parents that a context leads to"},
		offsets.Field{Into: &l.Response, Paths: []string{"net/http.Request.Response"}, Loses: redirects},
		offsets.Field{Into: &l.UrlScheme, Paths: []string{"net/url.URL.Scheme"}, Required: true},
		offsets.Field{Into: &l.UrlUser, Paths: []string{"net/url.URL.User"}, Loses: "that a URL has a user name"},
		offsets.Field{Into: &l.UrlHost, Paths: []string{"net/url.URL.Host"}, Required: true},
		offsets.Field{Into: &l.UrlPath, Paths: []string{"net/url.URL.Path"}, Required: true},
		offsets.Field{Into: &l.UrlRawPath, Paths: []string{"net/url.URL.RawPath"}, Loses: "how a path was escaped"},
		offsets.Field{Into: &l.UrlRawQuery, Paths: []string{"net/url.URL.RawQuery"}, Loses: "that a URL has a query"},
		offsets.Field{Into: &l.Status, Paths: []string{"net/http.Response.StatusCode"}, Required: true},
		offsets.Field{Into: &l.ProtoMajor, Paths: []string{"net/http.Response.ProtoMajor"}, Loses: "network.protocol.version"},
		offsets.Field{Into: &l.ProtoMinor, Paths: []string{"net/http.Response.ProtoMinor"}, Loses: "network.protocol.version"},
		offsets.Field{Into: &l.Request, Paths: []string{"net/http.Response.Request"}, Loses: redirects},
		offsets.Field{Into: &l.CancelErr, Paths: []string{"context.cancelCtx.err"}, Loses: "why a request was cancelled with an error of the user's own"},
	)
	l.G_span = min(b.Size("runtime.g"), scratchMax)
	l.RequestSpan = min(b.Size("net/http.Request"), scratchMax)
	l.UrlSpan = min(b.Size("net/url.URL"), scratchMax)
	l.ResponseSpan = min(b.Size("net/http.Response"), 64) // what is read lies in front
	if l.G_span == 0 || l.RequestSpan == 0 || l.UrlSpan == 0 || l.ResponseSpan == 0 {
		return nil, nil, errors.New("the sizes of the runtime's and net/http's types were not found")
	}
	return l, fields, nil
}

var errMalformed = errors.New("malformed record")

const headSize = int(unsafe.Offsetof(clientCall{}.Data))

// decode turns a record of probe.bpf.c into a call. The call's strings alias raw.
func decode(raw []byte, exe instrumentors.Image, c *telemetry.Call) error {
	if len(raw) < headSize {
		return errMalformed
	}
	r := (*clientCall)(unsafe.Pointer(unsafe.SliceData(raw)))
	data := raw[headSize:]
	bad := false
	next := func(n uint16) string {
		if int(n) > len(data) {
			bad = true
			return ""
		}
		s := unsafe.String(unsafe.SliceData(data), int(n))
		data = data[n:]
		return telemetry.CleanUTF8(s)
	}
	method, scheme := next(r.MethodLen), next(r.SchemeLen)
	next(uint16(r.Gap))
	host, path, errText := next(r.HostLen), next(r.PathLen), next(r.ErrorTextLen)
	if bad {
		return errMalformed
	}
	if method == "" {
		method = "GET" // net/http's default
	}
	known := instrumentors.KnownMethod(method)
	address, port := instrumentors.SplitHost(host)
	if port == 0 {
		port = 80
		if scheme == "https" {
			port = 443
		}
	}
	status := int(r.Status)
	if status < 100 || status > 999 || clientResult(r.Result) != clientResultRESULT_RESPONSE {
		status = 0
	}
	errorType := ""
	switch flags := bpf.SharedZsFlag(r.Head.Flags); {
	case clientResult(r.Result) == clientResultRESULT_ERROR:
		errorType = errorOf(r, errText, exe)
	case flags&bpf.SharedZsFlagZS_FLAG_GOEXIT != 0:
		errorType = "runtime.Goexit"
	case clientResult(r.Result) == clientResultRESULT_UNWOUND:
		errorType = "panic"
	case status >= 400:
		errorType = instrumentors.StatusText(status)
	}

	c.Kind = telemetry.KindClient
	c.Operation, c.Status = known, status
	if known == instrumentors.OtherMethod {
		c.Operation = "HTTP"
	}
	if status != 404 {
		c.Path = path
	}
	c.Peer = host
	c.Error = errorType != ""
	c.Timeout = status == 504 || status == 408 || strings.HasSuffix(errorType, "timeout")

	// The metric's attributes first; those of active requests before all.
	c.Add(semconv.HTTPRequestMethodKey.String(known))
	c.Add(semconv.ServerAddress(address))
	c.Add(semconv.ServerPort(port))
	if status != 0 {
		c.Add(semconv.HTTPResponseStatusCode(status))
		if v := instrumentors.HTTPVersion(r.ProtoMajor, r.ProtoMinor); v != "" {
			c.Add(semconv.NetworkProtocolVersion(v))
		}
	}
	if errorType != "" {
		c.Add(semconv.ErrorTypeKey.String(errorType))
	}
	c.Dims = len(c.Attrs)

	if known == instrumentors.OtherMethod {
		c.Add(semconv.HTTPRequestMethodOriginal(method))
	}
	if host != "" {
		full := wholeURL(raw[headSize+int(r.MethodLen):], r, path)
		if full == "" {
			full = fullURL(scheme, host, path, r)
		}
		c.Add(semconv.URLFull(full))
	}
	if r.Resends > 0 {
		c.Add(semconv.HTTPRequestResendCount(int(r.Resends)))
	}
	return nil
}

// wholeURL returns the URL where the record has it in one piece as it is to be
// shown; else it is empty. data starts with the URL.
func wholeURL(data []byte, r *clientCall, path string) string {
	if r.Gap != 3 || r.HasUser != 0 || r.HasQuery != 0 || !plain(path) || path != "" && path[0] != '/' {
		return ""
	}
	n := int(r.SchemeLen) + 3 + int(r.HostLen) + int(r.PathLen)
	whole := unsafe.String(unsafe.SliceData(data), n)
	if !strings.HasPrefix(whole[r.SchemeLen:], "://") {
		return ""
	}
	return telemetry.CleanUTF8(whole)
}

// fullURL puts the URL together again, with REDACTED for what was not read.
func fullURL(scheme, host, path string, r *clientCall) string {
	if path != "" && path[0] != '/' {
		path = "/" + path
	}
	if !plain(path) {
		if i := strings.LastIndexByte(path, '%'); r.RawPath != 0 && i >= 0 && i+3 > len(path) {
			path = path[:i] // an escape that the bound has cut
		}
		u := url.URL{Path: path}
		if r.RawPath != 0 { // as it was given, which may be valid or not
			u.RawPath = path
			u.Path, _ = url.PathUnescape(path)
		}
		path = u.EscapedPath()
	}
	var b strings.Builder
	b.Grow(len(scheme) + len(host) + len(path) + 32)
	b.WriteString(scheme)
	b.WriteString("://")
	if r.HasUser != 0 {
		b.WriteString("REDACTED:REDACTED@")
	}
	b.WriteString(host)
	b.WriteString(path)
	if r.HasQuery != 0 {
		b.WriteString("?REDACTED")
	}
	return b.String()
}

// plain tells whether a path needs no escaping.
func plain(path string) bool {
	for i := range len(path) {
		switch c := path[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '/', c == '-', c == '_', c == '.', c == '~':
		default:
			return false
		}
	}
	return true
}

// errorOf names an error by its innermost type, its text or its number.
func errorOf(r *clientCall, text string, exe instrumentors.Image) string {
	typ := exe.TypeName(r.ErrorType)
	if text == "" && r.ErrorText != 0 {
		text = string(exe.Bytes(r.ErrorText, int(min(r.ErrorTextSize, errorTextMax))))
	}
	switch typ {
	case "syscall.Errno":
		number := r.ErrorNumber
		if number == 0 { // the runtime has the small numbers as constants
			if raw := exe.Bytes(r.ErrorAt, 4); len(raw) == 4 {
				number = binary.LittleEndian.Uint32(raw)
			}
		}
		switch unix.Errno(number) {
		case unix.ECONNREFUSED:
			return "connection_refused"
		case unix.ECONNRESET:
			return "connection_reset"
		case unix.ETIMEDOUT:
			return "timeout"
		}
		if name := unix.ErrnoName(unix.Errno(number)); name != "" {
			return name
		}
	case "*net.DNSError":
		return "name_resolution_error"
	case "context.deadlineExceededError", "*context.deadlineExceededError", "*net.timeoutError", "*poll.DeadlineExceededError",
		"http.tlsHandshakeTimeoutError":
		return "timeout"
	case "*tls.CertificateVerificationError":
		return "server_certificate_invalid"
	}
	switch {
	case strings.HasPrefix(strings.TrimPrefix(typ, "*"), "x509."):
		return "server_certificate_invalid"
	case strings.HasPrefix(strings.TrimPrefix(typ, "*"), "tls."):
		return "tls_error"
	}
	// Before Go 1.19 this was no wrapper of the error but its text.
	text = strings.TrimPrefix(text, "net/http: HTTP/1.x transport connection broken: ")
	switch text {
	case "context canceled":
		return "cancelled"
	case "net/http: timeout awaiting response headers", "http2: timeout awaiting response headers":
		return "response_header_timeout"
	case "EOF", "unexpected EOF", "http: server closed idle connection":
		return "unexpected_eof"
	case "net/http: TLS handshake timeout":
		return "timeout"
	case "http: server gave HTTP response to HTTPS client":
		return "tls_error"
	}
	switch {
	case strings.HasPrefix(text, "tls: "):
		return "tls_error"
	case strings.HasPrefix(text, "unsupported protocol scheme"), text == "http2: unsupported scheme":
		return "unsupported_scheme"
	case strings.HasPrefix(text, "malformed "), typ == "textproto.ProtocolError":
		return "malformed_response"
	}
	// net/http's "request canceled", or the cause that the user gave: the context knows more.
	switch clientContextEnd(r.Context) {
	case clientContextEndCONTEXT_CANCELLED:
		return "cancelled"
	case clientContextEndCONTEXT_DEADLINE:
		return "timeout"
	}
	if text == "net/http: request canceled" {
		return "cancelled"
	}
	if typ == "" {
		return semconv.ErrorTypeOther.Value.AsString()
	}
	return typ
}
