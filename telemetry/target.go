package telemetry

import (
	"go.opentelemetry.io/otel/attribute"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
)

// Target is a traced process as telemetry sees it.
type Target struct {
	PID      int
	Service  string
	Resource []attribute.KeyValue

	red    redTable
	active map[*Metric]map[attribute.Distinct]*activeSeries // that had open calls: they return to 0
	routes map[Kind]*routeGuesser                           // a client's paths say nothing of a server's
	called bool                                             // there was a call
	proto  *resourcepb.Resource
	open   []*spanBatch // being filled, one a scope

	spans, metrics Coexistence
}

// NewTarget describes a process by its resource attributes.
func NewTarget(pid int, service string, resource []attribute.KeyValue) *Target {
	t := &Target{PID: pid, Service: service, Resource: resource, proto: &resourcepb.Resource{}}
	for _, kv := range resource {
		t.proto.Attributes = append(t.proto.Attributes, protoAttribute(kv))
	}
	return t
}

func protoAttribute(kv attribute.KeyValue) *commonpb.KeyValue {
	v := &commonpb.AnyValue{}
	switch kv.Value.Type() {
	case attribute.INT64:
		v.Value = &commonpb.AnyValue_IntValue{IntValue: kv.Value.AsInt64()}
	case attribute.BOOL:
		v.Value = &commonpb.AnyValue_BoolValue{BoolValue: kv.Value.AsBool()}
	default:
		v.Value = &commonpb.AnyValue_StringValue{StringValue: kv.Value.String()}
	}
	return &commonpb.KeyValue{Key: string(kv.Key), Value: v}
}

func (t *Target) guesser(k Kind) *routeGuesser {
	g := t.routes[k]
	if g == nil {
		if t.routes == nil {
			t.routes = map[Kind]*routeGuesser{}
		}
		g = &routeGuesser{}
		t.routes[k] = g
	}
	return g
}
