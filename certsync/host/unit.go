package host

import (
	"context"
	"encoding/hex"
	"fmt"
	"path"
	"slices"
	"time"
)

// Unit is what systemd says of a service.
type Unit struct {
	Name         string
	ActiveState  string    // active, inactive, failed, activating, deactivating, reloading
	Result       string    // success, start-limit-hit, exit-code, …
	InvocationID string    // lower-case hex, another one after each start
	Started      time.Time // ActiveEnterTimestamp; zero if never
	MainPID      int
	Restarts     int // NRestarts: automatic restarts
	// RequiredBy are the units that stop when this one does, of those that systemd
	// has loaded, as it has all that run.
	RequiredBy []string
	// TriggeredBy are the sockets that start it.
	TriggeredBy []string
}

// Active tells whether it runs.
func (u Unit) Active() bool { return u.ActiveState == "active" }

// Unit asks for a service (ErrNoUnit). The Name is the unit's own where an alias
// was asked for. Of a socket it tells what sockets have; of other units Result is
// empty.
func (s *Systemd) Unit(ctx context.Context, name string) (Unit, error) {
	u, err := s.unit(ctx, name)
	if err != nil {
		return Unit{}, fmt.Errorf("unit %s: %w", name, err)
	}
	return u, nil
}

func (s *Systemd) unit(ctx context.Context, name string) (Unit, error) {
	all, err := s.conn.GetUnitPropertiesContext(ctx, name)
	if err != nil {
		return Unit{}, s.explain(err)
	}
	if value[string](all, "LoadState") == "not-found" {
		return Unit{}, ErrNoUnit
	}
	u := Unit{
		Name:         value[string](all, "Id"),
		ActiveState:  value[string](all, "ActiveState"),
		InvocationID: hex.EncodeToString(value[[]byte](all, "InvocationID")),
		TriggeredBy:  value[[]string](all, "TriggeredBy"),
	}
	if at := value[uint64](all, "ActiveEnterTimestamp"); at != 0 { // µs
		u.Started = time.UnixMicro(int64(at))
	}
	// The relations along which a stop spreads (Requires=, Requisite=, BindsTo=
	// and PartOf= of the others; systemd.unit(5)).
	for _, relation := range []string{"RequiredBy", "RequisiteOf", "BoundBy", "ConsistsOf"} {
		u.RequiredBy = append(u.RequiredBy, value[[]string](all, relation)...)
	}
	slices.Sort(u.RequiredBy)
	u.RequiredBy = slices.Compact(u.RequiredBy)
	switch path.Ext(u.Name) {
	case ".service":
		err = s.service(ctx, &u)
	case ".socket":
		u.Result, err = property[string](ctx, s, u.Name, "Socket", "Result")
	}
	return u, err
}

// service adds what only services have, one by one: they have some 300
// properties, and systemd looks into the cgroup for some of them.
func (s *Systemd) service(ctx context.Context, u *Unit) (err error) {
	if u.Result, err = property[string](ctx, s, u.Name, "Service", "Result"); err != nil {
		return err
	}
	pid, err := property[uint32](ctx, s, u.Name, "Service", "MainPID")
	if err != nil {
		return err
	}
	restarts, err := property[uint32](ctx, s, u.Name, "Service", "NRestarts")
	u.MainPID, u.Restarts = int(pid), int(restarts)
	return err
}

// property asks for one property of a unit of a kind ("Service").
func property[T any](ctx context.Context, s *Systemd, unit, kind, name string) (T, error) {
	var v T
	p, err := s.conn.GetUnitTypePropertyContext(ctx, unit, kind, name)
	if err != nil {
		return v, fmt.Errorf("%s: %w", name, s.explain(err))
	}
	if err := p.Value.Store(&v); err != nil {
		return v, fmt.Errorf("%s: %w", name, err)
	}
	return v, nil
}

// value is a property's value, or zero where this systemd does not have it.
func value[T any](all map[string]any, name string) T {
	v, _ := all[name].(T)
	return v
}
