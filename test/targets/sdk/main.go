// Command sdk is a traced process for the tests that carries the OpenTelemetry
// SDK. It serves /call/, which calls a backend once within a span of the SDK and
// once outside of it. Arguments: the backend, the collector, and what the SDK
// does: any of traces, metrics, client (it makes a client's span), never (it samples
// nothing), or nothing.
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"slices"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetricgrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/trace"
	api "go.opentelemetry.io/otel/trace"
)

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func get(ctx context.Context, url string) {
	req, err := http.NewRequestWithContext(ctx, "GET", url, nil)
	check(err)
	resp, err := http.DefaultClient.Do(req)
	check(err)
	io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
}

func main() {
	ctx := context.Background()
	backend, collector, does := os.Args[1], os.Args[2], os.Args[3:]
	sampler := trace.AlwaysSample()
	if slices.Contains(does, "never") {
		sampler = trace.NeverSample()
	}
	if slices.Contains(does, "traces") {
		exporter, err := otlptracegrpc.New(ctx, otlptracegrpc.WithEndpointURL(collector))
		check(err)
		otel.SetTracerProvider(trace.NewTracerProvider(trace.WithBatcher(exporter, trace.WithBatchTimeout(time.Second)), trace.WithSampler(sampler)))
	}
	if slices.Contains(does, "metrics") {
		exporter, err := otlpmetricgrpc.New(ctx, otlpmetricgrpc.WithEndpointURL(collector))
		check(err)
		otel.SetMeterProvider(metric.NewMeterProvider(metric.WithReader(metric.NewPeriodicReader(exporter, metric.WithInterval(time.Second)))))
	}
	kind := api.SpanKindServer
	if slices.Contains(does, "client") {
		kind = api.SpanKindClient
	}
	http.HandleFunc("/call/", func(w http.ResponseWriter, r *http.Request) {
		get(r.Context(), backend+r.URL.Path+"/outside")
		ctx, span := otel.Tracer("test").Start(r.Context(), r.URL.Path, api.WithSpanKind(kind))
		get(ctx, backend+r.URL.Path+"/inside")
		span.End()
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	go http.Serve(l, nil)
	fmt.Println("ready", l.Addr())
	io.Copy(io.Discard, os.Stdin)
}
