// Package nethttpserver traces the server side of Go's net/http: HTTP/1.1, HTTP/2
// over TLS and in clear text, with the bundled implementation, golang.org/x/net
// and net/http/internal/http2.
package nethttpserver

import (
	"errors"
	"strings"
	"unsafe"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/semconv/v1.43.0"
	"golang.org/x/arch/x86/x86asm"

	"github.com/zerospan/zerospan/bpf"
	"github.com/zerospan/zerospan/instrumentors"
	"github.com/zerospan/zerospan/offsets"
	"github.com/zerospan/zerospan/telemetry"
)

const (
	groupMux       = "route pattern"
	groupH2        = "HTTP/2"
	groupH2XNet    = "HTTP/2 of golang.org/x/net"
	groupH2Handler = "HTTP/2 served by golang.org/x/net through net/http"

	internalH2 = "net/http/internal/http2"
	xnetH2     = "golang.org/x/net/http2"

	timeoutHandler = "net/http.(*timeoutHandler).ServeHTTP"
)

func init() {
	instrumentors.Register(&instrumentors.Spec{
		Name:    "nethttp-server",
		Title:   "Go net/http servers",
		Library: "net/http",
		Docs: []string{
			"Go 1.18 to 1.27, amd64; normal, stripped (`-s -w`), position-independent and cgo binaries",
			"HTTP/1.0, HTTP/1.1, HTTP/2 over TLS and in clear text: bundled, `golang.org/x/net/http2`, `net/http/internal/http2`",
			"attributes: `http.request.method`, `http.route` (Go 1.22 on; from `http.ServeMux`, also behind middleware that copies the request), " +
				"`url.path`, `url.scheme`, `http.response.status_code`, `http.request.body.size` where the request declares it, " +
				"`http.response.body.size`, `server.address`, `server.port`, `client.address`, `network.protocol.version`, " +
				"`user_agent.original`, `error.type`; an incoming `traceparent` is the parent",
			"`error.type`: the status from 500 on, `panic`, `http.ErrAbortHandler`, `runtime.Goexit`, `client_disconnected`",
			"`zerospan.http.hijacked`: the handler took the connection; what it answered is not known",
			"`zerospan.route.guess`: where there is no `http.route`, what the path looks like; never in metrics",
			"at most 192 bytes of the request target, 160 of the user agent, 128 of the pattern; query strings are cut off",
			"not seen: requests that net/http itself refuses (400, 417), handlers called without a server",
		},
		Load: loadServer,
		Sites: []instrumentors.Site{
			{Program: "serve_http", Group: instrumentors.Required, Role: instrumentors.Start, At: offsets.AtEntry(),
				Symbols: []string{"net/http.serverHandler.ServeHTTP"}},
			{Program: "finish_request", Group: instrumentors.Required, Role: instrumentors.End, At: offsets.AtEntry(),
				Symbols: []string{"net/http.(*response).finishRequest"}},
			{Program: "conn_served", Group: instrumentors.Required, Role: instrumentors.End, At: offsets.AtEntry(),
				Symbols: []string{"net/http.(*conn).serve.func1"}},
			{Program: "h2_std_end", Group: groupH2, Role: instrumentors.End, At: offsets.AtEntry(),
				Symbols: []string{"net/http.(*http2serverConn).runHandler.func1", internalH2 + ".(*serverConn).runHandler.func1"}},
			{Program: "h2_xnet_end", Group: groupH2XNet, Role: instrumentors.End, At: offsets.AtEntry(),
				Symbols: []string{xnetH2 + ".(*serverConn).runHandler.func1"}},
			// golang.org/x/net calls the handler itself, not net/http's serverHandler.
			{Program: "h2_xnet_start", Group: groupH2XNet, Role: instrumentors.Start, At: offsets.AtEntry(),
				Symbols: []string{xnetH2 + ".(*serverConn).runHandler"}},
			{Program: "h2_std_start", Group: groupH2Handler, Role: instrumentors.Start, At: offsets.AtEntry(),
				Symbols:  []string{internalH2 + ".(*serverConn).runHandler"},
				OnlyWith: []string{xnetH2 + ".(*Server).ServeConn"}},
			{Program: "mux_found", Group: groupMux, Role: instrumentors.Extra, Adaptive: true,
				At:      offsets.AtCheckAfterCall("net/http.(*ServeMux).findHandler", x86asm.RCX, x86asm.RDI),
				Symbols: []string{"net/http.(*ServeMux).ServeHTTP"},
				OnlyWith: []string{"net/http.(*Request).WithContext", "net/http.(*Request).Clone", "net/http.StripPrefix.func1",
					timeoutHandler}},
		},
		Layout: layout,
		Metric: &telemetry.Metric{
			Name:        "http.server.request.duration",
			Description: "Duration of HTTP server requests.",
			Bounds:      telemetry.HTTPBounds,
			Active:      "http.server.active_requests",
		},
		Decode: decode,
		Folded: instrumentors.FoldedHTTP,
		Active: 2, // http.request.method, url.scheme
	})
}

func layout(b *offsets.Binary, p *instrumentors.Plan) (any, []offsets.Field, error) {
	l := &serverLayout{}
	fields := instrumentors.GoRuntime(b, (*bpf.SharedGoRuntimeLayout)(unsafe.Pointer(&l.Rt)))
	fields = append(fields, instrumentors.GoStringsMap(b, (*bpf.SharedGoMapLayout)(unsafe.Pointer(&l.Header)), "net/http.Request.Header")...)
	request := func(r *requestLayout, typ string, pattern bool) {
		fields = append(fields,
			offsets.Field{Into: &r.Method, Paths: []string{typ + ".Method"}, Required: true},
			offsets.Field{Into: &r.RequestUri, Paths: []string{typ + ".RequestURI"}, Loses: "url.path"},
			offsets.Field{Into: &r.ProtoMajor, Paths: []string{typ + ".ProtoMajor"}, Required: true},
			offsets.Field{Into: &r.ProtoMinor, Paths: []string{typ + ".ProtoMinor"}, Loses: "network.protocol.version"},
			offsets.Field{Into: &r.Header, Paths: []string{typ + ".Header"}, Loses: "traceparent and user-agent"},
			offsets.Field{Into: &r.ContentLength, Paths: []string{typ + ".ContentLength"}, Loses: "http.request.body.size"},
			offsets.Field{Into: &r.Host, Paths: []string{typ + ".Host"}, Loses: "server.address and server.port"},
			offsets.Field{Into: &r.RemoteAddr, Paths: []string{typ + ".RemoteAddr"}, Loses: "client.address"},
			offsets.Field{Into: &r.Tls, Paths: []string{typ + ".TLS"}, Loses: "https is taken for http"},
		)
		r.Pattern, r.Context = offsets.Absent, offsets.Absent
		if pattern {
			fields = append(fields, offsets.Field{Into: &r.Context, Paths: []string{typ + ".ctx"}, Loses: "the parents of calls that a context leads to"})
			fields = append(fields, offsets.Field{Into: &r.Pattern, Paths: []string{typ + ".Pattern"}, Loses: "http.route (Go 1.23 on)"})
		}
		r.Span = min(b.Size(typ), requestMax)
	}
	request((*requestLayout)(unsafe.Pointer(&l.Request)), "net/http.Request", true)
	fields = append(fields,
		offsets.Field{Into: &l.ResponseStatus, Paths: []string{"net/http.response.status"}, Required: true},
		offsets.Field{Into: &l.ResponseWritten, Paths: []string{"net/http.response.written"}, Loses: "http.response.body.size"},
		offsets.Field{Into: &l.ResponseWroteHeader, Paths: []string{"net/http.response.wroteHeader"}, Loses: "the status of calls that panic"},
		offsets.Field{Into: &l.ResponseClientGone, Loses: "clients that went away",
			Paths: []string{"net/http.response.closeNotifyTriggered", "net/http.response.didCloseNotify"}},
	)
	if b.Mentions(timeoutHandler) {
		l.HandlersOnChildren = 1
	}
	l.ResponseSpan = min(b.Size("net/http.response"), responseMax)
	h2 := func(h *h2Layout, group string, prefixes ...string) {
		h.Ended = 0
		if !p.Complete(group) {
			return
		}
		h.Ended = 1
		paths := func(suffix string) (out []string) {
			for _, p := range prefixes {
				out = append(out, p+suffix)
			}
			return out
		}
		const state = "responseWriterState."
		fields = append(fields,
			offsets.Field{Into: &h.WriterState, Paths: paths("responseWriter.rws"), Required: true},
			offsets.Field{Into: &h.Status, Paths: paths(state + "status"), Required: true},
			offsets.Field{Into: &h.WroteHeader, Paths: paths(state + "wroteHeader"), Loses: "the status of calls that panic"},
			offsets.Field{Into: &h.WroteBytes, Paths: paths(state + "wroteBytes"), Loses: "http.response.body.size"},
			offsets.Field{Into: &h.Stream, Paths: paths(state + "stream"), Loses: "streams that the client reset"},
			offsets.Field{Into: &h.StreamState, Paths: paths("stream.state"), Loses: "streams that the client reset"},
		)
	}
	h2((*h2Layout)(unsafe.Pointer(&l.H2Std)), groupH2, "net/http.http2", internalH2+".")
	h2((*h2Layout)(unsafe.Pointer(&l.H2Xnet)), groupH2XNet, xnetH2+".")
	if p.Complete(groupH2Handler) && b.Mentions(xnetH2+".(*Server).ServeConn") {
		request((*requestLayout)(unsafe.Pointer(&l.H2Request)), internalH2+".ServerRequest", false)
	}
	return l, fields, nil
}

// requestMax is REQUEST_MAX of probe.bpf.c: how much of a request is read at
// once. net/http.Request has 248 to 272 bytes from Go 1.18 to 1.27.
const requestMax = 320

// responseMax is RESPONSE_MAX of probe.bpf.c.
const responseMax = 280

// The layouts below are those of probe.bpf.c as bpf2go nests them.
type (
	requestLayout = serverRequestLayout
	h2Layout      = serverH2Layout
)

var errMalformed = errors.New("malformed record")

const headSize = int(unsafe.Offsetof(serverCall{}.Data))

// decode turns a record of probe.bpf.c into a call. The call's strings alias raw.
func decode(raw []byte, _ instrumentors.Image, c *telemetry.Call) error {
	if len(raw) < headSize {
		return errMalformed
	}
	r := (*serverCall)(unsafe.Pointer(unsafe.SliceData(raw)))
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
	remote, method := next(r.RemoteLen), next(r.MethodLen)
	next(uint16(r.Gap))
	path, host := pathOf(next(r.TargetLen)), next(r.HostLen)
	userAgent, pattern, panicked := next(r.UserAgentLen), next(r.PatternLen), next(r.PanicLen)
	if bad {
		return errMalformed
	}

	scheme := "http"
	if r.Tls != 0 {
		scheme = "https"
	}
	known := instrumentors.KnownMethod(method)
	route := routeOf(pattern)
	if r.PatternOfChild != 0 && !routeMatches(route, path) {
		route = ""
	}
	status := int(r.Status)
	hijacked := serverOutcome(r.Outcome) == serverOutcomeOUTCOME_HIJACKED
	switch {
	case serverOutcome(r.Outcome) == serverOutcomeOUTCOME_OPEN:
		status = 0
	case r.WroteHeader == 0 && (hijacked || serverOutcome(r.Outcome) == serverOutcomeOUTCOME_UNWOUND):
		status = 0 // no response was written through net/http
	case status == 0:
		status = 200 // what net/http sends for a handler that sets none
	}
	if status != 0 && (status < 100 || status > 999) {
		status = 0
	}

	errorType := ""
	flags := bpf.SharedZsFlag(r.Head.Flags)
	switch {
	case flags&bpf.SharedZsFlagZS_FLAG_GOEXIT != 0:
		errorType = "runtime.Goexit"
	case flags&bpf.SharedZsFlagZS_FLAG_PANIC != 0 && panicked == "net/http: abort Handler":
		errorType = "http.ErrAbortHandler"
	case flags&bpf.SharedZsFlagZS_FLAG_PANIC != 0:
		errorType = "panic"
	case serverOutcome(r.Outcome) == serverOutcomeOUTCOME_CLIENT_GONE:
		errorType = "client_disconnected"
	case status >= 500:
		errorType = instrumentors.StatusText(status)
	}

	c.Kind = telemetry.KindServer
	c.Operation, c.Route, c.Status = known, route, status
	if known == instrumentors.OtherMethod {
		c.Operation = "HTTP"
	}
	if route == "" && status != 404 {
		c.Path = path
	}
	c.Error = errorType != ""
	c.Timeout = status == 504 || status == 408

	// The metric's attributes first; those of active requests before all.
	c.Add(semconv.HTTPRequestMethodKey.String(known))
	c.Add(semconv.URLScheme(scheme))
	if status != 0 {
		c.Add(semconv.HTTPResponseStatusCode(status))
	}
	if route != "" {
		c.Add(semconv.HTTPRoute(route))
	}
	if v := instrumentors.HTTPVersion(r.ProtoMajor, r.ProtoMinor); v != "" {
		c.Add(semconv.NetworkProtocolVersion(v))
	}
	if errorType != "" {
		c.Add(semconv.ErrorTypeKey.String(errorType))
	}
	c.Dims = len(c.Attrs)

	if known == instrumentors.OtherMethod && method != "" {
		c.Add(semconv.HTTPRequestMethodOriginal(method))
	}
	if path != "" {
		c.Add(semconv.URLPath(path))
	}
	if address, port := instrumentors.SplitHost(host); address != "" {
		c.Add(semconv.ServerAddress(address))
		if port == 0 {
			port = 80
			if r.Tls != 0 {
				port = 443
			}
		}
		c.Add(semconv.ServerPort(port))
	}
	if address, _ := instrumentors.SplitHost(remote); address != "" {
		c.Add(semconv.ClientAddress(address))
	}
	if userAgent != "" {
		c.Add(semconv.UserAgentOriginal(userAgent))
	}
	if r.ContentLength > 0 {
		c.Add(semconv.HTTPRequestBodySize(int(r.ContentLength)))
	}
	if status != 0 && !hijacked && method != "HEAD" && r.Written >= 0 {
		c.Add(semconv.HTTPResponseBodySize(int(r.Written)))
	}
	if hijacked {
		c.Add(attribute.Bool("zerospan.http.hijacked", true))
	}
	return nil
}

// pathOf cuts the path out of a request target (RFC 9112, section 3.2), which is
// "/path?query", "http://host/path?query", "host:port" (CONNECT) or "*".
func pathOf(target string) string {
	if i := strings.IndexAny(target, "?#"); i >= 0 {
		target = target[:i]
	}
	if strings.HasPrefix(target, "/") || target == "*" {
		return target
	}
	if i := strings.Index(target, "://"); i >= 0 {
		target = target[i+3:]
		if i := strings.IndexByte(target, '/'); i >= 0 {
			return target[i:]
		}
		return "/"
	}
	return ""
}

// routeOf strips method and host from a http.ServeMux pattern:
// "GET example.com/items/{id}" gives "/items/{id}".
func routeOf(pattern string) string {
	if i := strings.IndexAny(pattern, " \t"); i >= 0 {
		pattern = strings.TrimLeft(pattern[i:], " \t")
	}
	if i := strings.IndexByte(pattern, '/'); i >= 0 {
		return pattern[i:]
	}
	return ""
}

// routeMatches tells whether a pattern can be that of a path, by its literal head.
func routeMatches(route, path string) bool {
	if i := strings.IndexByte(route, '{'); i >= 0 {
		route = route[:i]
	}
	return strings.HasPrefix(path, route)
}
