package instrumentors

import (
	"strings"

	"github.com/zerospan/zerospan/bpf"
	"github.com/zerospan/zerospan/offsets"
)

// GoRuntime fills in the addresses of a go_runtime_layout (bpf/go.h) and returns its fields.
func GoRuntime(b *offsets.Binary, l *bpf.SharedGoRuntimeLayout) []offsets.Field {
	const certain = "the parents of calls whose goroutine an HTTP/1 handler started without a context"
	l.Goidgen = uint64(b.GoidGen())
	return []offsets.Field{
		{Into: &l.G_m, Paths: []string{"runtime.g.m"}, Loses: certain},
		{Into: &l.M_p, Paths: []string{"runtime.m.p"}, Loses: certain},
		{Into: &l.P_goidcache, Paths: []string{"runtime.p.goidcache"}, Loses: certain},
		{Into: &l.P_goidcacheend, Paths: []string{"runtime.p.goidcacheend"}, Loses: certain},
		{Into: &l.G_waitreason, Paths: []string{"runtime.g.waitreason"}, Loses: "the parents of calls that only the goroutine's starter leads to"},
		{Into: &l.G_stackHi, Paths: []string{"runtime.g.stack.hi"}, Required: true},
		{Into: &l.G_goid, Paths: []string{"runtime.g.goid"}, Required: true},
		{Into: &l.G_parentGoid, Paths: []string{"runtime.g.parentGoid"}, Loses: "what goroutines that a call starts have to do with it (Go 1.21 on)"},
		{Into: &l.G_panic, Paths: []string{"runtime.g._panic"}, Loses: "panics are taken for normal ends"},
		{Into: &l.PanicGoexit, Paths: []string{"runtime._panic.goexit"}, Loses: "runtime.Goexit is taken for a panic"},
		{Into: &l.PanicArg, Paths: []string{"runtime._panic.arg"}, Loses: "http.ErrAbortHandler is taken for any other panic"},
	}
}

// GoStringsMap returns the fields of a go_map_layout (bpf/go.h) for the map
// that the field at path holds. A map that can't be walked is left out.
func GoStringsMap(b *offsets.Binary, l *bpf.SharedGoMapLayout, path string) []offsets.Field {
	const loses = "traceparent and user-agent"
	g, err := b.MapGroup(path)
	if err != nil {
		l.Kind = uint32(bpf.SharedGoMapKindGO_MAP_NONE)
		return nil
	}
	l.Keys, l.KeyStride, l.Elems, l.ElemStride, l.GroupSize = g.Keys, g.KeyStride, g.Elems, g.ElemStride, g.Size
	if g.Swiss {
		l.Kind = uint32(bpf.SharedGoMapKindGO_MAP_SWISS)
		l.OldGroups = offsets.Absent
		return []offsets.Field{
			{Into: &l.Groups, Paths: []string{"internal/runtime/maps.Map.dirPtr"}, Loses: loses},
			{Into: &l.Count, Paths: []string{"internal/runtime/maps.Map.dirLen"}, Loses: loses},
			{Into: &l.TableGroups, Paths: []string{"internal/runtime/maps.table.groups.data"}, Loses: loses},
			{Into: &l.TableMask, Paths: []string{"internal/runtime/maps.table.groups.lengthMask"}, Loses: loses},
		}
	}
	l.Kind = uint32(bpf.SharedGoMapKindGO_MAP_BUCKETS)
	l.TableGroups, l.TableMask = offsets.Absent, offsets.Absent
	return []offsets.Field{
		{Into: &l.Groups, Paths: []string{"runtime.hmap.buckets"}, Loses: loses},
		{Into: &l.Count, Paths: []string{"runtime.hmap.B"}, Loses: loses},
		{Into: &l.OldGroups, Paths: []string{"runtime.hmap.oldbuckets"}, Loses: loses},
	}
}

// GoType is what programs know of a type that occurs in interface values.
type GoType struct {
	Addrs []offsets.Addr // of its descriptors, as the file has them
	bpf.SharedGoType
}

// wrappers are the errors of the standard library that wrap another, and the
// field that holds it.
var wrappers = []string{
	"net.OpError.Err", "os.SyscallError.Err", "net/url.Error.Err", "fmt.wrapError.err", "crypto/tls.permanentError.err",
	"net/http.nothingWrittenError.error", "net/http.transportReadFromServerError.err",
}

// texts are the errors that are told apart by their text, and the field that holds it.
var texts = []string{
	"errors.errorString.s", "fmt.wrapError.msg", "fmt.fmtError.msg", "net/http.httpError.err", "net/http.timeoutError.err",
	"net/http.http2httpError.msg", "net/http/internal/http2.httpError.msg", "golang.org/x/net/http2.httpError.msg",
}

// GoTypes finds the contexts and errors that a program of bpf/go.h walks through.
func GoTypes(b *offsets.Binary) []GoType {
	types := map[string]GoType{}
	var structs []offsets.Type
	add := func(t offsets.Type, flags bpf.SharedGoTypeFlag) {
		g, ok := types[t.Name]
		if !ok {
			structs = append(structs, t)
			g = GoType{SharedGoType: bpf.SharedGoType{Next: offsets.Absent, Text: offsets.Absent}}
		}
		g.Flags |= uint32(flags)
		if t.Next != offsets.Absent {
			g.Next = t.Next
		}
		types[t.Name] = g
	}
	field := func(path string) (t offsets.Type, at uint32) {
		if r := b.Resolve(offsets.Field{Into: &at, Paths: []string{path}}); r.Err != nil {
			return t, offsets.Absent
		}
		t, ok := b.Struct(path[:strings.LastIndexByte(path, '.')])
		if !ok {
			return t, offsets.Absent
		}
		return t, at
	}
	for _, t := range b.Embedding("context.valueCtx.Context") {
		flags := bpf.SharedGoTypeFlagGO_TYPE_CONTEXT
		switch t.Name {
		case "context.cancelCtx":
			flags |= bpf.SharedGoTypeFlagGO_TYPE_CANCEL | bpf.SharedGoTypeFlagGO_TYPE_CANCELS
		case "context.timerCtx", "context.afterFuncCtx":
			flags |= bpf.SharedGoTypeFlagGO_TYPE_CANCELS
		case "context.valueCtx":
			flags |= bpf.SharedGoTypeFlagGO_TYPE_VALUE
		}
		add(t, flags)
	}
	if t, at := field("context.withoutCancelCtx.c"); at != offsets.Absent {
		t.Next = at
		add(t, bpf.SharedGoTypeFlagGO_TYPE_CONTEXT)
	}
	for _, path := range wrappers {
		if t, at := field(path); at != offsets.Absent {
			t.Next = at
			add(t, bpf.SharedGoTypeFlagGO_TYPE_ERROR)
		}
	}
	for _, path := range texts {
		if t, at := field(path); at != offsets.Absent {
			add(t, bpf.SharedGoTypeFlagGO_TYPE_TEXT)
			g := types[t.Name]
			g.Text = at
			types[t.Name] = g
		}
	}
	b.AddPointers(structs)
	out := make([]GoType, 0, len(structs))
	for _, t := range structs {
		g := types[t.Name]
		g.Addrs = t.Addrs
		out = append(out, g)
	}
	return out
}
