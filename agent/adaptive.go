package agent

import (
	"time"

	"github.com/cilium/ebpf/link"

	"github.com/zerospan/zerospan/bpf"
	"github.com/zerospan/zerospan/instrumentors"
)

// An adaptive site stays attached while calls need what it tells. After
// adaptiveTrial calls that did not, it is detached: calls have a hit less. A
// call that could have used it has it attached again, less and less often if
// that turns out to be in vain.
const (
	adaptiveTrial    = 512
	adaptiveMinPause = 10 * time.Second
	adaptiveMaxPause = 10 * time.Minute
)

type adaptiveState uint8

const (
	adaptiveTrying adaptiveState = iota
	adaptiveNeeded               // for good: one call that used it is enough
	adaptiveOff
)

// adaptive is an adaptive site of one target. Its state belongs to the
// consumer's goroutine, its link to the one that runs the agent.
type adaptive struct {
	target *target
	site   instrumentors.PlannedSite
	layout uint32
	loaded *loaded
	link   link.Link

	state adaptiveState
	calls int
	pause time.Duration
	since time.Time // when it was detached
}

// adaptiveChange asks for a site to be attached or detached.
type adaptiveChange struct {
	*adaptive
	on bool
}

// observe learns from a record's flags and returns true when the site has to change.
func (d *adaptive) observe(flags bpf.SharedZsFlag, now func() time.Time) (change, on bool) {
	switch d.state {
	case adaptiveTrying:
		if flags&bpf.SharedZsFlagZS_FLAG_EXTRA_USED != 0 {
			d.state = adaptiveNeeded
			return false, false
		}
		if d.calls++; d.calls < adaptiveTrial {
			return false, false
		}
		d.state, d.calls, d.since = adaptiveOff, 0, now()
		d.pause = min(max(2*d.pause, adaptiveMinPause), adaptiveMaxPause)
		return true, false
	case adaptiveOff:
		if flags&bpf.SharedZsFlagZS_FLAG_EXTRA_MISSED == 0 || now().Sub(d.since) < d.pause {
			return false, false
		}
		d.state = adaptiveTrying
		return true, true
	}
	return false, false
}

// adapt passes a change on to the goroutine that attaches.
func (a *Agent) adapt(sites []*adaptive, l *loaded, head *bpf.SharedZsHead) {
	for _, d := range sites {
		if d.loaded != l || d.state == adaptiveNeeded {
			continue
		}
		state, calls, pause, since := d.state, d.calls, d.pause, d.since
		if change, on := d.observe(bpf.SharedZsFlag(head.Flags), time.Now); change {
			select {
			case a.changes <- adaptiveChange{d, on}:
			default: // it is busy: the next call will ask again
				d.state, d.calls, d.pause, d.since = state, calls, pause, since
			}
		}
	}
}

// change attaches or detaches an adaptive site.
func (a *Agent) change(c adaptiveChange) {
	if a.targets[c.target.process.PID] != c.target {
		return // it has ended meanwhile
	}
	name := c.site.Found[0].Func.Name
	if !c.on {
		if c.link != nil {
			_ = c.link.Close()
			c.link = nil
		}
		a.log.Debug("a site was not needed and is detached", "pid", c.target.process.PID, "function", name)
		return
	}
	if c.link != nil {
		return
	}
	k, err := a.attachSite(c.target, c.loaded, c.site, c.layout)
	if err != nil {
		a.log.Warn("a site could not be attached again", "pid", c.target.process.PID, "function", name, "error", err)
		return
	}
	c.link = k
	a.log.Debug("a site is needed and attached", "pid", c.target.process.PID, "function", name)
}
