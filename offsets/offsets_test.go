package offsets

import (
	"debug/dwarf"
	"debug/elf"
	"golang.org/x/arch/x86/x86asm"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// self opens the test binary: a Go program with symbols and DWARF.
func self(t testing.TB) *Binary {
	t.Helper()
	return open(t, "/proc/self/exe")
}

func open(t testing.TB, path string) *Binary {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := Open(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

const program = `package main

import (
	"fmt"
	"net/http"
)

func main() { fmt.Println(http.ListenAndServe("", nil)) }
`

// compile builds a small HTTP server; the same code for every mode.
func compile(t testing.TB, args ...string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"main.go": program, "go.mod": "module x\n\ngo 1.22\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("go", append(append([]string{"build", "-o", "x"}, args...), ".")...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return filepath.Join(dir, "x")
}

// TestFieldsEqualDWARF compares every field of every struct that both know.
func TestFieldsEqualDWARF(t *testing.T) {
	path := compile(t)
	b := open(t, path)
	ix, err := b.typeDescriptors()
	if err != nil {
		t.Fatal(err)
	}
	f, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	d, err := f.DWARF()
	if err != nil {
		t.Fatal(err)
	}
	equal := 0
	r := d.Reader()
	for {
		e, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		if e == nil {
			break
		}
		if e.Tag == dwarf.TagSubprogram {
			r.SkipChildren()
		}
		if e.Tag != dwarf.TagStructType {
			continue
		}
		name, _ := e.Val(dwarf.AttrName).(string)
		at, ok := ix.structs[name]
		if !ok {
			continue
		}
		want := map[string]int64{}
		typ, err := d.Type(e.Offset)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range typ.(*dwarf.StructType).Field {
			want[f.Name] = f.ByteOffset
		}
		for _, f := range b.fields(ix, at) {
			if f.name == "_" {
				continue
			}
			if off, ok := want[f.name]; ok && off != int64(f.offset) {
				t.Errorf("%s.%s is at %d, DWARF says %d", name, f.name, f.offset, off)
			} else if ok {
				equal++
			}
		}
	}
	if equal < 2000 {
		t.Errorf("only %d fields were compared", equal)
	}
}

// TestModes: the answers do not depend on how the binary was linked.
func TestModes(t *testing.T) {
	plain := open(t, compile(t))
	names := []string{"net/http.serverHandler.ServeHTTP", "net/http.(*response).finishRequest", "net/http.(*conn).serve.func1", "no.such.function"}
	for _, mode := range [][]string{{"-ldflags", "-s -w"}, {"-buildmode=pie"}, {"-buildmode=pie", "-ldflags", "-s -w"}} {
		t.Run(strings.Join(mode, " "), func(t *testing.T) {
			b := open(t, compile(t, mode...))
			found, err := b.Functions(names)
			if err != nil {
				t.Fatal(err)
			}
			if len(found) != 3 {
				t.Errorf("%d functions of 3: %v", len(found), found)
			}
			for name, f := range found {
				s, err := b.Sites(f, AtEntry())
				if err != nil {
					t.Errorf("%s: %v", name, err)
				} else if !s[0].Emulated {
					t.Errorf("%s: site %q is single-stepped", name, s[0].Text)
				}
			}
			for _, path := range []string{"net/http.Request.Method", "net/http.Request.Header", "net/http.response.status", "runtime.g.goid", "internal/runtime/maps.table.groups.lengthMask"} {
				var got, want uint32
				r, w := b.Resolve(Field{Into: &got, Paths: []string{path}}), plain.Resolve(Field{Into: &want, Paths: []string{path}})
				if r.Err != nil || w.Err != nil || got != want || r.Rung != RungTypes {
					t.Errorf("%s: %d (%v), want %d (%v)", path, got, r.Err, want, w.Err)
				}
			}
			if g, err := b.MapGroup("net/http.Request.Header"); err != nil || g.Keys == 0 || g.Size > 400 {
				t.Errorf("map group %+v: %v", g, err)
			}
		})
	}
}

func TestDWARFAnswers(t *testing.T) {
	b := open(t, compile(t))
	for _, path := range []string{"net/http.Request.Method", "net/http.response.status", "runtime.g.goid", "internal/runtime/maps.table.groups.lengthMask"} {
		got, err := b.dwarfOffset(path)
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		if want, err := b.typeOffset(path); err != nil || got != want {
			t.Errorf("%s: DWARF says %d, the descriptors %d (%v)", path, got, want, err)
		}
	}
}

func TestTableIsTheLastRung(t *testing.T) {
	b := self(t)
	var off uint32
	r := b.Resolve(Field{Into: &off, Paths: []string{"no/such.Type.field"}, Table: map[string]uint32{"no/such.Type.field": 24}})
	if r.Rung != RungTable || off != 24 {
		t.Errorf("%+v", r)
	}
	r = b.Resolve(Field{Into: &off, Paths: []string{"no/such.Type.field"}})
	if r.Err == nil || off != Absent {
		t.Errorf("%+v: a field that does not exist was found", r)
	}
}

func TestNotGo(t *testing.T) {
	f, err := os.Open("/bin/true")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := Open(f)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if _, err := b.Functions([]string{"main.main"}); err == nil {
		t.Error("functions were found in a C program")
	}
}

// FuzzBinary feeds damaged executables through everything that parses. Its input
// is a list of edits to a real one, so that it gets past the first checks.
func FuzzBinary(f *testing.F) {
	original, err := os.ReadFile(compile(f, "-ldflags", "-s -w"))
	if err != nil {
		f.Fatal(err)
	}
	head, err := elf.NewFile(strings.NewReader(string(original)))
	if err != nil {
		f.Fatal(err)
	}
	spots := []int{0, 64} // where edits count: headers, then the interesting sections
	for _, s := range head.Sections {
		if strings.Contains(s.Name, "go") || s.Name == ".typelink" || s.Name == ".rodata" {
			spots = append(spots, int(s.Offset))
		}
	}
	f.Add([]byte{0, 0, 1, 2})
	f.Add([]byte{3, 8, 0xff, 0xff, 3, 9, 0xff, 0x7f})
	f.Fuzz(func(t *testing.T, edits []byte) {
		data := append([]byte(nil), original...)
		for i := 0; i+4 <= len(edits) && i < 400; i += 4 {
			at := spots[int(edits[i])%len(spots)] + int(edits[i+1]) + int(edits[i+2])<<6
			if at < len(data) {
				data[at] = edits[i+3]
			}
		}
		path := filepath.Join(t.TempDir(), "x")
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
		file, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		b, err := Open(file)
		if err != nil {
			return
		}
		defer b.Close()
		_ = b.Guard(func() error { // an error is fine, a panic that gets here is not
			found, err := b.Functions([]string{"net/http.serverHandler.ServeHTTP", "net/http.(*ServeMux).ServeHTTP"})
			if err != nil {
				return err
			}
			for _, fn := range found {
				for _, at := range []At{AtEntry(), AtCheckAfterCall("net/http.(*ServeMux).findHandler"),
					AtGlobalCheckAfterIndirectCall(x86asm.RBX), AtNilReturns(), AtDeferredClosure()} {
					_, _ = b.Sites(fn, at)
				}
			}
			var off uint32
			b.Resolve(Field{Into: &off, Paths: []string{"net/http.Request.Method"}})
			b.GoidGen()
			b.Embedding("context.valueCtx.Context")
			_, err = b.MapGroup("net/http.Request.Header")
			return err
		})
	})
}

func BenchmarkPlan(b *testing.B) {
	path := compile(b, "-ldflags", "-s -w")
	for b.Loop() {
		f, err := os.Open(path)
		if err != nil {
			b.Fatal(err)
		}
		bin, err := Open(f)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := bin.typeDescriptors(); err != nil {
			b.Fatal(err)
		}
		bin.Close()
		f.Close()
	}
}
