package conntrack

import (
	"encoding/binary"
	"math"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestMeter(t *testing.T) {
	var m meter
	m.add(0, cpuCounters{9: math.MaxUint32 - 1, statClashResolve: 7})
	m.add(1, cpuCounters{9: 5})
	if got, want := m.statistics().InsertFailed, uint64(math.MaxUint32-1+5); got != want {
		t.Fatalf("first reading: insert_failed %d, want %d", got, want)
	}
	m.add(0, cpuCounters{9: 3, statClashResolve: 7}) // wrapped: 5 more
	m.add(1, cpuCounters{9: 6})
	if got, want := m.statistics().InsertFailed, uint64(math.MaxUint32-1+5+5+1); got != want {
		t.Errorf("after a wrap: insert_failed %d, want %d", got, want)
	}
	m.add(1, cpuCounters{9: 2}) // began anew
	if got, want := m.statistics().InsertFailed, uint64(math.MaxUint32-1+5+5+1+2); got != want {
		t.Errorf("after a restart: insert_failed %d, want %d", got, want)
	}
	if got := m.statistics().ClashResolved; got != 7 {
		t.Errorf("clash_resolve %d, want 7", got)
	}
}

// A reply as the kernel sends it, and one of a kernel before 5.10.
func TestMeterTakesReplies(t *testing.T) {
	reply := func(cpu uint16, counters map[uint16]uint32) []byte {
		b := binary.BigEndian.AppendUint16([]byte{0, 0}, cpu)
		for kind, v := range counters {
			b = binary.NativeEndian.AppendUint16(b, 8)
			b = binary.NativeEndian.AppendUint16(b, kind)
			b = binary.BigEndian.AppendUint32(b, v)
		}
		return b
	}
	var m meter
	for _, tc := range []struct {
		b     []byte
		clash bool
	}{
		{reply(0, map[uint16]uint32{10: 4, 13: 1, statClashResolve: 7, 15: 2}), true},
		{reply(1, map[uint16]uint32{10: 5, 9: 6}), false},
	} {
		if clash, err := m.take(tc.b); err != nil || clash != tc.clash {
			t.Errorf("take(% x): clash_resolve there %v, error %v", tc.b, clash, err)
		}
	}
	want := Statistics{Drop: 9, InsertFailed: 6, SearchRestart: 1, ClashResolved: 7, ChainTooLong: 2}
	if diff := cmp.Diff(want, m.statistics()); diff != "" {
		t.Errorf("statistics (-want +got):\n%s", diff)
	}
	if _, err := m.take([]byte{1}); err == nil {
		t.Error("a reply of one byte was taken")
	}
}

func TestDropsClassified(t *testing.T) {
	to := noon.Add(time.Second)
	tests := []struct {
		name        string
		before, now Statistics
		want        Drop
		dropped     bool
	}{
		{name: "nothing", before: Statistics{Drop: 3}, now: Statistics{Drop: 3, ClashResolved: 9}},
		{name: "clash", now: Statistics{Drop: 2, InsertFailed: 2}, want: Drop{Clash: 2}, dropped: true},
		{name: "table full", now: Statistics{Drop: 4, EarlyDrop: 1, Entries: 10, Limit: 10}, want: Drop{TableFull: 4, Evicted: 1, Entries: 10, Limit: 10}, dropped: true},
		{name: "chain too long", now: Statistics{InsertFailed: 3, ChainTooLong: 3}, want: Drop{ChainTooLong: 3}, dropped: true},
		{name: "all", now: Statistics{Drop: 5, InsertFailed: 3, ChainTooLong: 1}, want: Drop{Clash: 2, TableFull: 3, ChainTooLong: 1}, dropped: true},
		{name: "merges on Linux 4.7 to 5.9 count as failed insertions", now: Statistics{InsertFailed: 8}},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			got, dropped := drops(tc.before, tc.now, noon, to)
			if dropped != tc.dropped {
				t.Fatalf("dropped %v, want %v", dropped, tc.dropped)
			}
			tc.want.From, tc.want.To = noon, to
			if diff := cmp.Diff(tc.want, got); dropped && diff != "" {
				t.Errorf("drop (-want +got):\n%s", diff)
			}
		})
	}
}
