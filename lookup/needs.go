package lookup

// needs says whether packets that were seen beyond the clients' links up to a
// time may tell what became of a lookup: one that began before has no answer
// yet, or will be reported all the same.
func (t *tracker) needs(until int64) bool {
	if t.wheel.held > 0 || len(t.troubles)-1 > len(t.freeTroubles) {
		return true
	}
	// No older one is pending: it would be in a slot of the wheel by now.
	for _, f := range t.wheel.fresh[t.wheel.head:] {
		e := t.store.at(f.entry)
		if f.valid(&t.store) {
			if e.start > until {
				return false
			}
			if !e.is(over) || t.remarkable(e) {
				return true
			}
		}
	}
	return false
}

// skipped tells that such packets were not handed over up to a time.
func (t *tracker) skipped(until int64) {
	t.journal.skipped = max(t.journal.skipped, min(until, t.ticked))
}
