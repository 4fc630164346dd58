package cluster

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"net/url"
	"strings"
	"time"
	"unicode"
)

// maxMessage is the longest message of an Event, in bytes, as events.k8s.io has
// it.
const maxMessage = 1024

// Event is one Event object of the API's core group.
type Event struct {
	Name string
	About
	// Reason is the cause as Kubernetes writes it: OrphanedAnswer.
	Reason, Message string
	Warning         bool
	// Node is the node that reports it.
	Node string
	// First and Last are when it happened first and last, Count is how often.
	First, Last time.Time
	Count       uint64
}

// About is the object that an Event is about: a pod, or without a namespace a
// node.
type About struct{ Namespace, Name, UID string }

// eventName is a name that is the same when a request is sent once more, so that
// one that was carried out without our knowledge makes no second Event.
func eventName(key eventKey, node string, first time.Time) string {
	sum := sha256.Sum256([]byte(strings.Join([]string{
		key.Namespace, key.Name, key.UID, node, key.cause, key.subject, first.UTC().Format(time.RFC3339Nano),
	}, "\x00")))
	name := key.Name
	if len(name) > 200 { // of 253
		name = strings.TrimRight(name[:200], ".-")
	}
	return name + "." + hex.EncodeToString(sum[:8])
}

// reason writes a cause (orphaned_answer) as Events have it (OrphanedAnswer).
func reason(cause string) string {
	var b strings.Builder
	for word := range strings.SplitSeq(cause, "_") {
		if word != "" {
			b.WriteString(strings.ToUpper(word[:1]) + word[1:])
		}
	}
	return b.String()
}

// clean makes a message of text that may have come out of a packet: one line,
// and no more of it than an Event may have.
func clean(message string) string {
	message = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(message, "?"))
	if len(message) <= maxMessage {
		return message
	}
	const more = "…"
	return strings.ToValidUTF8(message[:maxMessage-len(more)], "") + more
}

// CreateEvent creates an Event. ErrConflict says that there is one of its name.
func (c *Client) CreateEvent(ctx context.Context, e Event) error {
	_, err := c.do(ctx, call{method: http.MethodPost, path: eventPath(e.Namespace), body: encodeEvent(e)})
	return err
}

// RaiseEvent writes the count, the time and the message of an Event that exists.
func (c *Client) RaiseEvent(ctx context.Context, e Event) error {
	_, err := c.do(ctx, call{
		method: http.MethodPatch, path: eventPath(e.Namespace) + "/" + url.PathEscape(e.Name),
		contentType: "application/merge-patch+json",
		body:        map[string]any{"count": eventCount(e.Count), "lastTimestamp": e.Last.UTC().Format(time.RFC3339), "message": e.Message},
	})
	return err
}

// eventPath is where Events are. Those about nodes, which have no namespace, are
// in default.
func eventPath(namespace string) string {
	if namespace == "" {
		namespace = "default"
	}
	return "/api/v1/namespaces/" + url.PathEscape(namespace) + "/events"
}

// eventCount is a count as the API can hold it.
func eventCount(n uint64) int32 { return int32(min(n, 1<<31-1)) }

func encodeEvent(e Event) map[string]any {
	namespace, kind, severity := e.Namespace, "Pod", "Normal"
	about := map[string]any{"apiVersion": "v1", "name": e.About.Name, "uid": e.UID, "namespace": e.Namespace}
	if namespace == "" {
		namespace, kind = "default", "Node"
		delete(about, "namespace")
	}
	if e.Warning {
		severity = "Warning"
	}
	about["kind"] = kind
	return map[string]any{
		"apiVersion": "v1", "kind": "Event",
		"metadata":       map[string]any{"name": e.Name, "namespace": namespace},
		"involvedObject": about,
		"reason":         e.Reason, "message": e.Message, "type": severity,
		"source":             map[string]any{"component": "nodestead", "host": e.Node},
		"reportingComponent": "nodestead", "reportingInstance": e.Node,
		"firstTimestamp": e.First.UTC().Format(time.RFC3339), "lastTimestamp": e.Last.UTC().Format(time.RFC3339),
		"count": eventCount(e.Count),
	}
}
