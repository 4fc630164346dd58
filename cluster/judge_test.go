package cluster

import (
	"testing"
	"time"
)

// TestJudge looks at one slot at several times.
func TestJudge(t *testing.T) {
	const me, ttl = "node-a_1", time.Minute
	type look struct {
		at   time.Duration
		l    Lease
		want verdict
	}
	gone := Lease{Version: "1", Holder: "node-b_1", TTL: ttl}
	tests := map[string]struct {
		patience time.Duration
		looks    []look
	}{
		"free": {0, []look{{0, Lease{Version: "1"}, free}}},
		"ours": {0, []look{{0, Lease{Version: "1", Holder: me, TTL: ttl}, ours}}},
		"the holder is gone": {0, []look{
			{0, gone, held}, {ttl - 1, gone, held}, {ttl, gone, free},
		}},
		"the holder lives": {0, []look{
			{0, gone, held}, {ttl / 2, Lease{Version: "2", Holder: "node-b_1", TTL: ttl}, held},
			{ttl, Lease{Version: "2", Holder: "node-b_1", TTL: ttl}, held}, {ttl * 3 / 2, Lease{Version: "2", Holder: "node-b_1", TTL: ttl}, free},
		}},
		"an old answer between new ones": {0, []look{
			{0, gone, held}, {ttl / 2, Lease{Version: "2", Holder: "node-b_1", TTL: ttl}, held}, {ttl, gone, held},
		}},
		"our own life is longer": {0, []look{
			{0, Lease{Version: "1", Holder: "node-b_1", TTL: time.Second}, held}, {ttl - 1, Lease{Version: "1", Holder: "node-b_1", TTL: time.Second}, held},
		}},
		"the holder's life is longer": {0, []look{
			{0, Lease{Version: "1", Holder: "node-b_1", TTL: 2 * ttl}, held}, {ttl, Lease{Version: "1", Holder: "node-b_1", TTL: 2 * ttl}, held},
			{2 * ttl, Lease{Version: "1", Holder: "node-b_1", TTL: 2 * ttl}, free},
		}},
		"a life of years": {0, []look{
			{0, Lease{Version: "1", Holder: "x", TTL: 1e5 * time.Hour}, held}, {longestTTL - 1, Lease{Version: "1", Holder: "x", TTL: 1e5 * time.Hour}, held},
			{longestTTL, Lease{Version: "1", Holder: "x", TTL: 1e5 * time.Hour}, free},
		}},
		"no life at all": {0, []look{{0, Lease{Version: "1", Holder: "x"}, held}, {ttl, Lease{Version: "1", Holder: "x"}, free}}},
		"stamps mean nothing": {0, []look{
			{0, Lease{Version: "1", Holder: "x", TTL: ttl, Renewed: time.Unix(0, 0)}, held},
			{ttl, Lease{Version: "1", Holder: "x", TTL: ttl, Renewed: time.Unix(1e10, 0)}, free},
		}},
		"patience with a free one": {ttl, []look{
			{0, Lease{Version: "1"}, held}, {ttl - 1, Lease{Version: "1"}, held}, {ttl, Lease{Version: "1"}, free},
		}},
		"patience is worn anew after a holder": {ttl, []look{
			{0, Lease{Version: "1"}, held}, {ttl / 2, Lease{Version: "2", Holder: "x", TTL: ttl}, held}, {ttl, Lease{Version: "3"}, held}, {2 * ttl, Lease{Version: "3"}, free},
		}},
		"patience after a holder that is gone": {ttl, []look{{0, gone, held}, {ttl, gone, held}, {2 * ttl, gone, free}}},
		"nobody yet":                           {0, []look{{0, Lease{Version: "1", Holder: newSlot, TTL: ttl}, held}, {ttl, Lease{Version: "1", Holder: newSlot, TTL: ttl}, free}}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			var s sight
			begin := time.Now()
			for _, l := range tc.looks {
				if got := s.judge(l.l, me, begin.Add(l.at), ttl, tc.patience); got != l.want {
					t.Errorf("after %v: verdict %d, want %d", l.at, got, l.want)
				}
			}
		})
	}
}

func TestPace(t *testing.T) {
	p := defaultPace()
	for range 1000 {
		if d := p.begin(); d <= 0 || d > p.first {
			t.Fatalf("the first look after %v", d)
		}
		for answered := range 12 {
			longest := p.longest
			if answered == 0 {
				longest = p.shortest
			}
			if d := p.next(answered, 0); d < p.shortest/2 || d > longest*3/2+1 {
				t.Fatalf("look %d after %v", answered, d)
			}
		}
		if d := p.next(5, 1); d > p.retry*3/2+1 {
			t.Fatalf("after an error %v", d)
		}
		if d := p.next(0, 1000); d < p.longest/2 || d > p.longest*3/2+1 {
			t.Fatalf("after many errors %v", d)
		}
	}
	if got := p.patience(2); got < 2*p.longest*3/2 {
		t.Errorf("patience %v is less than a worker needs for two slots", got)
	}
}

func TestNewSlots(t *testing.T) {
	good := SlotsConfig{Node: "n", Slots: 1}
	if _, err := NewSlots(good); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(*SlotsConfig){
		"no node":        func(c *SlotsConfig) { c.Node = "" },
		"no slots":       func(c *SlotsConfig) { c.Slots = 0 },
		"too many slots": func(c *SlotsConfig) { c.Slots = 21 },
		"no window":      func(c *SlotsConfig) { c.Windows = make([]Window, 1) },
	} {
		cfg := good
		change(&cfg)
		if _, err := NewSlots(cfg); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
