package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"time"
)

// microTime is how the API writes a time with microseconds.
const microTime = "2006-01-02T15:04:05.000000Z07:00"

func (c *Client) leasePath(name string) string {
	path := "/apis/coordination.k8s.io/v1/namespaces/" + url.PathEscape(c.namespace) + "/leases"
	if name != "" {
		path += "/" + url.PathEscape(name)
	}
	return path
}

// Get reads a Lease of the pod's namespace.
func (c *Client) Get(ctx context.Context, name string) (Lease, error) {
	return c.lease(ctx, name, call{method: http.MethodGet, path: c.leasePath(name)})
}

// Create creates a Lease in the pod's namespace.
func (c *Client) Create(ctx context.Context, l Lease) (Lease, error) {
	l.Version = ""
	return c.lease(ctx, l.Name, call{method: http.MethodPost, path: c.leasePath(""), body: encodeLease(l)})
}

// Update writes a Lease if it still has the version of l.
func (c *Client) Update(ctx context.Context, l Lease) (Lease, error) {
	if l.Version == "" {
		return Lease{}, errors.New("update of a lease without its version")
	}
	got, err := c.lease(ctx, l.Name, call{method: http.MethodPut, path: c.leasePath(l.Name), body: encodeLease(l)})
	if err == nil && got.Holder != l.Holder {
		// What was written is not what was meant. An admission webhook?
		return Lease{}, fmt.Errorf("update lease %s: it was given to %q, and the answer has %q", l.Name, l.Holder, got.Holder)
	}
	return got, err
}

func (c *Client) lease(ctx context.Context, name string, r call) (Lease, error) {
	answer, err := c.do(ctx, r)
	if err != nil {
		return Lease{}, err
	}
	l, err := decodeLease(answer)
	if err == nil && l.Name != name {
		err = fmt.Errorf("the answer is about %q", l.Name)
	}
	if err != nil {
		return Lease{}, fmt.Errorf("read lease %s: %w", name, err)
	}
	return l, nil
}

// decodeLease reads a Lease object. A Lease whose version or holder is not
// certain is an error.
func decodeLease(data []byte) (Lease, error) {
	var object struct {
		APIVersion string `json:"apiVersion"`
		Kind       string
		Metadata   struct{ Name, ResourceVersion string }
		Spec       struct {
			HolderIdentity       string
			LeaseDurationSeconds int32
			LeaseTransitions     int32
			AcquireTime          time.Time
			RenewTime            time.Time
		}
	}
	if err := json.Unmarshal(data, &object); err != nil {
		return Lease{}, err
	}
	if object.Kind != "Lease" || object.APIVersion != "coordination.k8s.io/v1" {
		return Lease{}, fmt.Errorf("want a Lease of coordination.k8s.io/v1, have %q of %q", object.Kind, object.APIVersion)
	}
	if object.Metadata.ResourceVersion == "" {
		return Lease{}, errors.New("it has no resource version")
	}
	spec := object.Spec
	l := Lease{
		Name: object.Metadata.Name, Version: object.Metadata.ResourceVersion, Holder: spec.HolderIdentity,
		TTL: max(time.Duration(spec.LeaseDurationSeconds)*time.Second, 0), Transitions: int(spec.LeaseTransitions),
		Acquired: spec.AcquireTime, Renewed: spec.RenewTime,
	}
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.UseNumber() // what is not ours goes back as it came
	if err := decoder.Decode(&l.object); err != nil {
		return Lease{}, err
	}
	return l, nil
}

// encodeLease gives the object of a Lease, with all of it that is not ours.
func encodeLease(l Lease) map[string]any {
	object := map[string]any{"apiVersion": "coordination.k8s.io/v1", "kind": "Lease"}
	maps.Copy(object, l.object)
	metadata := map[string]any{}
	if l.object == nil {
		metadata["labels"] = map[string]string{"app.kubernetes.io/name": "nodestead"}
	}
	if old, ok := object["metadata"].(map[string]any); ok {
		maps.Copy(metadata, old)
	}
	metadata["name"] = l.Name
	if l.Version != "" {
		metadata["resourceVersion"] = l.Version
	}
	spec := map[string]any{}
	if old, ok := object["spec"].(map[string]any); ok {
		maps.Copy(spec, old)
	}
	spec["holderIdentity"] = l.Holder
	spec["leaseTransitions"] = l.Transitions
	if l.TTL >= time.Second {
		spec["leaseDurationSeconds"] = int(l.TTL / time.Second)
	}
	for key, t := range map[string]time.Time{"acquireTime": l.Acquired, "renewTime": l.Renewed} {
		if !t.IsZero() {
			spec[key] = t.UTC().Format(microTime)
		}
	}
	object["metadata"], object["spec"] = metadata, spec
	return object
}
