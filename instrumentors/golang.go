package instrumentors

import (
	"github.com/zerospan/zerospan/bpf"
	"github.com/zerospan/zerospan/offsets"
)

// GoRuntime returns the fields of a go_runtime_layout (bpf/go.h).
func GoRuntime(l *bpf.SharedGoRuntimeLayout) []offsets.Field {
	return []offsets.Field{
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
