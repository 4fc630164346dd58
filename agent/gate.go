package agent

import (
	"errors"
	"fmt"
	"time"

	"github.com/nodestead/nodestead/certsync"
	"github.com/nodestead/nodestead/cluster"
)

// window is the time in which a restart may begin.
func (r RestartsConfig) window() (cluster.Window, error) {
	w, err := cluster.NewWindow(strs(r.Days), string(r.Start), string(r.End), string(r.TimeZone))
	if err != nil {
		return w, fmt.Errorf("trust.restarts: %w", err)
	}
	return w, nil
}

// gate says when a restart may begin: within the window, and in a cluster with a
// slot.
type gate struct {
	window cluster.Window
	zone   *time.Location
	slots  uint32 // how many the cluster has; 0: no limit
	// permit gets one (cluster.Permits); nil: nobody gives any, for the reason in
	// refusal.
	permit  func() (release func(), ok bool, why string)
	refusal certsync.Shut
	ready   <-chan struct{}
	now     func() time.Time
}

// newGate gives a gate that knows the window alone.
func newGate(r RestartsConfig) (*gate, error) {
	window, err := r.window()
	zone, zoneErr := time.LoadLocation(string(r.TimeZone))
	return &gate{window: window, zone: zone, now: time.Now}, errors.Join(err, zoneErr)
}

// gate gives the gate of an agent that goes on.
func (k *kubernetes) gate() (certsync.Gate, error) {
	g, err := newGate(k.cfg.Trust.Restarts)
	if err != nil || !k.wantsSlots() {
		return g, err
	}
	g.slots, g.ready = uint32(k.cfg.Trust.Restarts.Concurrency), k.ready
	if k.permits != nil {
		g.permit = k.permits.Permit
		return g, nil
	}
	g.refusal = certsync.Shut{
		Reason: certsync.WaitingForSlot,
		Detail: fmt.Sprintf("nobody can tell whether another node restarts: %v", k.why),
		Remedy: "give the pod a service account (automountServiceAccountToken: true), or set trust.restarts.concurrency: 0, which lets all nodes restart at once; then restart the agent",
	}
	return g, nil
}

// passGate gives the gate of a single pass. It waits for nobody.
func passGate(r RestartsConfig, pod bool) (certsync.Gate, error) {
	g, err := newGate(r)
	if err != nil || !pod || r.Concurrency == 0 {
		return g, err
	}
	g.slots = uint32(r.Concurrency)
	g.refusal = certsync.Shut{
		Reason: certsync.WaitingForSlot,
		Detail: "a single pass does not wait for a restart slot of the cluster: the DaemonSet takes the restart up, and --trust.restarts.concurrency=0 makes it at once, whatever other nodes do",
		Remedy: "none, where the DaemonSet runs; or --trust.restarts.concurrency=0",
	}
	return g, nil
}

// Enter implements certsync.Gate.
func (g *gate) Enter() (leave func(), shut certsync.Shut) {
	if shut := g.outside(); shut.Reason != "" || g.slots == 0 {
		return nil, shut
	}
	if g.permit == nil {
		return nil, g.refusal
	}
	release, ok, why := g.permit()
	if !ok {
		return nil, certsync.Shut{
			Reason: certsync.WaitingForSlot, Detail: why,
			Remedy: "none: it is restarted when its turn comes; kubectl get leases in the agent's namespace shows whose turn it is",
		}
	}
	return release, certsync.Shut{}
}

// Look implements certsync.Gate.
func (g *gate) Look() certsync.Shut {
	if shut := g.outside(); shut.Reason != "" || g.slots == 0 {
		return shut
	}
	return certsync.Shut{
		Reason: certsync.WaitingForSlot,
		Detail: fmt.Sprintf("it would have to wait for a restart slot of the cluster, which has %d", g.slots),
	}
}

// Ready implements certsync.Gate.
func (g *gate) Ready() <-chan struct{} { return g.ready }

// outside says that the window is closed, if it is.
func (g *gate) outside() certsync.Shut {
	now := g.now()
	opens := g.window.UntilOpen(now)
	if opens == 0 {
		return certsync.Shut{}
	}
	return certsync.Shut{
		Reason: certsync.OutsideWindow,
		Detail: "no restart may begin before " + now.Add(opens).In(g.zone).Format("Mon 2006-01-02 15:04 MST"),
		Remedy: "none: it is restarted then; or change trust.restarts",
		Again:  opens,
	}
}
