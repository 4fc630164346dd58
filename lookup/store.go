package lookup

// An entry is a lookup from its first question until it was counted. It holds
// no pointer, so a hundred thousand of them cost the garbage collector nothing.
// Times within it are in units of 100 ns after its start.
type entry struct {
	start int64 // of the first question, nanoseconds since 1970

	next     uint32 // of its hash chain, or of the free ones
	later    uint32 // of its slot of the wheel
	key      uint32 // hash of client, port and id
	hash     uint32 // hash of id, name and type
	serial   uint32 // counts the lookups
	nameHash uint32
	pair     uint32 // the other lookup of its call; of an alias, the lookup that it stands for
	trouble  uint32
	long     uint32 // block with the rest of a name that does not fit

	asked uint32 // when the last attempt began
	heard uint32 // when the last packet of it passed
	ended uint32 // when it was over

	servers  [3]uint16 // whom the client asked
	client   uint16
	place    uint16 // the link that it was asked on
	port, id uint16
	ident    uint16 // IPv4 identification of the first question
	qtype    uint16
	flags    flags

	attempts uint8
	round    uint8 // the servers that were asked in the last attempt, as bits
	winner   uint8 // the server whose answer ended it
	result   result
	resolver resolverCode
	sign     signature
	search   uint8 // 1 + the search that it belongs to
	step     uint8
	length   uint8 // of the name
	name     [entryName]byte
}

// entryName makes an entry 128 octets, two cache lines.
const entryName = 41

type flags uint16

const (
	over      flags = 1 << iota // it has its outcome
	done                        // it was counted: only the wheel still holds it
	indexed                     // it is to be found by its key
	failing                     // all it got was an error, which it may survive
	timedOut                    // the client had to ask again, or gave up
	stalled                     // it was unanswered for a second
	truncated                   // the answer had TC
	byTCP                       // and the client went on by TCP
	uncertain                   // not all of it could be seen
	waiting                     // it is in its client's list of those in trouble
	alias                       // stands for a lookup that went on from another socket
	fromHost                    // the node itself asked
	slotted                     // it is in a slot of the wheel
)

func (e *entry) is(f flags) bool { return e.flags&f != 0 }

const unit = 100 // nanoseconds

// since gives a time in the entry's units.
func (e *entry) since(at int64) uint32 { return uint32(min(max(at-e.start, 0)/unit, 1<<32-1)) }

func (e *entry) time(units uint32) int64 { return e.start + int64(units)*unit }

func (e *entry) took() int64 { return int64(e.ended) * unit }

// asks gives the position of a server among those the client asked, or -1.
func (e *entry) asks(server uint16) int {
	for i, s := range e.servers {
		if s == server && (s != 0 || i == 0) {
			return i
		}
	}
	return -1
}

const (
	entryChunk = 1024
	blockChunk = 256
	blockData  = 60
)

// block is a piece of a long name.
type block struct {
	next uint32
	data [blockData]byte
}

// store holds the entries, in chunks that are made when they are needed, and
// finds them by key. Number 0 is none.
type store struct {
	limit   int
	chunks  [][]entry
	free    uint32
	size    uint32 // numbers given out so far
	live    int
	buckets []uint32

	blocks    [][]block
	freeBlock uint32
	blockSize uint32
}

func newStore(limit int) store {
	return store{limit: limit, buckets: make([]uint32, entryChunk), size: 1, blockSize: 1}
}

func (s *store) at(i uint32) *entry { return &s.chunks[i/entryChunk][i%entryChunk] }

// full says that there is no room for another entry.
func (s *store) full() bool { return s.live >= s.limit }

// add makes an entry, whose fields are all zero but the name's. It gives 0 when
// there is no room for the name.
func (s *store) add(name []byte) uint32 {
	i := s.free
	if i != 0 {
		s.free = s.at(i).next
	} else {
		i = s.size
		if int(i/entryChunk) == len(s.chunks) {
			s.chunks = append(s.chunks, make([]entry, entryChunk))
		}
		s.size++
	}
	e := s.at(i)
	*e = entry{length: uint8(len(name))}
	s.live++
	if n := copy(e.name[:], name); n < len(name) && !s.rest(&e.long, name[n:]) {
		s.remove(i)
		return 0
	}
	return i
}

func (s *store) rest(link *uint32, name []byte) bool {
	for len(name) > 0 {
		i := s.freeBlock
		if i != 0 {
			s.freeBlock = s.block(i).next
		} else {
			i = s.blockSize
			if int(i) > s.limit/2+blockChunk {
				return false
			}
			if int(i/blockChunk) == len(s.blocks) {
				s.blocks = append(s.blocks, make([]block, blockChunk))
			}
			s.blockSize++
		}
		b := s.block(i)
		b.next = 0
		name = name[copy(b.data[:], name):]
		*link, link = i, &b.next
	}
	return true
}

func (s *store) block(i uint32) *block { return &s.blocks[i/blockChunk][i%blockChunk] }

// name gives an entry's name, in buf when it is a long one.
func (s *store) name(e *entry, buf *[maxName + 1]byte) []byte {
	if e.length <= entryName {
		return e.name[:e.length]
	}
	n := copy(buf[:], e.name[:])
	for i := e.long; i != 0 && n < int(e.length); i = s.block(i).next {
		n += copy(buf[n:e.length], s.block(i).data[:])
	}
	return buf[:n]
}

// remove frees an entry, which is in no list any more.
func (s *store) remove(i uint32) {
	e := s.at(i)
	s.freeBlocks(e)
	e.flags = 0
	e.next, s.free = s.free, i
	s.live--
}

// reuse makes an entry anew where another one is, in the same slot of the wheel.
func (s *store) reuse(i uint32, name []byte) bool {
	e := s.at(i)
	later, kept := e.later, e.flags&slotted
	s.freeBlocks(e)
	*e = entry{length: uint8(len(name)), later: later, flags: kept}
	n := copy(e.name[:], name)
	return n == len(name) || s.rest(&e.long, name[n:])
}

// bloated says that a flood is over, and its memory may be given back.
func (s *store) bloated() bool { return s.live == 0 && len(s.chunks) > 4 }

func (s *store) freeBlocks(e *entry) {
	for b := e.long; b != 0; {
		next := s.block(b).next
		s.block(b).next, s.freeBlock = s.freeBlock, b
		b = next
	}
	e.long = 0
}

// find gives the entry of a key; key is the hash of the others.
func (s *store) find(key uint32, client, port, id uint16) uint32 {
	for i := s.buckets[key&uint32(len(s.buckets)-1)]; i != 0; {
		e := s.at(i)
		if e.key == key && e.client == client && e.port == port && e.id == id {
			return i
		}
		i = e.next
	}
	return 0
}

// index makes an entry findable.
func (s *store) index(i uint32) {
	if s.live > len(s.buckets) {
		s.grow()
	}
	e := s.at(i)
	b := &s.buckets[e.key&uint32(len(s.buckets)-1)]
	e.next, *b = *b, i
	e.flags |= indexed
}

func (s *store) grow() {
	old := s.buckets
	s.buckets = make([]uint32, 2*len(old))
	for _, i := range old {
		for i != 0 {
			e := s.at(i)
			next := e.next
			b := &s.buckets[e.key&uint32(len(s.buckets)-1)]
			e.next, *b = *b, i
			i = next
		}
	}
}

// unindex takes an entry out of its chain.
func (s *store) unindex(i uint32) {
	e := s.at(i)
	if !e.is(indexed) {
		return
	}
	e.flags &^= indexed
	for b := &s.buckets[e.key&uint32(len(s.buckets)-1)]; *b != 0; b = &s.at(*b).next {
		if *b == i {
			*b = e.next
			return
		}
	}
}
