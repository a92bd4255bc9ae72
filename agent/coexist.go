package agent

import (
	"fmt"
	"time"

	"github.com/cilium/ebpf/link"

	"github.com/zerospan/zerospan/bpf"
	"github.com/zerospan/zerospan/coexist"
	"github.com/zerospan/zerospan/instrumentors"
	"github.com/zerospan/zerospan/offsets"
	"github.com/zerospan/zerospan/telemetry"
)

// Coexist says what becomes of calls of a process that exports telemetry itself.
type Coexist string

// The ways to coexist. Whatever the way, metrics of a process that exports metrics
// are left to it.
const (
	CoexistSkip   Coexist = "skip"   // spans of a process that exports spans are left to it
	CoexistLink   Coexist = "link"   // client calls that its SDK does not see become children of the SDK's spans
	CoexistIgnore Coexist = "ignore" // both export
)

// sdkState is what is known of a target's own SDK.
type sdkState struct {
	plan    *coexist.Plan
	links   []link.Link
	since   time.Time // of the first call
	environ map[string]string
	silent  map[coexist.Signal]bool // as far as is known; an export changes that at any time
	exports map[coexist.Signal]bool
}

// watchSDK begins to watch whether a target exports by itself. Until that is
// known, what zerospan has of it waits.
func (a *Agent) watchSDK(t *target, plan *coexist.Plan) error {
	if a.cfg.Coexist == CoexistIgnore || plan == nil || len(plan.Sites) == 0 {
		return nil
	}
	if a.sdks == nil {
		w, err := coexist.NewWatcher(a.prepare)
		if err != nil {
			return permission(err)
		}
		a.sdks = w
	}
	if err := a.sdks.Add(t.id, plan); err != nil {
		return fmt.Errorf("watch the OpenTelemetry SDK: %w", err)
	}
	s := &sdkState{plan: plan, environ: t.process.OTEL, silent: map[coexist.Signal]bool{}, exports: map[coexist.Signal]bool{}}
	t.sdk = s
	for _, site := range plan.Sites {
		k, err := a.probe(t, a.sdks.Program(site), []offsets.Site{site.Site}, 0)
		if err != nil {
			return err
		}
		s.links = append(s.links, k)
		waits := telemetry.Waits
		if a.cfg.Coexist == CoexistLink && site.Signal == coexist.Traces {
			waits = telemetry.WaitsToLink
		}
		a.pipeline.Coexist(t.telemetry, telemetry.Signal(site.Signal), waits)
	}
	if a.cfg.Coexist == CoexistLink {
		return a.linkSDK(t, plan.Link)
	}
	return nil
}

// linkSDK tells the programs how to find the SDK's spans.
func (a *Agent) linkSDK(t *target, l *coexist.Link) error {
	if l == nil {
		return nil
	}
	span := instrumentors.GoType{Addrs: l.Span, SharedGoType: bpf.SharedGoType{Flags: uint32(bpf.SharedGoTypeFlagGO_TYPE_SDK_SPAN)}}
	t.types = append(t.types, span)
	if err := a.shared.describe(t); err != nil {
		return err
	}
	sdk := l.SharedGoSdk
	sdk.KeyType = uint64(l.Key) + t.bias
	return a.shared.maps["go_sdks"].Put(t.id, sdk)
}

// checkSDKs decides what is known by now.
func (a *Agent) checkSDKs(now time.Time) {
	for _, t := range a.targets {
		a.checkSDK(t, now, false)
	}
}

// checkSDK decides what is known of one target; with last, what is not known is
// taken for what it looks like.
func (a *Agent) checkSDK(t *target, now time.Time, last bool) {
	s := t.sdk
	if s == nil {
		return
	}
	exports, err := a.sdks.Exports(t.id)
	if err != nil {
		a.log.Warn("whether the process exports by itself is not known", "pid", t.process.PID, "error", err)
	}
	// A process without calls has nothing to export: its silence says nothing.
	if s.since.IsZero() && a.pipeline.Called(t.telemetry) {
		s.since = now
	}
	for _, signal := range []coexist.Signal{coexist.Traces, coexist.Metrics} {
		switch {
		case !s.plan.Has(signal) || s.exports[signal]:
		case exports[signal] > 0:
			s.exports[signal] = true
			what := telemetry.Left
			if a.cfg.Coexist == CoexistLink && signal == coexist.Traces {
				what = telemetry.Linked
			}
			a.pipeline.Coexist(t.telemetry, telemetry.Signal(signal), what)
			a.log.Info("the process exports by itself: see --coexist", "pid", t.process.PID, "signal", signal, "coexist", a.cfg.Coexist)
		case !s.silent[signal] && (last || !s.since.IsZero() && now.Sub(s.since) > coexist.Window(signal, s.environ)):
			s.silent[signal] = true
			a.pipeline.Coexist(t.telemetry, telemetry.Signal(signal), telemetry.Exported)
			a.log.Debug("the process carries the OpenTelemetry SDK and does not export", "pid", t.process.PID, "signal", signal)
		}
	}
}

// unwatchSDK ends what watchSDK began.
func (a *Agent) unwatchSDK(t *target) {
	if t.sdk == nil {
		return
	}
	a.checkSDK(t, time.Now(), true)
	closeLinks(t.sdk.links)
	a.sdks.Remove(t.id)
	_ = a.shared.maps["go_sdks"].Delete(t.id) // only there to link
	t.sdk = nil
}
