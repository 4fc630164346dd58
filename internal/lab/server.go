package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

// Backend is a namespace behind the remote router with one address of each
// family: where a DNS server of the cluster runs.
type Backend struct {
	*Namespace
	Addr4, Addr6 netip.Addr
}

func (l *Lab) addBackend(name string) (*Backend, error) {
	var b Backend
	var err error
	if b.Addr4, err = l.newHost(backendNet4); err != nil {
		return nil, err
	}
	if b.Addr6, err = l.newHost(backendNet6); err != nil {
		return nil, err
	}
	if b.Namespace, err = l.addNamespace(fmt.Sprintf("%s %v", name, b.Addr4)); err != nil {
		return nil, err
	}
	if err := l.attach(l.remote, l.newLink(l.remote), b.Namespace, []netip.Addr{b.Addr4, b.Addr6}); err != nil {
		return nil, err
	}
	return &b, nil
}

// Rule says what a Server does with a question.
type Rule struct {
	// Name is a name ("a.test."), all names under one ("*.slow.test."), or all
	// names ("*" or ""). Case and a missing dot at the end do not matter.
	Name string
	// Type is the type of question (dns.TypeA); 0 is any.
	Type uint16
	// Times limits the rule to the first so many questions that it matches;
	// later ones go to the rules after it. 0 is no limit.
	Times int

	// Addrs are the answer: to A those of IPv4, to AAAA those of IPv6. When none
	// is left, the answer is NODATA.
	Addrs []netip.Addr
	// Rcode is the answer's (dns.RcodeServerFailure, dns.RcodeNameError).
	Rcode int
	// Truncated answers over UDP with the TC bit and without addresses.
	Truncated bool
	// Delay is the time from question to answer. Other questions don't wait.
	Delay time.Duration
	// Drop gives no answer at all.
	Drop bool
}

// matches reports whether the rule is for this name (lower case, with the dot at the end) and type.
func (r *Rule) matches(name string, qtype uint16) bool {
	if r.Type != 0 && r.Type != qtype {
		return false
	}
	suffix, wildcard := strings.CutPrefix(r.Name, "*")
	switch {
	case r.Name == "":
		return true
	case wildcard:
		return strings.HasSuffix(name, suffix)
	default:
		return name == suffix
	}
}

// counted is a rule with the number of questions that it still takes.
type counted struct {
	Rule
	left atomic.Int64
}

// Question is one question that a Server got.
type Question struct {
	Client  netip.AddrPort
	TCP     bool
	ID      uint16
	Name    string
	Type    uint16
	Arrived time.Time
	// Answered is when the answer was sent; zero as long as it was not.
	Answered time.Time
}

// Server is a DNS server that does what its rules say, on UDP and TCP port 53
// of both its addresses. The first rule that matches a question wins; what no
// rule matches is NXDOMAIN.
type Server struct {
	Backend

	rules     atomic.Pointer[[]*counted]
	total     atomic.Uint64
	byType    [256]atomic.Uint64
	recording atomic.Bool

	mu       sync.Mutex
	recorded []*Question

	ctx     context.Context // ends with Close
	cancel  context.CancelFunc
	wg      sync.WaitGroup
	udp     []*net.UDPConn
	tcp     []*dns.Server
	closing sync.Once
	err     error
}

// AddServer makes a server. It lives until it is closed or the lab is.
func (l *Lab) AddServer(rules ...Rule) (*Server, error) {
	s, err := l.addServer(rules)
	if err != nil {
		return nil, fmt.Errorf("add server: %w", err)
	}
	return s, nil
}

func (l *Lab) addServer(rules []Rule) (*Server, error) {
	b, err := l.addBackend("server")
	if err != nil {
		return nil, err
	}
	s := &Server{Backend: *b}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.SetRules(rules...)
	for _, a := range []netip.Addr{s.Addr4, s.Addr6} {
		if err := s.Do(func() error { return s.listen(netip.AddrPortFrom(a, dnsPort)) }); err != nil {
			return nil, errors.Join(err, s.Close())
		}
	}
	if err := l.atClose(s.Close); err != nil {
		return nil, err
	}
	return s, nil
}

// listen opens the sockets of one address and starts to serve. It must run on the namespace's thread.
func (s *Server) listen(at netip.AddrPort) error {
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
	if err != nil {
		return err
	}
	s.udp = append(s.udp, conn)
	if err := forceReadBuffer(conn, 8<<20); err != nil {
		return err
	}
	listener, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at))
	if err != nil {
		return err
	}
	started := make(chan struct{})
	tcp := &dns.Server{Listener: listener, Handler: dns.HandlerFunc(s.serveTCP), NotifyStartedFunc: func() { close(started) }}
	s.tcp = append(s.tcp, tcp)
	s.wg.Go(func() { s.serveUDP(conn) })
	s.wg.Go(func() { _ = tcp.ActivateAndServe() }) // until Close shuts it down
	<-started
	return nil
}

// Close stops the server: from then on the kernel refuses what is sent to it.
// Delayed answers that are due later are not sent. Calls after the first return
// what the first did.
func (s *Server) Close() error {
	s.closing.Do(func() {
		s.cancel()
		var errs []error
		for _, conn := range s.udp {
			errs = append(errs, conn.Close())
		}
		for _, tcp := range s.tcp {
			errs = append(errs, stopListening(tcp.Listener.(*net.TCPListener)), tcp.Shutdown())
		}
		s.wg.Wait()
		s.err = errors.Join(append(errs, s.waitNoUDP(dnsPort))...)
	})
	return s.err
}

// SetRules replaces the rules, and starts to count their Times anew.
func (s *Server) SetRules(rules ...Rule) {
	list := make([]*counted, len(rules))
	for i, r := range rules {
		if r.Name != "" && r.Name != "*" {
			r.Name = dns.CanonicalName(r.Name)
		}
		list[i] = &counted{Rule: r}
		list[i].left.Store(int64(r.Times))
	}
	s.rules.Store(&list)
}

// Questions is the number of questions that it got.
func (s *Server) Questions() uint64 { return s.total.Load() }

// QuestionsOf is the number of questions of one type. The types from 255 on are
// counted together.
func (s *Server) QuestionsOf(qtype uint16) uint64 { return s.byType[min(qtype, 255)].Load() }

// Record has the server keep every question from now on, or no longer. To start
// again forgets what was kept.
func (s *Server) Record(on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if on {
		s.recorded = nil
	}
	s.recording.Store(on)
}

// Recorded returns the questions that were kept, as they arrived.
func (s *Server) Recorded() []Question {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Question, len(s.recorded))
	for i, q := range s.recorded {
		out[i] = *q
	}
	return out
}

// serveUDP reads questions until the socket is closed. It answers those without
// delay itself: a goroutine for each would mix up their order.
func (s *Server) serveUDP(conn *net.UDPConn) {
	buf := make([]byte, dns.MaxMsgSize)
	for {
		n, client, err := conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			return // closed: a socket that is not connected hears of no other error
		}
		msg, delay, q := s.answer(buf[:n], client, false)
		send := func() {
			if _, err := conn.WriteToUDPAddrPort(msg, client); err == nil {
				s.answered(q)
			}
		}
		switch {
		case msg == nil:
		case delay == 0:
			send()
		default:
			s.wg.Go(func() {
				if s.sleep(delay) {
					send()
				}
			})
		}
	}
}

// serveTCP answers one question over TCP, those of one connection in turn.
func (s *Server) serveTCP(w dns.ResponseWriter, m *dns.Msg) {
	wire, err := m.Pack()
	if err != nil {
		return
	}
	client := w.RemoteAddr().(*net.TCPAddr).AddrPort()
	msg, delay, q := s.answer(wire, client, true)
	if msg == nil || !s.sleep(delay) {
		return
	}
	if _, err := w.Write(msg); err == nil {
		s.answered(q)
	}
}

// sleep waits for d and reports whether the server still lives then.
func (s *Server) sleep(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-s.ctx.Done():
		return false
	}
}

// answer decides about one message: what to send, nil for nothing, and after
// which delay. The question is nil when nobody records.
func (s *Server) answer(wire []byte, client netip.AddrPort, tcp bool) ([]byte, time.Duration, *Question) {
	arrived := time.Now()
	var m dns.Msg
	if m.Unpack(wire) != nil || m.Response || len(m.Question) != 1 {
		return nil, 0, nil
	}
	name, qtype := dns.CanonicalName(m.Question[0].Name), m.Question[0].Qtype
	s.total.Add(1)
	s.byType[min(qtype, 255)].Add(1)
	var q *Question
	if s.recording.Load() {
		client := netip.AddrPortFrom(client.Addr().Unmap(), client.Port())
		q = &Question{Client: client, TCP: tcp, ID: m.Id, Name: name, Type: qtype, Arrived: arrived}
		s.mu.Lock()
		s.recorded = append(s.recorded, q)
		s.mu.Unlock()
	}
	rule := s.rule(name, qtype)
	if rule.Drop {
		return nil, 0, q
	}
	r := new(dns.Msg).SetRcode(&m, rule.Rcode)
	r.Authoritative = true
	r.RecursionAvailable = true
	switch {
	case rule.Truncated && !tcp:
		r.Truncated = true
	case rule.Rcode == dns.RcodeSuccess:
		r.Answer = records(m.Question[0], rule.Addrs)
	}
	msg, err := r.Pack()
	if err != nil {
		return nil, 0, q
	}
	return msg, rule.Delay, q
}

// rule returns the first rule for the question.
func (s *Server) rule(name string, qtype uint16) Rule {
	for _, r := range *s.rules.Load() {
		if r.matches(name, qtype) && (r.Times == 0 || r.left.Add(-1) >= 0) {
			return r.Rule
		}
	}
	return Rule{Rcode: dns.RcodeNameError}
}

// records are the addresses that answer the question.
func records(q dns.Question, addrs []netip.Addr) []dns.RR {
	var rrs []dns.RR
	header := dns.RR_Header{Name: q.Name, Rrtype: q.Qtype, Class: dns.ClassINET, Ttl: 5}
	for _, a := range addrs {
		switch {
		case q.Qtype == dns.TypeA && a.Is4():
			rrs = append(rrs, &dns.A{Hdr: header, A: a.AsSlice()})
		case q.Qtype == dns.TypeAAAA && a.Is6():
			rrs = append(rrs, &dns.AAAA{Hdr: header, AAAA: a.AsSlice()})
		}
	}
	return rrs
}

// answered records that the answer was sent.
func (s *Server) answered(q *Question) {
	if q == nil {
		return
	}
	s.mu.Lock()
	q.Answered = time.Now()
	s.mu.Unlock()
}

// forceReadBuffer sets a socket's receive buffer beyond the machine's limit.
func forceReadBuffer(conn *net.UDPConn, bytes int) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	err = raw.Control(func(fd uintptr) {
		set = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, bytes)
	})
	if err := errors.Join(err, set); err != nil {
		return fmt.Errorf("enlarge receive buffer: %w", err)
	}
	return nil
}
