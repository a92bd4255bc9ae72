package live

import (
	"strconv"
	"testing"
	"time"
)

// upgrade speaks HTTP/1.1 and has the connection switched to HTTP/2 (RFC 7540, section 3.2).
func upgrade(t *testing.T, s *session) {
	exchange(t, s.plain, "hello", "GET /hello HTTP/1.1\r\nHost: "+s.plain+"\r\nUser-Agent: outcome/"+s.name+
		"\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n",
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"+"\x00\x00\x00\x04\x00\x00\x00\x00\x00")
}

// TestXNet: HTTP/2 by golang.org/x/net, which calls handlers without net/http's
// own server, or through it; one call a request in both cases.
func TestXNet(t *testing.T) {
	list := []outcome{
		{name: "h1", paths: "/hello", status: 200, written: 5, send: get("/hello")},
		{name: "h2c", paths: "/hello", version: "2", status: 200, written: 5, send: h2cGet("/hello")},
		{name: "h2c-503", paths: "/status/503", version: "2", status: 503, errType: "503", send: h2cGet("/status/503")},
		{name: "h2c-panic", paths: "/panic", version: "2", errType: "panic", written: -1, send: h2cGet("/panic")},
		// The request came over HTTP/1.1; only the response is HTTP/2.
		{name: "h2c-upgrade", paths: "/hello", status: 200, written: 5, send: upgrade},
		{name: "h2", paths: "/hello", version: "2", scheme: "https", status: 200, written: 5, send: get2("/hello")},
		{name: "h2-panic", paths: "/panic", version: "2", scheme: "https", errType: "panic", written: -1, send: get2("/panic")},
	}
	for _, b := range []build{
		{goVersion: "1.20.14", dir: "xnet", mode: "normal", modfile: "x017.mod"},
		{goVersion: "1.24.9", dir: "xnet", mode: "stripped", modfile: "x048.mod"},
		{goVersion: "1.26.5", dir: "xnet", mode: "pie", modfile: "x060.mod"},
		{goVersion: "1.27.2", dir: "xnet", mode: "normal", modfile: "x060.mod"},
	} {
		t.Run(b.String(), func(t *testing.T) {
			p := start(t, b.make(t))
			z := trace(t, "--pid", strconv.Itoa(p.Process.Pid), "--print", "json")
			s := newSession(t, p.words[1], p.words[2])
			for _, o := range list {
				s.name = o.name
				o.send(t, s)
			}
			s.h1.CloseIdleConnections()
			s.h2.CloseIdleConnections()
			s.h2c.CloseIdleConnections()
			z.waitCalls(len(list))
			checkCalls(t, z.stop(), list, func(o outcome, c call) {
				// Routes are net/http's matter; how they are found there is tested there.
				delete(c.Attributes, "http.route")
				o.check(t, c, "1.18")
			})
		})
	}
}

// TestXNetClients: golang.org/x/net's http2.Transport by itself and within
// net/http's, where it must not be counted twice.
func TestXNetClients(t *testing.T) {
	operations := func(p *peers, _ string) []sent {
		late := []wanted{{errType: "timeout", minimum: 25 * time.Millisecond}} // its 50 ms begin before the call
		refused := "https://127.0.0.1:1/refused"
		var list []sent
		for _, op := range []string{"alone", "configured"} {
			list = append(list,
				sent{op, p.h2.URL + "/ok/1", ok(wanted{version: "2"})},
				sent{op, p.h2.URL + "/ok/2", ok(wanted{version: "2"})},
				sent{op, p.h2.URL + "/status/503", []wanted{{status: 503, errType: "503", version: "2"}}},
				sent{op + "-deadline", p.h2.URL + "/hang/", late},
				sent{op, refused, failed("connection_refused")},
			)
		}
		return append(list,
			sent{"configured", p.secure.URL + "/ok/h1", ok(wanted{})},
			sent{"cleartext", "http://127.0.0.1:1/x", failed("connection_refused")},
		)
	}
	for _, b := range []build{
		{goVersion: "1.20.14", dir: "xnet/client", mode: "stripped", modfile: "../x017.mod"},
		{goVersion: "1.24.9", dir: "xnet/client", mode: "pie", modfile: "../x048.mod"},
		{goVersion: "1.26.5", dir: "xnet/client", mode: "normal", modfile: "../x060.mod"},
		{goVersion: "1.27.2", dir: "xnet/client", mode: "stripped", modfile: "../x060.mod"},
	} {
		t.Run(b.String(), func(t *testing.T) { checkClient(t, b, operations) })
	}
}
