package cluster

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// EventAPI is the part of the API that Events need.
type EventAPI interface {
	CreateEvent(ctx context.Context, e Event) error
	RaiseEvent(ctx context.Context, e Event) error
}

// Finding is what an Event tells.
type Finding struct {
	// Cause is a word such as orphaned_answer.
	Cause string
	// Subject tells findings of one object and cause apart, such as those about
	// two daemons of a node. It is not shown.
	Subject string
	// Message is one line: what happened, and what to do.
	Message string
	// Warning is false for what is no trouble.
	Warning bool
	// Count is how often it happened.
	Count uint64
}

// Events writes Events: at once for the first finding of an object and cause,
// and after that at most every ten minutes, with the count of all. The requests
// of one node are limited, and what waits for them is bounded.
type Events struct {
	api  EventAPI
	node string
	log  *slog.Logger
	now  func() time.Time
	wake chan struct{}

	mu     sync.Mutex
	ledger *ledger
}

// NewEvents gives Events of a node. They are sent while Run runs.
func NewEvents(api EventAPI, node string, log *slog.Logger) *Events {
	return &Events{api: api, node: node, log: log, now: time.Now, wake: make(chan struct{}, 1), ledger: newLedger(node)}
}

// Pod notes a finding about a pod. It never blocks. kubectl describe shows only
// Events with the pod's UID.
func (e *Events) Pod(namespace, name, uid string, f Finding) {
	if namespace == "" || name == "" {
		return
	}
	e.take(About{Namespace: namespace, Name: name, UID: uid}, f)
}

// Node notes a finding about this node. It never blocks.
func (e *Events) Node(f Finding) {
	// The kubelet, too, gives a node's name as its UID in Events, and kubectl
	// describe looks for that.
	e.take(About{Name: e.node, UID: e.node}, f)
}

// Lost is how many of what was noted will be in no Event.
func (e *Events) Lost() uint64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.ledger.lost
}

func (e *Events) take(about About, f Finding) {
	f.Count = max(f.Count, 1)
	e.mu.Lock()
	e.ledger.note(e.now(), about, f)
	e.mu.Unlock()
	select {
	case e.wake <- struct{}{}:
	default: // it is awake already
	}
}

// Run sends Events until ctx ends. What waits then is not sent.
func (e *Events) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	failing := false
	for {
		e.mu.Lock()
		key, due, again := e.ledger.next(e.now())
		var event Event
		var made bool
		if due != nil {
			event, made = due.event, due.made
		}
		e.mu.Unlock()
		if due == nil {
			var tick <-chan time.Time
			if !again.IsZero() {
				timer.Reset(again.Sub(e.now()))
				tick = timer.C
			}
			select {
			case <-ctx.Done():
				return nil
			case <-tick:
			case <-e.wake:
			}
			continue
		}
		send := e.api.CreateEvent
		if made {
			send = e.api.RaiseEvent
		}
		err := send(ctx, event)
		if ctx.Err() != nil {
			return nil
		}
		e.mu.Lock()
		e.ledger.settle(e.now(), key, event.Count, err)
		e.mu.Unlock()
		// One line when it begins and one when it ends, not one for each.
		if bad := err != nil && !benign(err); bad != failing {
			failing = bad
			if bad {
				e.log.Warn("events cannot be written", "err", err)
			} else {
				e.log.Info("events are written again")
			}
		}
	}
}
