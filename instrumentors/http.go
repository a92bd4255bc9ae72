package instrumentors

import (
	"strconv"
	"strings"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/semconv/v1.43.0"

	"github.com/zerospan/zerospan/telemetry"
)

// What instrumentors of HTTP have in common.

// OtherMethod stands for a method that the semantic conventions do not know.
const OtherMethod = "_OTHER"

// KnownMethod returns the method if the semantic conventions know it, as a constant.
func KnownMethod(m string) string {
	switch m {
	case "GET":
		return "GET"
	case "POST":
		return "POST"
	case "PUT":
		return "PUT"
	case "DELETE":
		return "DELETE"
	case "HEAD":
		return "HEAD"
	case "PATCH":
		return "PATCH"
	case "OPTIONS":
		return "OPTIONS"
	case "CONNECT":
		return "CONNECT"
	case "TRACE":
		return "TRACE"
	case "QUERY":
		return "QUERY"
	}
	return OtherMethod
}

// HTTPVersion returns network.protocol.version; empty for what is none.
func HTTPVersion(major, minor uint8) string {
	switch {
	case major == 1 && minor == 1:
		return "1.1"
	case major == 1 && minor == 0:
		return "1.0"
	case major == 2:
		return "2"
	}
	return ""
}

// statusTexts are the error types of 400 to 599, made once.
var statusTexts = func() (t [200]string) {
	for i := range t {
		t[i] = strconv.Itoa(400 + i)
	}
	return t
}()

// StatusText returns the error.type of a status.
func StatusText(status int) string {
	if status >= 400 && status < 600 {
		return statusTexts[status-400]
	}
	return strconv.Itoa(status)
}

// SplitHost parts "host:port", "[::1]:80", "host" without allocating.
func SplitHost(s string) (host string, port int) {
	i := strings.LastIndexByte(s, ':')
	if i < 0 || strings.IndexByte(s[i:], ']') >= 0 {
		return strings.Trim(s, "[]"), 0
	}
	if i != strings.IndexByte(s, ':') && s[0] != '[' {
		return s, 0 // a bare IPv6 address
	}
	for _, c := range []byte(s[i+1:]) {
		if c < '0' || c > '9' || port > 65535 {
			return strings.Trim(s[:i], "[]"), 0
		}
		port = port*10 + int(c-'0')
	}
	if port > 65535 {
		port = 0
	}
	return strings.Trim(s[:i], "[]"), port
}

// FoldedHTTP returns the metric attributes of HTTP calls of which only the class of
// the status is known.
func FoldedHTTP(class uint8, failed bool) []telemetry.Attribute {
	attrs := []telemetry.Attribute{attribute.String("zerospan.http.response.status_class", string('0'+rune(class%10))+"xx")}
	if failed {
		attrs = append(attrs, semconv.ErrorTypeOther)
	}
	return attrs
}
