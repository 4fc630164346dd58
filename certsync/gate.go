package certsync

import (
	"time"

	"github.com/nodestead/nodestead/certsync/daemon"
)

// Gate says when a restart may begin. No method waits until it may.
type Gate interface {
	// Enter tells, just before a restart, whether it may begin now. If so, leave
	// must be called when the restart has ended; it is nil where nobody waits for
	// that.
	Enter() (leave func(), shut Shut)
	// Look tells what is in the way of a restart, as Enter does, and asks for
	// nothing: no restart follows.
	Look() Shut
	// Ready has a value when Enter may have another answer by now.
	Ready() <-chan struct{}
}

// Shut is why no restart may begin now; without a Reason one may.
type Shut struct {
	Reason         string // WaitingForSlot or OutsideWindow
	Detail, Remedy string
	// Again is when it may be open, counted from now; 0: Ready tells.
	Again time.Duration
}

// The reasons of a Shut.
const (
	WaitingForSlot = "waiting_for_slot"
	OutsideWindow  = "outside_window"
)

// openGate is where nothing limits restarts.
type openGate struct{}

func (openGate) Enter() (func(), Shut)  { return nil, Shut{} }
func (openGate) Look() Shut             { return Shut{} }
func (openGate) Ready() <-chan struct{} { return nil }

// held is the permission that a restart of ours has.
type held struct {
	by     *runtime // nil: none is held
	docker bool     // docker runs, and is restarted with it
	leave  func()
}

// enter asks for a restart's permission. What it gives is kept until giveBack.
func (s *Syncer) enter(rt *runtime) Shut {
	if by := s.held.by; by != nil {
		return Shut{
			Reason: WaitingForSlot,
			Detail: string(by.cfg.Name) + " was restarted with the slot that this node has, and is not healthy",
			Remedy: "look at it: systemctl status " + by.cfg.Unit,
		}
	}
	leave, shut := s.gate.Enter()
	if shut.Reason == "" && leave != nil {
		docker := s.runtimes[daemon.Docker]
		s.held = held{rt, rt.facts.StopsDocker && docker != nil && docker.well(), leave}
	}
	if shut.Again > 0 && (s.again == 0 || shut.Again < s.again) {
		s.again = shut.Again
	}
	return shut
}

// pending is the decision about a restart that may not begin now.
func (shut Shut) pending(d daemon.Decision) daemon.Decision {
	return daemon.Decision{Action: daemon.Pending, Reason: shut.Reason, Detail: shut.Detail + "; " + d.Detail, Remedy: shut.Remedy}
}

// giveBack gives the permission back once the restart is concluded and has left
// nothing unhealthy. Until then it stays ours: what was bad for this node must
// not go on to the next.
func (s *Syncer) giveBack() {
	if s.held.by == nil || !s.recovered() {
		return
	}
	s.drop()
}

// recovered tells whether the daemon that was restarted, and docker if it was
// restarted with it, runs as it should, or is no more on this node. A docker that
// somebody had stopped before is nobody's to wait for.
func (s *Syncer) recovered() bool {
	rt := s.held.by
	st := s.state.Runtimes[rt.cfg.Name]
	if st.Intent != nil || !rt.well() {
		return false
	}
	return st.History.Outcome != daemon.Failed || !s.held.docker || s.runtimes[daemon.Docker].well()
}

func (rt *runtime) well() bool {
	return rt.err == nil && (rt.facts.Healthy || !rt.facts.Present)
}

// drop gives the permission back, whatever came of the restart.
func (s *Syncer) drop() {
	if s.held.by != nil {
		s.held.leave()
		s.held = held{}
	}
}
