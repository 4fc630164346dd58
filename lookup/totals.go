package lookup

import (
	"fmt"
	"math"
	"math/bits"
	"time"
)

// outcomes gives a result the name that is reported.
func (r result) outcome() Outcome {
	switch r {
	case resultNoError:
		return NoError
	case 1:
		return FormErr
	case resultServFail:
		return ServFail
	case resultNXDomain:
		return NXDomain
	case 4:
		return NotImp
	case 5:
		return Refused
	case resultNoData:
		return NoData
	case resultTimeout:
		return Timeout
	case resultNone:
		return ""
	default:
		return Outcome(fmt.Sprintf("rcode_%d", r))
	}
}

const (
	// maxKinds is how many kinds of lookups are counted apart for a client: with
	// more, it asks for them in order to fill memory.
	maxKinds = 32
	// otherType is the type that all further kinds are counted under. No
	// question can have it.
	otherType = 0
)

// cell counts one kind of lookup.
type cell struct {
	qtype  uint16
	result result
	n      uint64
}

// totals counts what one client's lookups by one resolver came to, since the
// last report.
type totals struct {
	cells           []cell // kept from report to report, their counts are not
	durations       Durations
	retransmissions uint64
	wasted          uint64
	worst           int
	worstName       string
	dirty           bool
}

func (t *totals) count(qtype uint16, r result) {
	for i := range t.cells {
		if c := &t.cells[i]; c.qtype == qtype && c.result == r {
			c.n++
			return
		}
	}
	if len(t.cells) >= maxKinds && qtype != otherType {
		t.count(otherType, r)
		return
	}
	t.cells = append(t.cells, cell{qtype, r, 1})
}

// report gives the counts and starts over.
func (t *totals) report(client Client, r Resolver, now, seen int64) Totals {
	out := Totals{
		Client: client, Resolver: r, At: when(now), Seen: when(seen), Durations: t.durations, Retransmissions: t.retransmissions,
		Wasted: t.wasted, Name: t.worstName, NameWasted: t.worst,
	}
	for i, c := range t.cells {
		if c.n > 0 {
			out.Lookups = append(out.Lookups, Count{Type: Type(c.qtype), Outcome: c.result.outcome(), N: c.n})
			t.cells[i].n = 0
		}
	}
	*t = totals{cells: t.cells}
	return out
}

func (d *Durations) add(took int64) {
	d.Count++
	d.Sum += time.Duration(took)
	i := 0
	for i < len(DurationBounds) && took > int64(DurationBounds[i]) {
		i++
	}
	d.Classic[i]++
	d.Native[nativeBucket(took)]++
}

// nativeBounds are the upper bounds of the native buckets in nanoseconds,
// rounded down, and octaves is the first bucket whose bound is 2^i or more.
var nativeBounds, octaves = func() (bounds [nativeBuckets - 1]int64, octaves [64]uint8) {
	for i := range bounds {
		bounds[i] = int64(math.Exp2(float64(i+NativeOffset)/8)*1e9 + 1e-6)
	}
	for i := range octaves {
		for int(octaves[i]) < len(bounds) && uint64(bounds[octaves[i]]) < 1<<i {
			octaves[i]++
		}
	}
	return bounds, octaves
}()

// nativeBucket gives the bucket of a time in nanoseconds.
func nativeBucket(ns int64) int {
	if ns <= 0 {
		return 0
	}
	i := int(octaves[bits.Len64(uint64(ns))-1])
	for i < len(nativeBounds) && nativeBounds[i] < ns {
		i++
	}
	return i
}
