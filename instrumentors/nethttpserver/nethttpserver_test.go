package nethttpserver

import (
	"bytes"
	"encoding/binary"
	"reflect"
	"testing"
	"unicode/utf8"

	"github.com/zerospan/zerospan/bpf"
	"github.com/zerospan/zerospan/telemetry"
)

// record builds a raw record as probe.bpf.c lays it out.
func record(t testing.TB, r serverCall, method, target, host, remote, userAgent, pattern, panicked string) []byte {
	t.Helper()
	r.MethodLen, r.TargetLen, r.HostLen = uint16(len(method)), uint16(len(target)), uint16(len(host))
	r.RemoteLen, r.UserAgentLen, r.PatternLen, r.PanicLen = uint16(len(remote)), uint16(len(userAgent)), uint16(len(pattern)), uint16(len(panicked))
	var b bytes.Buffer
	if err := binary.Write(&b, binary.LittleEndian, &r); err != nil {
		t.Fatal(err)
	}
	raw := b.Bytes()[:headSize]
	gap := bytes.Repeat([]byte{' '}, int(r.Gap))
	for _, s := range []string{remote, method, string(gap), target, host, userAgent, pattern, panicked} {
		raw = append(raw, s...)
	}
	return raw
}

func attrs(c *telemetry.Call) map[string]any {
	m := map[string]any{}
	for _, kv := range c.Attrs {
		m[string(kv.Key)] = kv.Value.AsInterface()
	}
	return m
}

func TestDecode(t *testing.T) {
	returned := uint8(serverOutcomeOUTCOME_RETURNED)
	unwound := uint8(serverOutcomeOUTCOME_UNWOUND)
	withFlags := func(f bpf.SharedZsFlag, r serverCall) serverCall {
		r.Head.Flags = uint16(f)
		return r
	}
	for _, c := range []struct {
		name string
		raw  []byte
		want map[string]any
		op   string
		err  bool
	}{
		{
			name: "all fields",
			raw: record(t, serverCall{Outcome: returned, Status: 201, WroteHeader: 1, ProtoMajor: 1, ProtoMinor: 1, Gap: 1, ContentLength: 7, Written: 9},
				"POST", "/items/1?password=x", "shop.example.com:8443", "[2001:db8::1]:555", "curl/8", "POST shop.example.com/items/{id}", ""),
			op: "POST",
			want: map[string]any{
				"http.request.method": "POST", "url.scheme": "http", "http.response.status_code": int64(201), "http.route": "/items/{id}",
				"network.protocol.version": "1.1", "url.path": "/items/1", "server.address": "shop.example.com", "server.port": int64(8443),
				"client.address": "2001:db8::1", "user_agent.original": "curl/8", "http.request.body.size": int64(7), "http.response.body.size": int64(9),
			},
		},
		{
			name: "implicit 200 over HTTP/2 and TLS",
			raw:  record(t, serverCall{Outcome: returned, ProtoMajor: 2, Tls: 1}, "GET", "/", "localhost", "127.0.0.1:1", "", "", ""),
			op:   "GET",
			want: map[string]any{
				"http.request.method": "GET", "url.scheme": "https", "http.response.status_code": int64(200), "network.protocol.version": "2",
				"url.path": "/", "server.address": "localhost", "server.port": int64(443), "client.address": "127.0.0.1", "http.response.body.size": int64(0),
			},
		},
		{
			name: "panic before the header",
			raw:  record(t, withFlags(bpf.SharedZsFlagZS_FLAG_PANIC, serverCall{Outcome: unwound, ProtoMajor: 1}), "GET", "/x", "", "", "", "", "boom"),
			op:   "GET", err: true,
			want: map[string]any{"http.request.method": "GET", "url.scheme": "http", "network.protocol.version": "1.0", "url.path": "/x", "error.type": "panic"},
		},
		{
			name: "ErrAbortHandler",
			raw:  record(t, withFlags(bpf.SharedZsFlagZS_FLAG_PANIC, serverCall{Outcome: unwound, ProtoMajor: 1}), "GET", "/x", "", "", "", "", "net/http: abort Handler"),
			op:   "GET", err: true,
			want: map[string]any{"http.request.method": "GET", "url.scheme": "http", "network.protocol.version": "1.0", "url.path": "/x", "error.type": "http.ErrAbortHandler"},
		},
		{
			name: "unknown method and implausible status",
			raw:  record(t, serverCall{Outcome: returned, Status: 65000, WroteHeader: 1}, "\x1b[31m", "*", "", "", "", "", ""),
			op:   "HTTP",
			want: map[string]any{"http.request.method": "_OTHER", "url.scheme": "http", "http.request.method_original": "\x1b[31m", "url.path": "*"},
		},
		{
			name: "a pattern of another request is not believed",
			raw:  record(t, serverCall{Outcome: returned, Status: 200, PatternOfChild: 1}, "GET", "/a", "", "", "", "GET /b/{id}", ""),
			op:   "GET",
			want: map[string]any{"http.request.method": "GET", "url.scheme": "http", "http.response.status_code": int64(200), "url.path": "/a", "http.response.body.size": int64(0)},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			var call telemetry.Call
			if err := decode(c.raw, nil, &call); err != nil {
				t.Fatal(err)
			}
			if got := attrs(&call); !reflect.DeepEqual(got, c.want) {
				t.Errorf("attributes\n got %v\nwant %v", got, c.want)
			}
			if call.Operation != c.op || call.Error != c.err || call.Kind != telemetry.KindServer {
				t.Errorf("operation %q error %v kind %v", call.Operation, call.Error, call.Kind)
			}
		})
	}
}

func TestDecodeRefusesShortRecords(t *testing.T) {
	raw := record(t, serverCall{}, "GET", "/", "", "", "", "", "")
	var call telemetry.Call
	for n := range raw {
		if err := decode(raw[:n], nil, &call); err == nil {
			t.Errorf("%d of %d bytes were taken for a record", n, len(raw))
		}
	}
}

func TestDecodeDoesNotAllocate(t *testing.T) {
	raw := record(t, serverCall{Outcome: 1, Status: 200, ProtoMajor: 1, ProtoMinor: 1}, "GET", "/items/1", "localhost:80", "127.0.0.1:5", "curl", "GET /items/{id}", "")
	var call telemetry.Call
	if n := testing.AllocsPerRun(100, func() {
		call.Reset()
		if decode(raw, nil, &call) != nil {
			t.Fatal("not decoded")
		}
	}); n != 0 {
		t.Errorf("%v allocations a call", n)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(record(f, serverCall{Outcome: 1, Status: 200, Gap: 1}, "GET", "/a?b", "h:1", "[::1]:2", "ua", "GET /a", ""))
	f.Add(record(f, serverCall{Outcome: 2, ContentLength: -1}, "\xff", "http://", ":", "]", "\x00", " ", "p"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		var call telemetry.Call
		if decode(raw, nil, &call) != nil {
			return
		}
		for _, kv := range call.Attrs {
			if !utf8.ValidString(kv.Value.String()) {
				t.Errorf("%s is not UTF-8", kv.Key)
			}
		}
		if call.Dims > len(call.Attrs) {
			t.Error("more dimensions than attributes")
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	raw := record(b, serverCall{Outcome: 1, Status: 200, ProtoMajor: 1, ProtoMinor: 1}, "GET", "/items/1", "localhost:80", "127.0.0.1:5", "curl", "GET /items/{id}", "")
	var call telemetry.Call
	b.ReportAllocs()
	for b.Loop() {
		call.Reset()
		if decode(raw, nil, &call) != nil {
			b.Fatal("not decoded")
		}
	}
}
