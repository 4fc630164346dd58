package certsync

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nodestead/nodestead/certsync/anchor"
	"github.com/nodestead/nodestead/certsync/daemon"
	"github.com/nodestead/nodestead/certsync/place"
)

// TestNotes: what is wrong is said when it begins, when it changes, and when it is
// over; other numbers in it are no change.
func TestNotes(t *testing.T) {
	var log bytes.Buffer
	n := notes{log: slog.New(slog.NewTextHandler(&log, nil)), said: make(map[string]string)}
	pass := func(err string) int {
		log.Reset()
		n.begin()
		if err != "" {
			n.say("target store", "not installed", "err", err)
		}
		n.end()
		return strings.Count(log.String(), "\n")
	}
	for _, step := range []struct {
		err  string
		want int
		has  string
	}{
		{"", 0, ""},
		{"port 4711 refused", 1, `level=WARN msg="not installed" err="port 4711 refused"`},
		{"port 4712 refused", 0, ""},
		{"no route", 1, "no route"},
		{"", 1, `level=INFO msg="no longer wrong" kind=target what=store`},
		{"", 0, ""},
		{"no route", 1, "no route"},
	} {
		if got := pass(step.err); got != step.want || !strings.Contains(log.String(), step.has) {
			t.Errorf("%q: %d lines, want %d: %s", step.err, got, step.want, log.String())
		}
	}
}

// TestNoCA tells a source that nobody has filled yet from one that is broken.
func TestNoCA(t *testing.T) {
	missing, empty := anchor.Refusal{Reason: anchor.Missing}, anchor.Refusal{Reason: anchor.Empty}
	for _, tt := range []struct {
		name   string
		status Status
		want   bool
	}{
		{"no source", Status{}, false},
		{"missing", Status{Broken: []anchor.Refusal{missing}}, true},
		{"missing and empty", Status{Broken: []anchor.Refusal{missing, empty}}, true},
		{"unreadable", Status{Broken: []anchor.Refusal{missing, {Reason: anchor.Unreadable}}}, false},
		{"files, and no anchor in them", Status{Broken: []anchor.Refusal{{Reason: anchor.NoAnchor}}}, false},
		{"something is refused", Status{Broken: []anchor.Refusal{empty}, Refused: []anchor.Refusal{{Reason: anchor.NotAllowed}}}, false},
		{"an anchor is known", Status{Broken: []anchor.Refusal{missing}, Anchors: make([]anchor.Anchor, 1)}, false},
	} {
		if got := tt.status.NoCA(); got != tt.want {
			t.Errorf("%s: %t", tt.name, got)
		}
		var log strings.Builder
		s := Syncer{log: slog.New(slog.NewTextHandler(&log, nil))}
		s.notes = notes{log: s.log, said: make(map[string]string)}
		for range 2 {
			s.notes.begin()
			s.note(work{}, tt.status)
			s.notes.end()
		}
		if got := strings.Count(log.String(), `level=INFO msg="no CA is given yet`); tt.want != (got > 0) || tt.want && (got != 1 || strings.Contains(log.String(), "WARN")) {
			t.Errorf("%s: the log is\n%s", tt.name, log.String())
		}
	}
}

// TestWrong lists what keeps a pass from being a good one.
func TestWrong(t *testing.T) {
	refusal := []anchor.Refusal{{Source: "/ca/a.crt", Reason: anchor.Expired, Detail: "since yesterday"}}
	s := Status{
		Refused: refusal, Broken: []anchor.Refusal{{Source: "/ca", Reason: anchor.Empty, Detail: "no file"}},
		Warnings: refusal, // no fault
		Errs:     []string{"disk full"},
		Targets: []TargetStatus{
			{Name: "store", Err: "the tool failed: in the way", Problems: []place.Problem{{Path: "/q", Reason: "x", Detail: "in the way"}}},
			{Name: "docker/a:1", InSync: true, Problems: []place.Problem{{Path: "/p", Reason: "foreign", Detail: "left alone"}}},
		},
		Runtimes: []RuntimeStatus{
			{Name: daemon.Docker, Decision: daemon.Decision{Action: daemon.Pending, Reason: "restart_never", Detail: "set so"}},
			{Name: daemon.CRIO, Err: "it does not answer"},
			{Name: daemon.Containerd, Decision: daemon.Decision{Action: daemon.Leave}, Answers: []daemon.Answer{
				{Registry: "a:1", Verdict: daemon.Trusted}, {Registry: "b:1", Verdict: daemon.Unclear, Text: "refused"},
			}},
		},
	}
	want := []string{
		"disk full",
		"source /ca: empty: no file",
		"refused /ca/a.crt: expired: since yesterday",
		"target store: the tool failed: in the way",
		"target docker/a:1: /p: foreign: left alone",
		"restart of docker is pending: restart_never: set so",
		"crio could not be looked at: it does not answer",
		"containerd does not say that it trusts b:1: refused",
	}
	if diff := cmp.Diff(want, s.Wrong()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if (Status{Warnings: refusal, Targets: []TargetStatus{{InSync: true}}}).InSync() != true {
		t.Error("a warning is taken for a fault")
	}
}
