package lookup

const (
	journalSize  = 128 << 10 // records
	journalChunk = 4096
	journalHeads = 16 << 10
	outOfOrder   = int64(keepFor + 2*slowestBeat) // nanoseconds by which records may be
	maxLook      = 4096                           // records that one look back visits at most
)

// record is a packet that was seen beyond the client's own link. Most lookups
// are answered, and nobody ever asks where their packets passed; so all that is
// done for a packet is to write this.
type record struct {
	low, hash, prev uint32 // low and high are the time, in microseconds after the journal's base
	high            uint16
	place           uint16
	server          uint16 // who is asked, or answers
	port            uint16 // of the other side
	rcode           uint8
	out             bool // the node sent it: a question on its way, else an answer
}

// journal is a ring of records. Those of a few message ids form a chain from the
// newest to the oldest, so that a look back visits few of them.
type journal struct {
	chunks [journalSize / journalChunk][]record
	heads  []uint32 // by id: the number of the newest record
	base   int64    // time of the first record
	count  uint32   // number of the newest record; 0 is none
	filled bool     // it has come round: older records were overwritten
	// skipped is until when packets were not even written down.
	skipped int64
}

func newJournal() journal { return journal{heads: make([]uint32, journalHeads)} }

func (j *journal) get(n uint32) *record {
	n %= journalSize
	return &j.chunks[n/journalChunk][n%journalChunk]
}

// add writes a record of a message id at a time.
func (j *journal) add(id uint16, at int64, r record) {
	j.count++
	n := j.count % journalSize
	if j.chunks[n/journalChunk] == nil {
		j.chunks[n/journalChunk] = make([]record, journalChunk)
	}
	j.filled = j.filled || j.count == journalSize
	if j.base == 0 {
		j.base = at
	}
	at = max(at-j.base, 0) / 1000
	r.low, r.high, r.prev = uint32(at), uint16(at>>32), j.heads[id%journalHeads]
	*j.get(j.count) = r
	j.heads[id%journalHeads] = j.count
}

// at gives a record's time.
func (j *journal) at(r *record) int64 { return j.base + (int64(r.high)<<32|int64(r.low))*1000 }

// latest is the time of the newest record.
func (j *journal) latest() int64 {
	if j.count == 0 {
		return 0
	}
	return j.at(j.get(j.count))
}

// reaches says whether nothing after a time is missing.
func (j *journal) reaches(since int64) bool {
	return since > j.skipped && (!j.filled || j.at(j.get(j.count+1)) <= since-outOfOrder)
}

// look visits the records of a message since a time that have a number after
// another, the last one first; 0 is before all. It gives false when it could not
// visit all.
func (j *journal) look(id uint16, hash uint32, since int64, after uint32, visit func(r *record)) bool {
	n := j.heads[id%journalHeads]
	for age, steps := uint32(0), 0; n != 0; steps++ {
		older := j.count - n
		if older >= journalSize || older < age || after != 0 && int32(n-after) <= 0 {
			break // overwritten, or visited before
		}
		r := j.get(n)
		if j.at(r) < since-outOfOrder {
			break
		}
		if steps == maxLook {
			return false
		}
		if r.hash == hash {
			visit(r)
		}
		age, n = older+1, r.prev
	}
	return j.reaches(since)
}
