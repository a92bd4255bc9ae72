package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/zerospan/zerospan/agent"
	"github.com/zerospan/zerospan/telemetry"
)

type attachCmd struct {
	PID []int    `name:"pid" short:"p" help:"Trace this process; may be repeated." placeholder:"PID"`
	Exe []string `name:"exe" help:"Trace processes whose executable matches, such as '*/checkout'; may be repeated." placeholder:"GLOB" sep:"none"`
	All bool     `help:"Trace every process that zerospan knows how to trace."`

	output

	Duration time.Duration `help:"Stop after this time." placeholder:"30s"`
}

// output is the flags that say where telemetry goes; shared by attach and demo.
type output struct {
	OTLPEndpoint  string        `name:"otlp-endpoint" help:"Send spans and metrics there by OTLP over gRPC." placeholder:"URL"`
	Traces        bool          `help:"Export spans." default:"true" negatable:""`
	Metrics       bool          `help:"Export metrics." default:"true" negatable:""`
	Print         string        `help:"Print calls on standard output: text, json or none (default: text if nothing else takes them)." enum:"text,json,none,"  default:"" placeholder:"FORMAT"`
	MetricsListen string        `help:"Serve Prometheus metrics on this address." placeholder:"ADDR"`
	HealthListen  string        `help:"Serve /healthz and /readyz on this address." placeholder:"ADDR"`
	Sample        *float64      `help:"Export this share of traces; metrics count every call." placeholder:"RATIO"`
	ServiceName   string        `help:"Name of the service, with one target." placeholder:"NAME"`
	Coexist       string        `help:"With a process that exports telemetry itself: skip what it exports, link calls to its spans, or ignore it." enum:"skip,link,ignore" default:"skip"`
	StuckAfter    time.Duration `help:"List calls that are open for longer." default:"30s"`
	Avoid         []string      `help:"Features of the kernel not to use: multi, cookies." hidden:""`
	RingSize      uint32        `help:"Size of the ring buffer in bytes, a power of two." default:"4194304" hidden:""`
}

func (c *attachCmd) Run(s *streams, log *slog.Logger, ctx bindContext) error {
	if len(c.PID) == 0 && len(c.Exe) == 0 && !c.All {
		return usageError("say what to trace: --pid, --exe or --all")
	}
	for _, pid := range c.PID {
		if pid <= 0 {
			return usageError(fmt.Sprintf("--pid %d is no process id", pid))
		}
	}
	if c.Duration < 0 || c.StuckAfter <= 0 {
		return usageError("--duration and --stuck-after take a positive time such as 30s")
	}
	var bound context.Context = ctx
	if c.Duration > 0 {
		var cancel context.CancelFunc
		bound, cancel = context.WithTimeout(ctx, c.Duration)
		defer cancel()
	}
	return c.trace(bound, s, log, agent.Config{PIDs: c.PID, Exe: c.Exe, All: c.All})
}

// shutdownTimeout bounds the export of what is left when zerospan stops.
const shutdownTimeout = 5 * time.Second

// trace runs an agent until ctx ends, then exports what is left and prints the summary.
func (o *output) trace(ctx context.Context, s *streams, log *slog.Logger, cfg agent.Config, ready ...func()) error {
	options, err := o.pipeline(s, log)
	if err != nil {
		return err
	}
	pipeline, err := telemetry.NewPipeline(options)
	if err != nil {
		return err
	}
	cfg.Log, cfg.RingSize, cfg.Service, cfg.StuckAfter = log, o.RingSize, o.ServiceName, o.StuckAfter
	cfg.Coexist, cfg.Avoid = agent.Coexist(o.Coexist), o.Avoid
	if cfg.Service == "" {
		cfg.Service = os.Getenv("OTEL_SERVICE_NAME")
	}
	if len(cfg.PIDs) != 1 || cfg.All || len(cfg.Exe) > 0 {
		if cfg.Service != "" {
			log.Warn("a service name is only used with a single --pid: each target has its own", "ignored", cfg.Service)
		}
		cfg.Service = ""
	}
	a, err := agent.New(cfg, pipeline)
	if err != nil {
		return err
	}
	stop, err := o.serve(pipeline, a, log)
	if err != nil {
		return err
	}
	defer stop()
	for _, f := range ready {
		go func() {
			select {
			case <-a.Attached():
				f()
			case <-ctx.Done():
			}
		}()
	}
	runErr := a.Run(ctx)

	select {
	case <-a.Attached():
	default: // there is nothing to export or to sum up: the error says it all
		return runErr
	}
	flush, cancel := context.WithTimeout(context.Background(), shutdownTimeout)
	defer cancel()
	pipeline.Close(flush)
	pipeline.WriteSummary(s.err)
	return runErr
}

// pipeline translates flags and OTEL_ variables.
func (o *output) pipeline(s *streams, log *slog.Logger) (telemetry.Options, error) {
	options := telemetry.Options{Log: log, Stdout: s.out, Print: telemetry.Format(o.Print)}
	name, arg := os.Getenv("OTEL_TRACES_SAMPLER"), os.Getenv("OTEL_TRACES_SAMPLER_ARG")
	if o.Sample != nil {
		name, arg = "parentbased_traceidratio", strconv.FormatFloat(*o.Sample, 'g', -1, 64)
	}
	collector := o.OTLPEndpoint != "" || os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT") != ""
	traces := o.Traces && os.Getenv("OTEL_TRACES_EXPORTER") != "none"
	if !traces {
		name, arg = "always_off", ""
	}
	var err error
	if options.Sampler, err = telemetry.NewSampler(name, arg); err != nil {
		return options, usageError(err.Error())
	}
	endpoint := o.OTLPEndpoint
	if endpoint != "" {
		if !strings.Contains(endpoint, "://") {
			endpoint = "http://" + endpoint
		}
		if u, err := url.Parse(endpoint); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			return options, usageError(fmt.Sprintf("--otlp-endpoint %q is no URL such as http://localhost:4317", o.OTLPEndpoint))
		}
	}
	if traces && (collector || os.Getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") != "") {
		options.Traces = &telemetry.TraceOptions{
			Endpoint: endpoint,
			Queue:    envInt(log, "OTEL_BSP_MAX_QUEUE_SIZE"),
			Batch:    envInt(log, "OTEL_BSP_MAX_EXPORT_BATCH_SIZE"),
			Delay:    time.Duration(envInt(log, "OTEL_BSP_SCHEDULE_DELAY")) * time.Millisecond,
		}
	}
	if o.Metrics && os.Getenv("OTEL_METRICS_EXPORTER") != "none" && (collector || os.Getenv("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT") != "") {
		options.Metrics = &telemetry.MetricOptions{
			Endpoint: endpoint,
			Interval: time.Duration(envInt(log, "OTEL_METRIC_EXPORT_INTERVAL")) * time.Millisecond,
		}
	}
	if options.Print == "" {
		options.Print = telemetry.PrintNone
		if options.Traces == nil && options.Metrics == nil && o.MetricsListen == "" {
			options.Print = telemetry.PrintText
		}
	}
	return options, nil
}

func envInt(log *slog.Logger, name string) int {
	v := os.Getenv(name)
	if v == "" {
		return 0
	}
	n, err := strconv.Atoi(v)
	if err != nil || n <= 0 {
		log.Warn("ignored: not a positive number", "variable", name, "value", v)
		return 0
	}
	return n
}

// serve starts the HTTP listeners that were asked for.
func (o *output) serve(p *telemetry.Pipeline, a *agent.Agent, log *slog.Logger) (stop func(), err error) {
	var servers []*http.Server
	stop = func() {
		for _, s := range servers {
			_ = s.Close()
		}
	}
	listen := func(address string, mux http.Handler) error {
		l, err := net.Listen("tcp", address)
		if err != nil {
			return fmt.Errorf("listen on %s: %w", address, err)
		}
		s := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
		servers = append(servers, s)
		go func() {
			if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				log.Error("a listener ended", "address", address, "error", err)
			}
		}()
		return nil
	}
	if o.MetricsListen != "" {
		registry := prometheus.NewRegistry()
		if err := registry.Register(p.Collector()); err != nil {
			return stop, err
		}
		mux := http.NewServeMux()
		mux.Handle("/metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError}))
		if err := listen(o.MetricsListen, mux); err != nil {
			return stop, err
		}
	}
	if o.HealthListen != "" {
		mux := http.NewServeMux()
		mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
		mux.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) {
			select {
			case <-a.Attached():
				fmt.Fprintln(w, "ok")
			default:
				http.Error(w, "nothing is attached yet", http.StatusServiceUnavailable)
			}
		})
		if err := listen(o.HealthListen, mux); err != nil {
			stop()
			return func() {}, err
		}
	}
	return stop, nil
}
