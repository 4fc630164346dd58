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
)

// ask asks a server from its own namespace and returns the answer, nil when
// there is none in time.
func ask(t *testing.T, s *Server, network string, at netip.Addr, name string, qtype uint16, timeout time.Duration) *dns.Msg {
	t.Helper()
	var answer *dns.Msg
	err := s.Do(func() (err error) {
		client := dns.Client{Net: network, Timeout: timeout}
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
		timeout := 10 * time.Second
		if test.rcode == none {
			timeout = 200 * time.Millisecond
		}
		m := ask(t, s, test.network, at, test.name, test.qtype, timeout)
		if got := s.QuestionsOf(test.qtype) - before; got != 1 {
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
	s, err := l.AddServer(Rule{Name: "slow.test", Delay: delay}, Rule{Name: "drop.test", Drop: true}, Rule{})
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
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	s.Record(true)
	for i, name := range []string{"slow.test.", "drop.test.", "fast.test."} {
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
	for _, want := range []uint16{2, 0} {
		m, err := (&dns.Conn{Conn: conn}).ReadMsg()
		if err != nil {
			t.Fatal(err)
		}
		if m.Id != want {
			t.Errorf("answer to question %d, want %d", m.Id, want)
		}
	}
	waitFor(t, "the last answer to be recorded", func() bool { return !s.Recorded()[0].Answered.IsZero() })
	s.Record(false)
	ask(t, s, "udp", s.Addr4, "later.test.", dns.TypeA, 10*time.Second)

	got := s.Recorded()
	client := conn.LocalAddr().(*net.UDPAddr).AddrPort()
	want := []Question{
		{Client: client, ID: 0, Name: "slow.test.", Type: dns.TypeA},
		{Client: client, ID: 1, Name: "drop.test.", Type: dns.TypeA},
		{Client: client, ID: 2, Name: "fast.test.", Type: dns.TypeA},
	}
	if len(got) == 3 {
		if took := got[0].Answered.Sub(got[0].Arrived); took < delay {
			t.Errorf("the slow answer took %v", took)
		}
		if !got[1].Answered.IsZero() {
			t.Errorf("the dropped question was answered at %v", got[1].Answered)
		}
		if took := got[2].Answered.Sub(got[2].Arrived); took >= delay {
			t.Errorf("the fast answer took %v", took)
		}
		for i := range got {
			got[i].Arrived, got[i].Answered = time.Time{}, time.Time{}
		}
	}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
		t.Errorf("recorded (-want +got):\n%s", diff)
	}

	// A closed server refuses, as soon as no other test's child that is just
	// being started holds its socket.
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "a closed server to refuse questions", func() bool {
		_, err1 := conn.Write([]byte{0})
		err2 := conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		_, err3 := conn.Read(make([]byte, 1))
		return errors.Is(errors.Join(err1, err2, err3), syscall.ECONNREFUSED)
	})
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
