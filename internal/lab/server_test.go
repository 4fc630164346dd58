package lab

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

// ask asks a server from its own namespace and returns the answer, nil when
// there is none within the time after the question was sent.
func ask(t *testing.T, s *Server, network string, at netip.Addr, name string, qtype uint16, timeout time.Duration) *dns.Msg {
	t.Helper()
	var answer *dns.Msg
	err := s.Do(func() (err error) {
		client := dns.Client{Net: network, DialTimeout: time.Minute, WriteTimeout: time.Minute, ReadTimeout: timeout}
		answer, _, err = client.Exchange(new(dns.Msg).SetQuestion(name, qtype), netip.AddrPortFrom(at, dnsPort).String())
		return err
	})
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	return answer
}

func TestServerRules(t *testing.T) {
	t.Parallel()
	l := ForTest(t)
	s, err := l.AddServer(
		Rule{Name: "once.test", Times: 1, Drop: true},
		Rule{Name: "drop.test.", Type: dns.TypeAAAA, Drop: true},
		Rule{Name: "fail.test", Rcode: dns.RcodeServerFailure, Addrs: answers},
		Rule{Name: "big.test", Truncated: true, Addrs: answers},
		Rule{Name: "empty.test"},
		Rule{Name: "never.test", Delay: time.Hour},
		Rule{Name: "*.test", Addrs: answers},
		Rule{Name: "four.example", Addrs: []netip.Addr{answer4}},
	)
	if err != nil {
		t.Fatal(err)
	}
	const none = -1
	for _, test := range []struct {
		network, name string
		qtype         uint16
		rcode         int
		truncated     bool
		answers       int
	}{
		{"udp", "once.test.", dns.TypeA, none, false, 0},
		{"udp", "once.test.", dns.TypeA, dns.RcodeSuccess, false, 1},
		{"udp", "drop.test.", dns.TypeAAAA, none, false, 0},
		{"udp", "DROP.test.", dns.TypeA, dns.RcodeSuccess, false, 1},
		{"udp", "fail.test.", dns.TypeA, dns.RcodeServerFailure, false, 0},
		{"udp", "big.test.", dns.TypeA, dns.RcodeSuccess, true, 0},
		{"tcp", "big.test.", dns.TypeA, dns.RcodeSuccess, false, 1},
		{"udp", "empty.test.", dns.TypeA, dns.RcodeSuccess, false, 0},
		{"udp", "never.test.", dns.TypeA, none, false, 0},
		{"udp", "a.b.test.", dns.TypeAAAA, dns.RcodeSuccess, false, 1},
		{"tcp", "a.b.test.", dns.TypeAAAA, dns.RcodeSuccess, false, 1},
		{"udp", "test.", dns.TypeA, dns.RcodeNameError, false, 0},
		{"udp", "four.example.", dns.TypeA, dns.RcodeSuccess, false, 1},
		{"udp", "four.example.", dns.TypeAAAA, dns.RcodeSuccess, false, 0},
		{"udp", "other.example.", dns.TypeA, dns.RcodeNameError, false, 0},
	} {
		before := s.QuestionsOf(test.qtype)
		at := s.Addr4
		if test.qtype == dns.TypeAAAA {
			at = s.Addr6
		}
		timeout := time.Minute
		if test.rcode == none {
			timeout = 200 * time.Millisecond
		}
		m := ask(t, s, test.network, at, test.name, test.qtype, timeout)
		asked := func() uint64 { return s.QuestionsOf(test.qtype) - before }
		waitFor(t, "the question to arrive", func() bool { return asked() > 0 })
		if got := asked(); got != 1 {
			t.Errorf("%+v: counted as %d questions", test, got)
		}
		if m == nil {
			if test.rcode != none {
				t.Errorf("%+v: no answer", test)
			}
			continue
		}
		if m.Rcode != test.rcode || m.Truncated != test.truncated || len(m.Answer) != test.answers {
			t.Errorf("%+v: answer %v", test, m)
		}
	}
}

// TestServerRecord proves that what is recorded is what happened, and that a
// delayed answer delays no other.
func TestServerRecord(t *testing.T) {
	t.Parallel()
	const delay = 500 * time.Millisecond
	l := ForTest(t)
	s, err := l.AddServer(Rule{Name: "late.test", Delay: time.Hour}, Rule{Name: "slow.test", Delay: delay}, Rule{Name: "drop.test", Drop: true}, Rule{})
	if err != nil {
		t.Fatal(err)
	}
	var conn net.Conn
	err = s.Do(func() (err error) {
		conn, err = net.Dial("udp", s.Addr4.String()+":53")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	s.Record(true)
	for i, name := range []string{"late.test.", "drop.test.", "fast.test.", "slow.test."} {
		m := new(dns.Msg).SetQuestion(name, dns.TypeA)
		m.Id = uint16(i)
		wire, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write(wire); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []uint16{2, 3} {
		m, err := (&dns.Conn{Conn: conn}).ReadMsg()
		if err != nil {
			t.Fatal(err)
		}
		if m.Id != want {
			t.Errorf("answer to question %d, want %d", m.Id, want)
		}
	}
	waitFor(t, "the last answer to be recorded", func() bool { return !s.Recorded()[3].Answered.IsZero() })
	s.Record(false)
	ask(t, s, "udp", s.Addr4, "later.test.", dns.TypeA, time.Minute)

	got := s.Recorded()
	client := conn.LocalAddr().(*net.UDPAddr).AddrPort()
	want := []Question{
		{Client: client, ID: 0, Name: "late.test.", Type: dns.TypeA},
		{Client: client, ID: 1, Name: "drop.test.", Type: dns.TypeA},
		{Client: client, ID: 2, Name: "fast.test.", Type: dns.TypeA},
		{Client: client, ID: 3, Name: "slow.test.", Type: dns.TypeA},
	}
	if len(got) == 4 {
		for _, q := range got[:2] {
			if !q.Answered.IsZero() {
				t.Errorf("%s was answered at %v", q.Name, q.Answered)
			}
		}
		if q := got[2]; q.Answered.Before(q.Arrived) {
			t.Errorf("the fast answer was sent at %v, the question came at %v", q.Answered, q.Arrived)
		}
		if took := got[3].Answered.Sub(got[3].Arrived); took < delay {
			t.Errorf("the slow answer took %v", took)
		}
		for i := range got {
			got[i].Arrived, got[i].Answered = time.Time{}, time.Time{}
		}
	}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
		t.Errorf("recorded (-want +got):\n%s", diff)
	}

	// A closed server refuses, once nobody has its socket any more.
	var raw syscall.RawConn
	if raw, err = s.udp[0].SyscallConn(); err != nil {
		t.Fatal(err)
	}
	other := -1 // as a child has it that is just being started
	if err := raw.Control(func(fd uintptr) { other, err = unix.Dup(int(fd)) }); err != nil || other < 0 {
		t.Fatal(err)
	}
	closed := make(chan error)
	go func() { closed <- s.Close() }()
	select {
	case err := <-closed:
		t.Fatalf("closed while somebody has its socket: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	if err := errors.Join(unix.Close(other), <-closed); err != nil {
		t.Fatal(err)
	}
	_, err1 := conn.Write([]byte{0})
	_, err2 := conn.Read(make([]byte, 1))
	if err := errors.Join(err1, err2); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a closed server does not refuse: %v", err)
	}
}

// BenchmarkServer is one question and its answer through the node's DNAT, with
// 64 sockets of a pod that ask one after the other.
func BenchmarkServer(b *testing.B) {
	const sockets = 64
	l := ForTest(b)
	s, err := l.AddServer(Rule{Name: "*.test", Addrs: answers})
	if err != nil {
		b.Fatal(err)
	}
	if err := l.AddService(service4, Random, s.Addr4); err != nil {
		b.Fatal(err)
	}
	pod, err := l.AddPod(PodConfig{Name: "pod"})
	if err != nil {
		b.Fatal(err)
	}
	question, err := new(dns.Msg).SetQuestion("a.test.", dns.TypeA).Pack()
	if err != nil {
		b.Fatal(err)
	}
	var conns []net.Conn
	for range sockets {
		err := pod.Do(func() error {
			conn, err := net.Dial("udp", service4.String()+":53")
			conns = append(conns, conn)
			return err
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	b.ResetTimer()
	var wg sync.WaitGroup
	var asked atomic.Int64
	for _, conn := range conns {
		wg.Go(func() {
			defer conn.Close()
			answer := make([]byte, 512)
			for asked.Add(1) <= int64(b.N) {
				if _, err := conn.Write(question); err != nil {
					b.Error(err)
					return
				}
				if err := conn.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
					b.Error(err)
					return
				}
				if _, err := conn.Read(answer); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "questions/s")
}
