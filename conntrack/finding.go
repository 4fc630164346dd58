package conntrack

import (
	"fmt"
	"net/netip"
	"time"
)

// Tuple is the original direction of a UDP flow as the client sent it: before
// destination NAT. Zone is the conntrack zone, 0 unless the node uses zones.
type Tuple struct {
	Source      netip.AddrPort
	Destination netip.AddrPort
	Zone        uint16
}

// String gives the tuple as source → destination.
func (t Tuple) String() string {
	if t.Zone != 0 {
		return fmt.Sprintf("%s → %s (zone %d)", t.Source, t.Destination, t.Zone)
	}
	return fmt.Sprintf("%s → %s", t.Source, t.Destination)
}

// Finding is what the sensor reports: a Collision, an Orphan, a SlowFlow, a
// Drop, a Loss or a Blindness. All of them are plain values.
type Finding interface{ finding() }

// Collision is a kept collision: two packets of one original tuple raced, NAT
// had chosen different backends for them, and the kernel let the loser live on
// for one second with an entry of its own (nf_conntrack_core.c,
// nf_ct_resolve_clash_harder; Linux 5.6 and later).
type Collision struct {
	// Time is when the kernel's message was read.
	Time time.Time
	// Original is the tuple that both packets share.
	Original Tuple
	// Loser is the backend of the entry that was kept for a second only.
	Loser netip.AddrPort
	// Winner is the backend of the entry that stays; the zero value when that
	// entry was gone already when the sensor asked for it.
	Winner netip.AddrPort
	// Answered tells whether the loser's answer came within its second. When
	// it did not, no later answer was seen either: the question is lost.
	Answered bool
}

// Orphan is an orphaned answer: the kept loser of a collision expired before
// its answer came, so the answer reached the client untranslated, from an
// address that the client never asked.
type Orphan struct {
	// Time is when the orphan's message was read: the arrival of the answer.
	Time time.Time
	// Original is the tuple of the question.
	Original Tuple
	// Backend is the address that the answer came from.
	Backend netip.AddrPort
	// Winner is the backend of the entry that won; zero when unknown.
	Winner netip.AddrPort
	// Lateness is the time from the question to its answer. It is exact when
	// Exact is true, which needs net.netfilter.nf_conntrack_timestamp=1;
	// otherwise it is the second that is known to have passed.
	Lateness time.Duration
	Exact    bool
}

// Witness names what makes a slow flow more than a long-lived socket or a
// reused port.
type Witness uint8

// The witnesses, strongest first.
const (
	// AfterOrphan: the same tuple had an orphaned answer shortly before.
	AfterOrphan Witness = iota + 1
	// Unanswered: the flow's own counters show more questions than answers
	// (needs net.netfilter.nf_conntrack_acct=1).
	Unanswered
	// AfterDrop: the kernel dropped packets at an insertion at most six
	// seconds before.
	AfterDrop
)

// String gives the witness in snake case.
func (w Witness) String() string {
	switch w {
	case AfterOrphan:
		return "after_orphan"
	case Unanswered:
		return "unanswered"
	case AfterDrop:
		return "after_drop"
	default:
		return fmt.Sprintf("witness_%d", uint8(w))
	}
}

// SlowFlow is a flow whose client sent again more than two seconds after its
// first packet (the kernel set IPS_ASSURED, nf_conntrack_proto_udp.c). A
// long-lived socket and a reused source port look the same, so a slow flow is
// reported only when a witness tells it apart.
type SlowFlow struct {
	Time     time.Time // when ASSURED was set
	Original Tuple
	Backend  netip.AddrPort
	Witness  Witness
}

// Drop is a rise of the kernel's counters of dropped packets between two
// readings of the statistics. The kernel does not tell whose packets they
// were, nor their protocol.
type Drop struct {
	From, To time.Time
	// Clash counts packets dropped because their entry collided and could not
	// be kept (insert_failed and drop rose together).
	Clash uint64
	// ChainTooLong counts packets dropped because a hash chain was too long.
	ChainTooLong uint64
	// TableFull counts packets dropped because no entry could be had (drop
	// rose without insert_failed).
	TableFull uint64
	// Evicted counts entries that early_drop removed to make room. They are
	// not packets.
	Evicted uint64
	// Entries and Limit are the table's fill at To.
	Entries, Limit uint64
}

// Loss says that the kernel could not queue messages for the sensor (ENOBUFS):
// what happened between From and To is uncertain.
type Loss struct {
	From, To time.Time
	Messages uint64
}

// Reason is why the sensor cannot see: the label reason of
// nodestead_sensor_blind.
type Reason string

// The reasons.
const (
	EventsOff    Reason = "events_off"    // net.netfilter.nf_conntrack_events=0, or a kernel built without events
	NoPermission Reason = "no_permission" // the kernel refused to answer what the sensor needs to ask
	NoTrack      Reason = "notrack"       // DNS is exempt from connection tracking
	NoStatistics Reason = "no_statistics" // the kernel's statistics lack clash_resolve
	Unreadable   Reason = "unreadable"    // statistics or rules could not be read for another reason
)

// Reasons lists all reasons.
func Reasons() []Reason {
	return []Reason{EventsOff, NoPermission, NoTrack, NoStatistics, Unreadable}
}

// Blindness is a change in what the sensor can see. It is reported when it
// begins and when it ends, and at the start only for what is blind.
type Blindness struct {
	Time   time.Time
	Reason Reason
	Blind  bool
	// Evidence says what was seen, Remedy what an operator can do.
	Evidence string
	Remedy   string
}

func (Collision) finding() {}
func (Orphan) finding()    {}
func (SlowFlow) finding()  {}
func (Drop) finding()      {}
func (Loss) finding()      {}
func (Blindness) finding() {}
