package telemetry

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Format is how live calls are written.
type Format string

// The formats of --print.
const (
	PrintText Format = "text"
	PrintJSON Format = "json"
	PrintNone Format = "none"
)

// printer writes one line a call. A failed write is counted and told once.
type printer struct {
	format Format
	out    io.Writer
	w      *bufio.Writer
	failed uint64
	tellAt uint64 // how many failures are worth a word
	err    error
}

func newPrinter(format Format, w io.Writer) *printer {
	return &printer{format: format, out: w, w: bufio.NewWriterSize(w, 16<<10), tellAt: 1}
}

func (p *printer) print(t *Target, instrumentor string, c *Call, guess string) {
	var err error
	if p.format == PrintJSON {
		err = p.json(t, instrumentor, c, guess)
	} else {
		err = p.text(t, c, guess)
	}
	p.note(err)
}

func (p *printer) flush() { p.note(p.w.Flush()) }

// note keeps the first error and lets the next line try again: a full disk may have room later.
func (p *printer) note(err error) {
	if err == nil {
		return
	}
	p.failed++
	if p.err == nil {
		p.err = err
	}
	p.w.Reset(p.out) // a bufio.Writer would fail for ever
}

// jsonCall is one line of --print json; the format is an interface.
type jsonCall struct {
	Time         string         `json:"time"`
	Kind         string         `json:"kind"`
	Name         string         `json:"name"`
	Service      string         `json:"service"`
	PID          int            `json:"pid"`
	DurationNS   int64          `json:"duration_ns"`
	Error        bool           `json:"error"`
	TraceID      string         `json:"trace_id"`
	SpanID       string         `json:"span_id"`
	ParentSpanID string         `json:"parent_span_id,omitempty"`
	Instrumentor string         `json:"instrumentor"`
	Attributes   map[string]any `json:"attributes"`
}

func (p *printer) json(t *Target, instrumentor string, c *Call, guess string) error {
	j := jsonCall{
		Time: time.Unix(0, c.Start).UTC().Format(time.RFC3339Nano), Kind: c.Kind.String(), Name: name(c, guess),
		Service: t.Service, PID: t.PID, DurationNS: c.End - c.Start, Error: c.Error,
		TraceID: hex.EncodeToString(c.TraceID[:]), SpanID: hex.EncodeToString(c.SpanID[:]),
		Instrumentor: instrumentor, Attributes: map[string]any{},
	}
	if c.ParentID != [8]byte{} {
		j.ParentSpanID = hex.EncodeToString(c.ParentID[:])
	}
	for _, kv := range c.Attrs {
		j.Attributes[string(kv.Key)] = kv.Value.AsInterface()
	}
	if guess != "" {
		j.Attributes["zerospan.route.guess"] = guess
	}
	line, err := json.Marshal(j)
	if err != nil {
		return err
	}
	line = append(escapeControls(line), '\n')
	_, err = p.w.Write(line)
	return err
}

// escapeControls escapes what JSON leaves alone and terminals obey: DEL and the
// C1 controls, which are two bytes in UTF-8.
func escapeControls(line []byte) []byte {
	control := func(r rune) bool { return r >= 0x7f && r <= 0x9f }
	if bytes.IndexFunc(line, control) < 0 {
		return line
	}
	var out []byte
	for _, r := range string(line) {
		if control(r) {
			out = fmt.Appendf(out, "\\u%04x", r)
		} else {
			out = utf8.AppendRune(out, r)
		}
	}
	return out
}

func name(c *Call, guess string) string {
	if c.Route != "" {
		guess = c.Route
	}
	return strings.TrimSpace(c.Operation + " " + guess)
}

func (p *printer) text(t *Target, c *Call, guess string) error {
	outcome, detail := "-", ""
	if c.Status != 0 {
		outcome = fmt.Sprint(c.Status)
	}
	for _, kv := range c.Attrs {
		switch kv.Key {
		case "error.type":
			if v := kv.Value.AsString(); v != outcome {
				detail = "  " + v
			}
		case "url.path":
			if v := kv.Value.AsString(); v != c.Route && v != guess {
				detail = "  " + v + detail
			}
		}
	}
	called := name(c, guess)
	if c.Peer != "" {
		called = "→ " + c.Peer + "  " + called
	}
	mark := " "
	if c.Error {
		mark = "!"
	}
	_, err := fmt.Fprintf(p.w, "%s %s%3s %8s  %s  %s%s\n", time.Unix(0, c.Start).Format("15:04:05.000"), mark, outcome,
		formatDuration(time.Duration(c.End-c.Start)), printable(t.Service), printable(called), printable(detail))
	return err
}

// printable makes a target's text safe for a terminal.
func printable(s string) string {
	clean := func(r rune) bool { return r == utf8.RuneError || !unicode.IsPrint(r) }
	if strings.IndexFunc(s, clean) < 0 {
		return s
	}
	return strings.Map(func(r rune) rune {
		if clean(r) {
			return '·'
		}
		return r
	}, s)
}

// CleanUTF8 returns s as valid UTF-8, which OTLP requires of every string.
func CleanUTF8(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}
