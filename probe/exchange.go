package probe

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/miekg/dns"
)

const (
	// giveUp and retry are musl's: five seconds in two attempts.
	giveUp = 5 * time.Second
	retry  = giveUp / 2
)

// exchange is one lookup, decided as __res_msend_rc of musl does: without
// sockets and clocks.
type exchange struct {
	nameservers []netip.AddrPort
	questions   []question
	start       time.Time
	asked       time.Time // when all that was unanswered was asked last
	// resends is how many SERVFAILs are still answered by asking again at once.
	// All questions and nameservers share them until the next retry.
	resends int
}

// question is an A or AAAA question and what each nameserver made of it.
type question struct {
	message  *dns.Msg
	wire     []byte
	answered bool // a nameserver gave an acceptable answer
	stray    netip.AddrPort
	at       []standing // by nameserver
}

// standing is one question at one nameserver.
type standing struct {
	Result
	pending bool // asked, and not answered since
	final   bool // answered acceptably
}

// packet is a question on its way to a nameserver, both by index.
type packet struct{ question, nameserver int }

// newExchange makes the questions for a name. The ids must differ.
func newExchange(name string, nameservers []netip.AddrPort, ids [2]uint16) (*exchange, error) {
	x := &exchange{nameservers: nameservers}
	for i, t := range []uint16{dns.TypeA, dns.TypeAAAA} {
		m := new(dns.Msg).SetQuestion(name, t)
		m.Id = ids[i]
		wire, err := m.Pack()
		if err != nil {
			return nil, err
		}
		q := question{message: m, wire: wire}
		for _, ns := range nameservers {
			q.at = append(q.at, standing{Result: Result{Name: name, Type: t, Nameserver: ns, Outcome: Timeout}})
		}
		x.questions = append(x.questions, q)
	}
	return x, nil
}

// due gives what to send now: at the start, and again what no nameserver has
// answered when it is time to retry.
func (x *exchange) due(now time.Time) []packet {
	switch {
	case x.start.IsZero():
		x.start = now
	case now.Sub(x.asked) < retry, now.Sub(x.start) >= giveUp:
		return nil
	}
	x.asked = now
	x.resends = 2 * len(x.questions)
	var out []packet
	for i := range x.questions {
		for j := range x.nameservers {
			if !x.questions[i].answered {
				out = append(out, packet{i, j})
			}
		}
	}
	return out
}

// sent notes a packet that due or answer asked for, with the error that the
// kernel refused it with.
func (x *exchange) sent(p packet, now time.Time, err error) {
	s := &x.questions[p.question].at[p.nameserver]
	if s.Time.IsZero() {
		s.Time = now
	}
	if err != nil {
		s.Err = err
		return
	}
	s.Attempts++
	s.pending = true
}

// until is when to stop waiting for answers: to ask again, or for good.
func (x *exchange) until() time.Time {
	again, end := x.asked.Add(retry), x.start.Add(giveUp)
	if again.Before(end) {
		return again
	}
	return end
}

// over tells whether nothing more can change the results: the time is up, or
// all that was asked is answered and musl would not ask again.
func (x *exchange) over(now time.Time) bool {
	if now.Sub(x.start) >= giveUp {
		return true
	}
	for _, q := range x.questions {
		if !q.answered || slices.ContainsFunc(q.at, func(s standing) bool { return s.pending }) {
			return false
		}
	}
	return true
}

// answer takes a message. It may ask for a question to be sent again at once.
func (x *exchange) answer(b []byte, from netip.AddrPort, now time.Time) (again packet, ok bool) {
	var m dns.Msg
	if m.Unpack(b) != nil || !m.Response {
		return packet{}, false
	}
	i := slices.IndexFunc(x.questions, func(q question) bool { return answers(&m, q.message) })
	if i < 0 {
		return packet{}, false
	}
	q := &x.questions[i]
	j := slices.Index(x.nameservers, from)
	if j < 0 {
		q.stray = from
		return packet{}, false
	}
	s := &q.at[j]
	if s.final {
		return packet{}, false
	}
	s.pending = false
	s.Outcome, s.Truncated, s.Took = outcome(&m, q.message.Question[0].Qtype), m.Truncated, now.Sub(s.Time)
	switch m.Rcode {
	case dns.RcodeSuccess, dns.RcodeNameError:
		s.final = true
		s.Accepted = !q.answered
		q.answered = true
	case dns.RcodeServerFailure:
		if !q.answered && x.resends > 0 {
			x.resends--
			return packet{i, j}, true
		}
	}
	return packet{}, false
}

// results are those of all questions at all nameservers.
func (x *exchange) results(now time.Time) []Result {
	var out []Result
	for _, q := range x.questions {
		for _, s := range q.at {
			if s.Outcome == Timeout {
				s.Took = now.Sub(x.start)
			}
			s.Stray = q.stray
			out = append(out, s.Result)
		}
	}
	return out
}

// answers tells whether m has the id and the question of asked.
func answers(m, asked *dns.Msg) bool {
	return m.Id == asked.Id && len(m.Question) == 1 &&
		m.Question[0].Qtype == asked.Question[0].Qtype && m.Question[0].Qclass == asked.Question[0].Qclass &&
		dns.CanonicalName(m.Question[0].Name) == asked.Question[0].Name
}

// outcome is the rcode in lower case, or NoData. A truncated answer without
// records is no NoData: they may be in what was cut off.
func outcome(m *dns.Msg, qtype uint16) string {
	record := func(rr dns.RR) bool { return rr.Header().Rrtype == qtype }
	if m.Rcode == dns.RcodeSuccess && !m.Truncated && !slices.ContainsFunc(m.Answer, record) {
		return NoData
	}
	if s, ok := dns.RcodeToString[m.Rcode]; ok {
		return strings.ToLower(s)
	}
	return "rcode_" + strconv.Itoa(m.Rcode)
}
