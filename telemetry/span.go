package telemetry

import (
	"go.opentelemetry.io/otel/attribute"
	"google.golang.org/protobuf/encoding/protowire"
)

// Field numbers of opentelemetry.proto.trace.v1 and .common.v1.
const (
	scopeSpansSpans = 2

	spanTraceID    = 1
	spanSpanID     = 2
	spanParentID   = 4
	spanName       = 5
	spanKind       = 6
	spanStart      = 7
	spanEnd        = 8
	spanAttributes = 9
	spanStatus     = 15
	spanFlags      = 16

	flagHasIsRemote = 0x100
	flagIsRemote    = 0x200
)

// appendSpan appends c as an element of ScopeSpans.spans in OTLP's wire format.
// Building the generated structs and having them marshalled costs several times
// as much (BenchmarkSpan), and this is the largest part of what an exported
// call costs zerospan.
func appendSpan(dst []byte, c *Call, guess string) []byte {
	dst = protowire.AppendTag(dst, scopeSpansSpans, protowire.BytesType)
	start := len(dst)
	dst = append(dst, 0, 0, 0) // the length, in three bytes whatever it is
	dst = protowire.AppendTag(dst, spanTraceID, protowire.BytesType)
	dst = append(append(dst, 16), c.TraceID[:]...)
	dst = protowire.AppendTag(dst, spanSpanID, protowire.BytesType)
	dst = append(append(dst, 8), c.SpanID[:]...)
	flags := uint32(1) // sampled
	if c.ParentID != [8]byte{} {
		dst = protowire.AppendTag(dst, spanParentID, protowire.BytesType)
		dst = append(append(dst, 8), c.ParentID[:]...)
		flags |= flagHasIsRemote
		if c.ParentRemote {
			flags |= flagIsRemote
		}
	}
	dst = protowire.AppendTag(dst, spanName, protowire.BytesType)
	dst = appendName(dst, c, guess)
	dst = protowire.AppendTag(dst, spanKind, protowire.VarintType)
	dst = append(dst, byte(c.Kind))
	dst = protowire.AppendTag(dst, spanStart, protowire.Fixed64Type)
	dst = protowire.AppendFixed64(dst, uint64(c.Start))
	dst = protowire.AppendTag(dst, spanEnd, protowire.Fixed64Type)
	dst = protowire.AppendFixed64(dst, uint64(c.End))
	for i := range c.Attrs {
		dst = appendAttribute(dst, &c.Attrs[i])
	}
	if guess != "" {
		kv := attribute.String("zerospan.route.guess", guess)
		dst = appendAttribute(dst, &kv)
	}
	if c.Error {
		dst = protowire.AppendTag(dst, spanStatus, protowire.BytesType)
		dst = append(dst, 2, 3<<3, 2) // code = STATUS_CODE_ERROR
	}
	dst = protowire.AppendTag(dst, spanFlags, protowire.Fixed32Type)
	dst = protowire.AppendFixed32(dst, flags)

	n := len(dst) - start - 3
	dst[start] = byte(n) | 0x80
	dst[start+1] = byte(n>>7) | 0x80
	dst[start+2] = byte(n >> 14)
	return dst
}

// appendName appends "operation route" with its length.
func appendName(dst []byte, c *Call, guess string) []byte {
	route := c.Route
	if route == "" {
		route = guess
	}
	n := len(c.Operation)
	if route != "" {
		n += 1 + len(route)
	}
	dst = protowire.AppendVarint(dst, uint64(n))
	dst = append(dst, c.Operation...)
	if route != "" {
		dst = append(dst, ' ')
		dst = append(dst, route...)
	}
	return dst
}

// appendAttribute appends a KeyValue as an element of Span.attributes.
func appendAttribute(dst []byte, kv *attribute.KeyValue) []byte {
	dst = protowire.AppendTag(dst, spanAttributes, protowire.BytesType)
	key := string(kv.Key)
	head := 1 + protowire.SizeBytes(len(key)) + 1 // key's tag and value, value's tag
	switch kv.Value.Type() {
	case attribute.INT64:
		v := uint64(kv.Value.AsInt64())
		any := 1 + protowire.SizeVarint(v)
		dst = protowire.AppendVarint(dst, uint64(head+protowire.SizeBytes(any)))
		dst = appendKey(dst, key, any)
		dst = append(dst, 3<<3) // AnyValue.int_value
		return protowire.AppendVarint(dst, v)
	case attribute.BOOL:
		dst = protowire.AppendVarint(dst, uint64(head+protowire.SizeBytes(2)))
		dst = appendKey(dst, key, 2)
		v := byte(0)
		if kv.Value.AsBool() {
			v = 1
		}
		return append(dst, 2<<3, v) // AnyValue.bool_value
	default:
		s := kv.Value.AsString()
		any := 1 + protowire.SizeBytes(len(s))
		dst = protowire.AppendVarint(dst, uint64(head+protowire.SizeBytes(any)))
		dst = appendKey(dst, key, any)
		dst = append(dst, 1<<3|2) // AnyValue.string_value
		return protowire.AppendString(dst, s)
	}
}

// appendKey appends KeyValue.key and the tag and length of KeyValue.value.
func appendKey(dst []byte, key string, any int) []byte {
	dst = append(dst, 1<<3|2)
	dst = protowire.AppendString(dst, key)
	dst = append(dst, 2<<3|2)
	return protowire.AppendVarint(dst, uint64(any))
}
