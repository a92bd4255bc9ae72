package nethttpclient

import (
	"bytes"
	"encoding/binary"
	"reflect"
	"testing"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/zerospan/zerospan/bpf"
	"github.com/zerospan/zerospan/instrumentors"
	"github.com/zerospan/zerospan/telemetry"
)

// file is an executable as the decoder sees it.
type file struct {
	types map[uint64]string
	bytes map[uint64]string
}

func (f file) TypeName(addr uint64) string { return f.types[addr] }

func (f file) Bytes(addr uint64, n int) []byte {
	b := []byte(f.bytes[addr])
	return b[:min(n, len(b))]
}

// record builds a raw record as probe.bpf.c lays it out; with a gap, the URL is in one piece.
func record(t testing.TB, r clientCall, method, scheme, host, path, errText string) []byte {
	t.Helper()
	r.MethodLen, r.SchemeLen, r.HostLen = uint16(len(method)), uint16(len(scheme)), uint16(len(host))
	r.PathLen, r.ErrorTextLen = uint16(len(path)), uint16(len(errText))
	var b bytes.Buffer
	if err := binary.Write(&b, binary.LittleEndian, &r); err != nil {
		t.Fatal(err)
	}
	raw := b.Bytes()[:headSize]
	for _, s := range []string{method, scheme, "://"[:min(int(r.Gap), 3)], host, path, errText} {
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

var exe instrumentors.Image = file{
	types: map[uint64]string{1: "syscall.Errno", 2: "*net.DNSError", 3: "*errors.errorString", 4: "*shop.Error", 5: "x509.UnknownAuthorityError"},
	bytes: map[uint64]string{0x77: string(binary.LittleEndian.AppendUint32(nil, uint32(unix.ECONNRESET))), 0x88: "unexpected EOF and what follows in the file"},
}

func TestDecode(t *testing.T) {
	response, failed := uint8(clientResultRESULT_RESPONSE), uint8(clientResultRESULT_ERROR)
	base := func(more map[string]any) map[string]any {
		m := map[string]any{"http.request.method": "GET", "server.address": "shop.example.com", "server.port": int64(80), "url.full": "http://shop.example.com/a"}
		for k, v := range more {
			m[k] = v
		}
		return m
	}
	get := func(r clientCall, text string) []byte {
		r.Gap = 3
		return record(t, r, "", "http", "shop.example.com", "/a", text)
	}
	unwound := clientCall{Result: uint8(clientResultRESULT_UNWOUND)}
	unwound.Head.Flags = uint16(bpf.SharedZsFlagZS_FLAG_PANIC)
	for _, c := range []struct {
		name string
		raw  []byte
		want map[string]any
	}{
		{"all fields",
			record(t, clientCall{Result: response, Status: 201, ProtoMajor: 2, Gap: 3, Resends: 2, HasQuery: 1, HasUser: 1}, "POST", "https", "[::1]:8443", "/a b", ""),
			map[string]any{"http.request.method": "POST", "url.full": "https://REDACTED:REDACTED@[::1]:8443/a%20b?REDACTED", "http.response.status_code": int64(201),
				"server.address": "::1", "server.port": int64(8443), "network.protocol.version": "2", "http.request.resend_count": int64(2)}},
		{"client error", get(clientCall{Result: response, Status: 404, ProtoMajor: 1, ProtoMinor: 1}, ""),
			base(map[string]any{"http.response.status_code": int64(404), "error.type": "404", "network.protocol.version": "1.1"})},
		{"in pieces", record(t, clientCall{Result: response, Status: 200}, "GET", "http", "shop.example.com", "/a", ""), base(map[string]any{"http.response.status_code": int64(200)})},
		{"errno", get(clientCall{Result: failed, ErrorType: 1, ErrorNumber: uint32(unix.ECONNREFUSED)}, ""), base(map[string]any{"error.type": "connection_refused"})},
		{"errno without a name of its own", get(clientCall{Result: failed, ErrorType: 1, ErrorNumber: uint32(unix.EADDRNOTAVAIL)}, ""), base(map[string]any{"error.type": "EADDRNOTAVAIL"})},
		{"errno that only the file has", get(clientCall{Result: failed, ErrorType: 1, ErrorAt: 0x77}, ""), base(map[string]any{"error.type": "connection_reset"})},
		{"name", get(clientCall{Result: failed, ErrorType: 2}, ""), base(map[string]any{"error.type": "name_resolution_error"})},
		{"certificate", get(clientCall{Result: failed, ErrorType: 5}, ""), base(map[string]any{"error.type": "server_certificate_invalid"})},
		{"text", get(clientCall{Result: failed, ErrorType: 3}, "context canceled"), base(map[string]any{"error.type": "cancelled"})},
		{"text that only the file has", get(clientCall{Result: failed, ErrorType: 3, ErrorText: 0x88, ErrorTextSize: 14}, ""), base(map[string]any{"error.type": "unexpected_eof"})},
		{"a cause of the user's", get(clientCall{Result: failed, ErrorType: 4, Context: uint8(clientContextEndCONTEXT_DEADLINE)}, ""), base(map[string]any{"error.type": "timeout"})},
		{"an error of the user's", get(clientCall{Result: failed, ErrorType: 4}, ""), base(map[string]any{"error.type": "*shop.Error"})},
		{"an unknown error", get(clientCall{Result: failed, ErrorType: 99}, ""), base(map[string]any{"error.type": "_OTHER"})},
		{"panic", get(unwound, ""), base(map[string]any{"error.type": "panic"})},
	} {
		t.Run(c.name, func(t *testing.T) {
			var call telemetry.Call
			if err := decode(c.raw, exe, &call); err != nil {
				t.Fatal(err)
			}
			if got := attrs(&call); !reflect.DeepEqual(got, c.want) {
				t.Errorf("attributes\n got %v\nwant %v", got, c.want)
			}
			_, wantErr := c.want["error.type"]
			if call.Error != wantErr || call.Kind != telemetry.KindClient {
				t.Errorf("error %v kind %v", call.Error, call.Kind)
			}
		})
	}
}

func TestDecodeRefusesShortRecords(t *testing.T) {
	raw := record(t, clientCall{Gap: 3}, "GET", "http", "h", "/", "")
	var call telemetry.Call
	for n := range raw {
		if err := decode(raw[:n], exe, &call); err == nil {
			t.Errorf("%d of %d bytes were taken for a record", n, len(raw))
		}
	}
}

func TestDecodeDoesNotAllocate(t *testing.T) {
	raw := record(t, clientCall{Result: 1, Status: 200, ProtoMajor: 1, ProtoMinor: 1, Gap: 3}, "GET", "http", "localhost:80", "/items/1", "")
	var call telemetry.Call
	if n := testing.AllocsPerRun(100, func() {
		call.Reset()
		if decode(raw, exe, &call) != nil {
			t.Fatal("not decoded")
		}
	}); n != 0 {
		t.Errorf("%v allocations a call", n)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(record(f, clientCall{Result: 1, Status: 200, Gap: 3}, "GET", "http", "h:1", "/a", ""))
	f.Add(record(f, clientCall{Result: 2, RawPath: 1, HasQuery: 1, Gap: 3}, "\xff", "\x00", "]:99999", "/%zz\xff", "EOF"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		var call telemetry.Call
		if decode(raw, exe, &call) != nil {
			return
		}
		for _, kv := range call.Attrs {
			if !utf8.ValidString(kv.Value.String()) {
				t.Errorf("%s is not UTF-8: %q", kv.Key, kv.Value.String())
			}
		}
		if call.Dims > len(call.Attrs) {
			t.Error("more dimensions than attributes")
		}
	})
}
