package lookup

import (
	"fmt"
	"net/netip"
	"time"
)

// Event is what the sensor reports: a Lookup, a Stalled, a Totals, a Loss or a
// Blindness. All of them are plain values, and belong to who gets them.
type Event interface{ event() }

// Resolver is the library that asked, told by its packets.
type Resolver string

// The resolvers.
const (
	Musl  Resolver = "musl"
	Glibc Resolver = "glibc"
	Go    Resolver = "go"    // the resolver of Go's net package
	Other Resolver = "other" // any other, or not enough was seen to tell
)

// Resolvers lists all of them.
func Resolvers() []Resolver { return []Resolver{Musl, Glibc, Go, Other} }

// Type is the type of a question (RFC 1035, section 3.2.2, and its successors).
type Type uint16

// The types that resolvers ask in pairs.
const (
	A    Type = 1
	AAAA Type = 28
)

// Outcome is how a lookup ended: an rcode in lower case, NoData or Timeout.
type Outcome string

// The outcomes. An rcode without a name here is "rcode_N".
const (
	NoError  Outcome = "noerror"
	FormErr  Outcome = "formerr"
	ServFail Outcome = "servfail"
	NXDomain Outcome = "nxdomain"
	NotImp   Outcome = "notimp"
	Refused  Outcome = "refused"
	// NoData is NOERROR without a record of the type that was asked (RFC 2308).
	NoData Outcome = "nodata"
	// Timeout: no acceptable answer ever came.
	Timeout Outcome = "timeout"
)

// Client is who asked.
type Client struct {
	// Addr is the address and port that the question came from.
	Addr netip.AddrPort
	// Link is the index of the node's link that it came in by, LinkName its
	// name: a pod's own link, or lo for the node itself.
	Link     int
	LinkName string
	// Host is true for the node itself and for pods in its network.
	Host bool
}

// Lookup is one question from one client socket with all its retransmissions,
// until it was answered or given up. Only those that an operator may have to
// know of are reported: see Lookup.TimedOut, Slow, Outcome, Truncated and Pair.
// All others are in Totals only.
type Lookup struct {
	Client Client
	// Nameserver is the address that the first question went to, as the client
	// sent it. LocalNameserver: it is an address of this node (NodeLocal
	// DNSCache), or is translated to one: healthy questions do not leave.
	Nameserver      netip.AddrPort
	LocalNameserver bool
	// Name is in presentation form, with a dot at its end; Type is its type.
	Name     string
	Type     Type
	Resolver Resolver

	// Start is when the first question passed the client's link, End when the
	// lookup was over: its acceptable answer, or the time it was given up.
	Start, End time.Time
	Outcome    Outcome
	// TimedOut: the client had to ask again because nothing acceptable came,
	// or gave up.
	TimedOut bool
	// Slow: an acceptable answer came, later than the configured time.
	Slow bool
	// Truncated: the answer had TC set; TCP: the client then asked by TCP.
	Truncated, TCP bool

	// Asked are the client's questions in order, those to several nameservers
	// included; at most MaxSights.
	Asked []Sight
	// Attempts is the number of times that the client asked; questions to
	// several nameservers at once are one attempt. Resends at once after a
	// SERVFAIL (musl) count, too.
	Attempts int
	// Left are the questions as they were seen at other links, on their way to
	// a server: To is the server that the node had translated the nameserver
	// to.
	Left []Sight
	// Entered are the answers as they were seen when they came in from a server.
	Entered []Sight
	// Answers are what passed the client's link, acceptable or not, in order.
	Answers []Answer
	// Unreachable are ICMP errors about the questions: From (without a port) is
	// who sent them, To the server that cannot be reached.
	Unreachable []Sight
	// Backends is what is known of the servers that the nameserver was
	// translated to lately.
	Backends []Backend
	// Uncertain is true when packets were lost, or records of them overwritten,
	// in the time of the lookup: what was not seen may have been there.
	Uncertain bool

	// Pair is the other lookup of the same resolver call (A and AAAA); nil when
	// there was none.
	Pair *Pair
	// Search are the names that the same client tried before for the same base
	// name, oldest first. SearchWentOn: it tried another after this one.
	Search       []Step
	SearchWentOn bool
}

// MaxSights is how many sights of one kind, and how many answers, a Lookup
// carries at most: the first ones.
const MaxSights = 16

// Sight is a packet at one link of the node. Beyond the client's own link the
// client's side is left out when the node had changed it (masquerade).
type Sight struct {
	At       time.Time
	LinkName string
	From, To netip.AddrPort
}

// Answer is an answer at the client's link.
type Answer struct {
	Sight
	Outcome Outcome
	// Acceptable: it came from an address that the client had asked.
	Acceptable bool
}

// Backend is a server that a nameserver was translated to.
type Backend struct {
	Addr netip.AddrPort
	// Answered is when it last answered anything, zero when it never did.
	// Asked is when the first question went to it after that, zero when none.
	Answered, Asked time.Time
	// Unanswered is how many questions went to it since it last answered.
	Unanswered uint64
}

// Pair is the other half of a pair.
type Pair struct {
	Type     Type
	Outcome  Outcome
	Attempts int
	Took     time.Duration // to its acceptable answer; 0 when there was none
}

// Step is one name of a search list's sequence. An outcome is "" where that
// type was not asked.
type Step struct {
	Name    string
	A, AAAA Outcome
}

// Stalled says that a lookup has no acceptable answer yet after a second, while
// its socket is still open: the time to find out whose it is.
type Stalled struct {
	Client Client
	Start  time.Time
}

// Totals counts the lookups of one client and resolver that ended since the
// last Totals, which come once a second. The port of Client is 0.
type Totals struct {
	Client   Client
	Resolver Resolver
	// At is when they were summed up, Seen when the client last asked: by then
	// its address may be another's.
	At, Seen time.Time
	Lookups  []Count
	// Durations are those of the lookups that had an acceptable answer.
	Durations       Durations
	Retransmissions uint64
	// Wasted is the number of questions for names of the search list that did
	// not exist, before the one that did. The most wasteful was Name, with
	// NameWasted of them.
	Wasted     uint64
	Name       string
	NameWasted int
}

// Count is a number of lookups.
type Count struct {
	Type    Type
	Outcome Outcome
	N       uint64
}

// Durations is a histogram of times from a question to its acceptable answer.
type Durations struct {
	Count uint64
	Sum   time.Duration
	// Classic counts by DurationBounds: Classic[i] is the number in
	// (DurationBounds[i-1], DurationBounds[i]]; the last one is what is longer.
	Classic [len(DurationBounds) + 1]uint32
	// Native counts by factors of 2^(1/8), which is schema 3 of Prometheus'
	// native histograms: Native[i] is the number in
	// (2^((i-1+NativeOffset)/8), 2^((i+NativeOffset)/8)] seconds. The first
	// one has all that is shorter, the last one all that is longer.
	Native [nativeBuckets]uint32
}

// NativeOffset is the schema's index of the first native bucket: one
// microsecond. There are buckets to 16 seconds.
const (
	NativeOffset  = -160
	nativeBuckets = 193
)

// DurationBounds are the upper bounds of the classic buckets.
var DurationBounds = [...]time.Duration{
	500 * time.Microsecond, time.Millisecond, 2500 * time.Microsecond, 5 * time.Millisecond, 10 * time.Millisecond,
	25 * time.Millisecond, 50 * time.Millisecond, 100 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond,
	time.Second, 2500 * time.Millisecond, 5 * time.Second, 10 * time.Second,
}

// Loss says that packets were not seen, because the ring was full: what
// happened between From and To is uncertain.
type Loss struct {
	From, To time.Time
	Packets  uint64
}

// Reason is why the sensor cannot see: the label reason of
// nodestead_sensor_blind.
type Reason string

// The reasons.
const (
	NoPermission  Reason = "no_permission"  // the kernel refused a packet socket
	NoLinks       Reason = "no_links"       // none of the configured interfaces exists
	AnswersUnseen Reason = "answers_unseen" // answers bypass the pods' links (a CNI that redirects by BPF)
	Unreadable    Reason = "unreadable"     // links or addresses could not be read
)

// Reasons lists all reasons.
func Reasons() []Reason { return []Reason{NoPermission, NoLinks, AnswersUnseen, Unreadable} }

// Blindness is a change in what the sensor can see. It is reported when it
// begins and when it ends, and at the start only for what is blind.
type Blindness struct {
	Time     time.Time
	Reason   Reason
	Blind    bool
	Evidence string // what was seen
	Remedy   string // what an operator can do
}

// Counters are the sensor's own counters since it was opened.
type Counters struct {
	Packets   uint64 // taken from the rings
	Lost      uint64 // that the kernel had no room for
	Discarded uint64 // lookups thrown away while pending, because there were too many
	Malformed uint64 // packets on the DNS port that are no DNS message
	Pending   uint64 // lookups that are pending now (a gauge)
}

func (Lookup) event()    {}
func (Stalled) event()   {}
func (Totals) event()    {}
func (Loss) event()      {}
func (Blindness) event() {}

// String gives the type's mnemonic for those that resolvers ask, and TYPEn
// (RFC 3597) for others.
func (t Type) String() string {
	switch t {
	case A:
		return "A"
	case AAAA:
		return "AAAA"
	case 5:
		return "CNAME"
	case 6:
		return "SOA"
	case 2:
		return "NS"
	case 12:
		return "PTR"
	case 15:
		return "MX"
	case 16:
		return "TXT"
	case 33:
		return "SRV"
	case 65:
		return "HTTPS"
	default:
		return fmt.Sprintf("TYPE%d", uint16(t))
	}
}
