package example

import (
	"bytes"
	"encoding/binary"
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/zerospan/zerospan/telemetry"
)

// image is an executable that has one type.
type image struct{}

func (image) Bytes(uint64, int) []byte { return nil }
func (image) TypeName(addr uint64) string {
	if addr == 0x1000 {
		return "*exec.Error"
	}
	return ""
}

// record builds a raw record as probe.bpf.c lays it out.
func record(t testing.TB, r execCall, path string) []byte {
	t.Helper()
	r.PathLen = uint16(len(path))
	var b bytes.Buffer
	if err := binary.Write(&b, binary.LittleEndian, &r); err != nil {
		t.Fatal(err)
	}
	return append(b.Bytes()[:headSize], path...)
}

func TestDecode(t *testing.T) {
	const failed, exited = uint8(execResultRESULT_FAILED), uint8(execResultRESULT_EXITED)
	for _, c := range []struct {
		name string
		raw  []byte
		op   string
		err  bool
		dims int
		want map[string]any
	}{
		{"success", record(t, execCall{Result: exited}, "/usr/bin/true"), "true", false, 1,
			map[string]any{"process.executable.name": "true", "process.exit.code": int64(0)}},
		{"exit code", record(t, execCall{Result: exited, Status: 3 << 8}, "sh"), "sh", true, 2,
			map[string]any{"process.executable.name": "sh", "process.exit.code": int64(3), "error.type": "3"}},
		{"signal with a core", record(t, execCall{Result: exited, Status: 11 | 0x80}, "/b/c"), "c", true, 2,
			map[string]any{"process.executable.name": "c", "error.type": "SIGSEGV"}},
		{"signal without a name", record(t, execCall{Result: exited, Status: 40}, "/b/c"), "c", true, 2,
			map[string]any{"process.executable.name": "c", "error.type": "_OTHER"}},
		{"not started", record(t, execCall{Result: failed, ErrorType: 0x1000}, "nothing"), "nothing", true, 2,
			map[string]any{"process.executable.name": "nothing", "error.type": "*exec.Error"}},
		{"not started, and the error's type is not known", record(t, execCall{Result: failed, ErrorType: 0x2000}, "nothing"), "nothing", true, 2,
			map[string]any{"process.executable.name": "nothing", "error.type": "_OTHER"}},
		{"open", record(t, execCall{}, "/usr/bin/sleep"), "sleep", false, 1,
			map[string]any{"process.executable.name": "sleep"}},
		{"the path is not known", record(t, execCall{Result: exited}, ""), "exec", false, 0,
			map[string]any{"process.exit.code": int64(0)}},
		{"not UTF-8", record(t, execCall{Result: exited}, "\xbf\xbf/a\xff"), "a\uFFFD", false, 1,
			map[string]any{"process.executable.name": "a\uFFFD", "process.exit.code": int64(0)}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var call telemetry.Call
			if err := decode(c.raw, image{}, &call); err != nil {
				t.Fatal(err)
			}
			got := map[string]any{}
			for _, kv := range call.Attrs {
				got[string(kv.Key)] = kv.Value.AsInterface()
			}
			if !reflect.DeepEqual(got, c.want) {
				t.Errorf("attributes\n got %v\nwant %v", got, c.want)
			}
			if call.Kind != telemetry.KindClient || call.Operation != c.op || call.Error != c.err || call.Dims != c.dims {
				t.Errorf("kind %v operation %q error %v dimensions %d", call.Kind, call.Operation, call.Error, call.Dims)
			}
		})
	}
}

func TestDecodeRefusesShortRecords(t *testing.T) {
	raw := record(t, execCall{Result: uint8(execResultRESULT_EXITED)}, "/usr/bin/true")
	var call telemetry.Call
	for n := range raw {
		if decode(raw[:n], image{}, &call) == nil {
			t.Errorf("%d of %d bytes were taken for a record", n, len(raw))
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(record(f, execCall{Result: uint8(execResultRESULT_EXITED), Status: 9}, "/bin/sh"))
	f.Add(record(f, execCall{Result: uint8(execResultRESULT_FAILED), ErrorType: 1}, "\xff"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		var call telemetry.Call
		if decode(raw, image{}, &call) != nil {
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

// TestExcerpts checks that what the document quotes is what the files say.
func TestExcerpts(t *testing.T) {
	document, err := os.ReadFile("../adding-an-instrumentor.md")
	if err != nil {
		t.Fatal(err)
	}
	var files string
	for _, name := range []string{"probe.bpf.c", "gen.go", "example.go", "example_test.go"} {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		files += string(text)
	}
	excerpts := regexp.MustCompile("(?ms)^```(?:c|go)\n(.*?)^```$").FindAllStringSubmatch(string(document), -1)
	if len(excerpts) < 4 {
		t.Errorf("only %d excerpts were found in the document", len(excerpts))
	}
	for _, e := range excerpts {
		if !strings.Contains(files, e[1]) {
			t.Errorf("no file of the example contains:\n%s", e[1])
		}
	}
}
