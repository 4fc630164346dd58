package conntrack

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/nodestead/nodestead/internal/lab"
)

// The tests of this file are on the kernel's own conntrack, with real
// resolvers, in a node in a box. They need root.

// box is a node with two scripted backends behind one service address of each
// family, and a sensor that runs in the node's namespace.
type box struct {
	*lab.Lab
	t       *testing.T
	servers []*lab.Server
	sensor  *Sensor

	mu       sync.Mutex
	findings []Finding
	changed  chan struct{}
}

var (
	service4 = netip.MustParseAddr("10.96.0.10")
	other4   = netip.MustParseAddr("10.96.0.11")
	service6 = netip.MustParseAddr("fd00:10:96::a")
	answer   = []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}
)

func newBox(t *testing.T, balance lab.Balance, rules ...lab.Rule) *box {
	t.Helper()
	b := &box{Lab: lab.ForTest(t), t: t, changed: make(chan struct{}, 1)}
	for range 2 {
		s, err := b.AddServer(rules...)
		if err != nil {
			t.Fatal(err)
		}
		s.Record(true)
		b.servers = append(b.servers, s)
	}
	b.service(service4, balance)
	b.service(service6, balance)
	return b
}

func (b *box) service(addr netip.Addr, balance lab.Balance) {
	b.t.Helper()
	var backends []netip.Addr
	for _, s := range b.servers {
		if addr.Is4() {
			backends = append(backends, s.Addr4)
		} else {
			backends = append(backends, s.Addr6)
		}
	}
	if err := b.AddService(addr, balance, backends...); err != nil {
		b.t.Fatal(err)
	}
}

func (b *box) pod(name string, nameservers ...netip.Addr) *lab.Pod {
	b.t.Helper()
	p, err := b.AddPod(lab.PodConfig{Name: name, Nameservers: nameservers})
	if err != nil {
		b.t.Fatal(err)
	}
	return p
}

func (b *box) hold(n int) *lab.Holder {
	b.t.Helper()
	h, err := b.Hold(n, 250*time.Millisecond)
	if err != nil {
		b.t.Fatal(err)
	}
	return h
}

// sense opens the sensor in the node's namespace and runs it until the test
// ends. Call it after sysctls are set.
func (b *box) sense(cfg Config) {
	b.t.Helper()
	b.open(cfg)
	b.run()
}

func (b *box) open(cfg Config) {
	b.t.Helper()
	err := b.Node().Do(func() (err error) {
		b.sensor, err = Open(cfg)
		return err
	})
	if err != nil {
		b.t.Fatal(err)
	}
}

func (b *box) run() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- b.sensor.Run(ctx, b.found) }()
	b.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			b.t.Errorf("run: %v", err)
		}
		if err := b.sensor.Close(); err != nil {
			b.t.Errorf("close: %v", err)
		}
	})
}

func (b *box) found(f Finding) {
	b.mu.Lock()
	b.findings = append(b.findings, f)
	b.mu.Unlock()
	select {
	case b.changed <- struct{}{}:
	default:
	}
}

// wait waits until done accepts the findings so far.
func (b *box) wait(what string, limit time.Duration, done func([]Finding) bool) []Finding {
	b.t.Helper()
	deadline := time.After(limit)
	for {
		b.mu.Lock()
		findings := b.findings[:len(b.findings):len(b.findings)]
		b.mu.Unlock()
		if done(findings) {
			return findings
		}
		select {
		case <-b.changed:
		case <-deadline:
			b.t.Fatalf("not seen in %v: %s; findings: %d %+v", limit, what, len(findings), last(findings, 5))
		}
	}
}

func last[T any](s []T, n int) []T { return s[max(0, len(s)-n):] }

func only[F Finding](findings []Finding) []F {
	var out []F
	for _, f := range findings {
		if f, ok := f.(F); ok {
			out = append(out, f)
		}
	}
	return out
}

// collide has a pod look a name up until the holder has let a whole pair go. The
// questions of a client that stands still between them do not collide.
func (b *box) collide(p *lab.Pod, h *lab.Holder) {
	b.t.Helper()
	for before := h.Full(); h.Full() == before; {
		b.resolve(p, lab.MuslStatic, 1, "fast.test.")
	}
}

func (b *box) statistics() Statistics {
	b.t.Helper()
	s, err := b.sensor.Statistics()
	if err != nil {
		b.t.Fatal(err)
	}
	return s
}

// resolve runs a resolver and fails the test when it could not be run.
func (b *box) resolve(p *lab.Pod, r lab.Resolver, count int, names ...string) []lab.Answer {
	b.t.Helper()
	answers, err := p.Resolve(b.t.Context(), r, count, names...)
	if err != nil {
		b.t.Fatal(err)
	}
	return answers
}

// asked are the sockets whose questions each backend got.
func (b *box) questions() map[netip.Addr]map[netip.AddrPort][]lab.Question {
	out := map[netip.Addr]map[netip.AddrPort][]lab.Question{}
	for _, s := range b.servers {
		four, six := map[netip.AddrPort][]lab.Question{}, map[netip.AddrPort][]lab.Question{}
		for _, q := range s.Recorded() {
			m := four
			if q.Client.Addr().Is6() {
				m = six
			}
			m[q.Client] = append(m[q.Client], q)
		}
		out[s.Addr4], out[s.Addr6] = four, six
	}
	return out
}

func TestCollisionsKept(t *testing.T) {
	for _, family := range []struct {
		name    string
		service netip.Addr
	}{{"IPv4", service4}, {"IPv6", service6}} {
		t.Run(family.name, func(t *testing.T) {
			b := newBox(t, lab.Alternate, lab.Rule{Name: "*", Addrs: answer})
			p := b.pod("musl", family.service)
			b.sense(Config{})
			b.hold(2)
			before := b.statistics()
			want := 300
			late := 0 // lookups that took so long that their answers may have been orphaned
			for b.statistics().ClashResolved-before.ClashResolved < uint64(want) {
				for _, a := range b.resolve(p, lab.MuslStatic, 100, "fast.test.") {
					if a.Err != "" {
						t.Fatalf("a lookup failed: %+v", a)
					}
					if a.Took > keptFor*9/10 {
						late++
					}
				}
			}
			kept := int(b.statistics().ClashResolved - before.ClashResolved)
			findings := b.wait(fmt.Sprintf("%d collisions", kept), 5*time.Second, func(f []Finding) bool {
				return len(only[Collision](f))+len(only[Orphan](f)) >= kept
			})
			collisions, orphans := only[Collision](findings), len(only[Orphan](findings))
			if orphans > late {
				t.Errorf("%d orphans of %d lookups that took so long", orphans, late)
			}
			// Each is reported once: nothing more comes, not with the removal of
			// the entries either. After an orphan its client asks again.
			b.checkCollisions(collisions, family.service)
			b.settled(kept-orphans, 2*late)
			t.Logf("%d collisions kept by the kernel, %d reported, %d lookups took so long", kept, len(collisions), late)
		})
	}
}

// settled waits two ticks of the sensor and checks that the number of
// collisions is still what it was, and that at most so much else was found.
func (b *box) settled(collisions, others int) {
	b.t.Helper()
	messages := b.sensor.Counters().Messages
	ctx, cancel := context.WithTimeout(b.t.Context(), 2*tickInterval)
	defer cancel()
	<-ctx.Done()
	b.mu.Lock()
	defer b.mu.Unlock()
	if got := len(only[Collision](b.findings)); got != collisions || len(b.findings)-got > others {
		b.t.Errorf("%d findings, %d of them collisions; want %d collisions and at most %d others (messages %d, now %d): %+v",
			len(b.findings), got, collisions, others, messages, b.sensor.Counters().Messages, last(b.findings, 3))
	}
}

// checkCollisions compares collisions with what the backends saw.
func (b *box) checkCollisions(collisions []Collision, service netip.Addr) {
	b.t.Helper()
	questions := b.questions()
	for _, c := range collisions {
		if c.Original.Destination != netip.AddrPortFrom(service, 53) || !c.Answered {
			b.t.Fatalf("wrong collision: %+v", c)
		}
		if c.Loser == c.Winner || len(questions[c.Loser.Addr()][c.Original.Source]) == 0 || len(questions[c.Winner.Addr()][c.Original.Source]) == 0 {
			b.t.Fatalf("the backends %s (loser) and %s (winner) did not both get questions from %s", c.Loser, c.Winner, c.Original.Source)
		}
		if age := time.Since(c.Time); age < 0 || age > time.Minute {
			b.t.Fatalf("time of %+v is %v ago", c, age)
		}
	}
}

func TestMergesAreNotReported(t *testing.T) {
	b := newBox(t, lab.Hash, lab.Rule{Name: "*", Addrs: answer})
	p := b.pod("musl", service4)
	b.sense(Config{})
	b.hold(2)
	before := b.statistics()
	for b.statistics().ClashResolved-before.ClashResolved < 100 {
		b.resolve(p, lab.MuslStatic, 100, "fast.test.")
	}
	b.settled(0, 0)
}

// lateAnswer is when a server answers whose answers are to be orphaned: after the
// second that an entry is kept, and long before musl asks again, so that neither
// changes where all stand still for a second.
const lateAnswer = keptFor + 200*time.Millisecond

func TestOrphans(t *testing.T) {
	const delay = lateAnswer
	tests := []struct {
		name       string
		service    netip.Addr
		timestamps bool
		want       int
	}{
		{"IPv4 with timestamps", service4, true, 100},
		{"IPv4", service4, false, 20},
		{"IPv6 with timestamps", service6, true, 20},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			b := newBox(t, lab.Alternate, lab.Rule{Name: "*", Addrs: answer, Delay: delay})
			value := "0"
			if tc.timestamps {
				value = "1"
			}
			if err := b.Node().Sysctl("net/netfilter/nf_conntrack_timestamp", value); err != nil {
				t.Fatal(err)
			}
			p := b.pod("musl", tc.service)
			b.sense(Config{})
			b.hold(2)
			// Clients that ask at the same moment may both be given the same
			// backend twice; those pairs merge, and lose nothing.
			want := 0
			var began []time.Time
			for want < tc.want {
				began = append(began, time.Now())
				want += b.lookupsThatWait(p, min(20, tc.want-want), delay)
			}
			if resolved := b.statistics().ClashResolved; resolved < uint64(want) {
				t.Errorf("%d lookups waited, the kernel resolved %d clashes", want, resolved)
			}
			findings := b.wait(fmt.Sprintf("%d orphans and the retries", want), 5*time.Second, func(f []Finding) bool {
				return len(only[Orphan](f)) >= want && b.witnessed(f)
			})
			b.checkOrphans(only[Orphan](findings), want, delay, tc.timestamps, began)
			for _, s := range only[SlowFlow](findings) {
				if s.Witness != AfterOrphan {
					t.Errorf("a retry after an orphan: %+v", s)
				}
			}
			if n := len(only[Collision](findings)); n != 0 {
				t.Errorf("%d collisions beside the orphans", n)
			}
		})
	}
}

// witnessed tells whether the retry after each orphan was found. What is looked for is
// settled when the orphan is: a client that asks again at the same time, because the
// server stood still for long, is not seen.
func (b *box) witnessed(findings []Finding) bool {
	seen := map[Tuple]bool{}
	for _, s := range only[SlowFlow](findings) {
		seen[s.Original] = true
	}
	questions := b.questions()
	for _, o := range only[Orphan](findings) {
		for _, of := range questions {
			for _, q := range of[o.Original.Source] {
				if q.Arrived.Sub(o.Time) > time.Second && !seen[o.Original] {
					return false
				}
			}
		}
	}
	return true
}

// lookupsThatWait lets n musl clients look up a name at once, and counts those
// that were done only after they had asked again: 2.5 s and the server's delay.
func (b *box) lookupsThatWait(p *lab.Pod, n int, delay time.Duration) (slow int) {
	b.t.Helper()
	var group errgroup.Group
	var mu sync.Mutex
	for range n {
		group.Go(func() error {
			answers, err := p.Resolve(b.t.Context(), lab.MuslStatic, 1, "slow.test.")
			if err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			for _, a := range answers {
				if a.Err != "" {
					return fmt.Errorf("a lookup failed: %+v", a)
				}
				if a.Took > 2400*time.Millisecond+delay {
					slow++
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		b.t.Fatal(err)
	}
	return slow
}

// lookupThatWaits has a pod look a name up until a lookup was one that waits: the
// questions of a client that stands still between them do not collide.
func (b *box) lookupThatWaits(p *lab.Pod, delay time.Duration) {
	b.t.Helper()
	for b.lookupsThatWait(p, 1, delay) == 0 {
		b.t.Log("the questions did not collide")
	}
}

// checkOrphans compares orphans with when the backends got and answered the
// questions, and with when the clients began, some of them at a time.
func (b *box) checkOrphans(orphans []Orphan, want int, delay time.Duration, exact bool, began []time.Time) {
	b.t.Helper()
	if len(orphans) != want {
		b.t.Errorf("%d orphans, want %d", len(orphans), want)
	}
	questions := b.questions()
	var reports []time.Duration // after the answer
	for _, o := range orphans {
		// The question is the one that this backend answered just before.
		var q *lab.Question
		for _, x := range questions[o.Backend.Addr()][o.Original.Source] {
			if x.Arrived.Add(delay/2).Before(o.Time) && !x.Answered.IsZero() && (q == nil || x.Arrived.After(q.Arrived)) {
				q = &x
			}
		}
		if q == nil || o.Backend.Port() != 53 || o.Winner == o.Backend || !o.Winner.IsValid() {
			b.t.Fatalf("no backend answered %+v", o)
		}
		reports = append(reports, o.Time.Sub(q.Answered))
		if o.Exact != exact || !exact && o.Lateness != time.Second {
			b.t.Errorf("lateness %v (exact %v), the server took %v", o.Lateness, o.Exact, delay)
		}
		// The entry began between the client and the server, which may be late to see the question.
		start := o.Time.Add(-o.Lateness)
		client := began[0]
		for _, t := range began {
			if t.Before(q.Arrived) {
				client = t
			}
		}
		if exact && (start.Before(client) || start.After(q.Arrived)) {
			b.t.Errorf("lateness %v: the entry began %v after the client, and the question arrived %v after that", o.Lateness, start.Sub(client), q.Arrived.Sub(start))
		}
	}
	// Some are late on a busy machine. Most would be, if they were not reported as they come.
	if len(reports) == 0 {
		b.t.Fatal("no orphan")
	}
	slices.Sort(reports)
	if reports[len(reports)/2] > 200*time.Millisecond {
		b.t.Errorf("half of %d orphans are reported %v or more after the answer", len(reports), reports[len(reports)/2])
	}
	b.t.Logf("%d orphans; reported after the answer: half of them within %v, all within %v", len(orphans), reports[len(reports)/2], reports[len(reports)-1])
}

// A service whose target port is not 53, as OpenShift's: orphans come from the
// target port, which is learned from what collides.
func TestOrphansFromTargetPort(t *testing.T) {
	const delay = lateAnswer
	b := newBox(t, lab.Alternate, lab.Rule{Name: "slow.test.", Addrs: answer, Delay: delay}, lab.Rule{Name: "*", Addrs: answer})
	b.install("iptables")
	const target = "10.96.0.53"
	for i, s := range b.servers {
		command(t, s.Namespace, "iptables-nft", "-t", "nat", "-A", "PREROUTING", "-p", "udp", "--dport", "5353", "-j", "REDIRECT", "--to-ports", "53")
		rule := []string{"-t", "nat", "-A", "PREROUTING", "-d", target, "-p", "udp", "--dport", "53"}
		if i == 0 {
			rule = append(rule, "-m", "statistic", "--mode", "nth", "--every", "2", "--packet", "0")
		}
		b.command("iptables-nft", append(rule, "-j", "DNAT", "--to-destination", s.Addr4.String()+":5353")...)
	}
	p := b.pod("musl", netip.MustParseAddr(target))
	b.sense(Config{})
	b.collide(p, b.hold(2))
	b.wait("a kept collision", 5*time.Second, func(f []Finding) bool { return len(only[Collision](f)) == 1 })
	b.lookupThatWaits(p, delay)
	o := only[Orphan](b.wait("an orphan", 5*time.Second, func(f []Finding) bool { return len(only[Orphan](f)) == 1 }))[0]
	if o.Backend.Port() != 5353 || o.Original.Destination.String() != target+":53" || o.Original.Source.Addr() != p.Addr4 {
		t.Errorf("wrong orphan: %+v", o)
	}
}

// A network policy that denies by default drops a late answer before conntrack
// confirms it, so there is no orphan to see. The question is lost all the same.
func TestLateAnswerMeetsPolicy(t *testing.T) {
	const delay = lateAnswer
	b := newBox(t, lab.Alternate, lab.Rule{Name: "*", Addrs: answer, Delay: delay})
	b.install("nftables")
	p := b.pod("musl", service4)
	b.command("nft", "add table inet deny; add chain inet deny forward { type filter hook forward priority 0; }; "+
		"add rule inet deny forward ct state established,related accept; add rule inet deny forward oifname "+p.Link+" drop")
	b.sense(Config{})
	b.hold(2)
	b.lookupThatWaits(p, delay)
	c := only[Collision](b.wait("a collision without an answer", orphanWait+5*time.Second, func(f []Finding) bool { return len(only[Collision](f)) == 1 }))[0]
	if c.Answered || c.Original.Source.Addr() != p.Addr4 || !c.Loser.IsValid() || c.Loser == c.Winner {
		t.Errorf("wrong collision: %+v", c)
	}
}

// Only the kernel is believed.
func TestSpoofedMessage(t *testing.T) {
	b := newBox(t, lab.Alternate, lab.Rule{Name: "*", Addrs: answer})
	p := b.pod("musl", service4)
	b.sense(Config{})
	var to unix.Sockaddr
	if err := b.sensor.events.raw.Control(func(fd uintptr) { to, _ = unix.Getsockname(int(fd)) }); err != nil {
		t.Fatal(err)
	}
	if err := b.Node().Do(func() error {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
		if err != nil {
			return err
		}
		portID := to.(*unix.SockaddrNetlink).Pid
		return errors.Join(unix.Sendto(fd, build(eventUpdate, 0x15aa, 17, pod, service), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Pid: portID}), unix.Close(fd))
	}); err != nil {
		t.Fatal(err)
	}
	b.collide(p, b.hold(2))
	findings := b.wait("the real collision", 5*time.Second, func(f []Finding) bool { return len(f) > 0 })
	if c := only[Collision](findings); len(findings) != 1 || len(c) != 1 || c[0].Original.Source.Addr() != p.Addr4 {
		t.Errorf("findings: %+v", findings)
	}
	// A message is counted after what it tells was reported.
	if err := lab.Until(t.Context(), 5*time.Second, func() error {
		if n := b.sensor.Counters().Messages; n < 2 {
			return fmt.Errorf("%d messages: the spoofed one did not come", n)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

// Two nameservers that are translated to the same backends: musl asks both at
// once from one socket, the reply tuples clash, and the kernel drops.
func TestDrops(t *testing.T) {
	b := newBox(t, lab.Alternate, lab.Rule{Name: "*", Addrs: answer})
	b.service(other4, lab.Alternate)
	p := b.pod("musl", service4, other4)
	b.sense(Config{})
	h := b.hold(4)
	before := b.statistics()
	// Whether a whole question is lost, to both nameservers, depends on which
	// backends the two services chose: a question to one of them shifts its turn.
	var waited time.Time
	for waited.IsZero() {
		if b.resolve(p, lab.MuslStatic, 1, "fast.test.")[0].Took > 2*time.Second {
			waited = time.Now()
		} else {
			b.ask(p, other4)
		}
	}
	if h.Full() == 0 {
		t.Fatal("the holder never held four packets")
	}
	after := b.statistics()
	dropped := after.Drop - before.Drop
	if dropped == 0 || after.InsertFailed-before.InsertFailed != dropped {
		t.Fatalf("the kernel dropped %d, insert_failed rose by %d", dropped, after.InsertFailed-before.InsertFailed)
	}
	sum := func(f []Finding) (n uint64) {
		for _, d := range only[Drop](f) {
			n += d.Clash
			if d.TableFull+d.ChainTooLong > 0 {
				t.Errorf("a clash was taken for something else: %+v", d)
			}
		}
		return n
	}
	b.wait(fmt.Sprintf("%d dropped packets", dropped), 5*time.Second, func(f []Finding) bool { return sum(f) == dropped })
	t.Logf("%d packets dropped by the kernel, all reported", dropped)
	// The client that asked again gives away whose packets they were.
	slow := only[SlowFlow](b.wait("the client that asked again", settle+3*tickInterval, func(f []Finding) bool { return len(only[SlowFlow](f)) > 0 }))
	for _, s := range slow {
		if s.Witness != AfterDrop || s.Original.Source.Addr() != p.Addr4 || s.Time.Sub(waited) > time.Second {
			t.Errorf("wrong slow flow: %+v, the lookup ended at %v", s, waited)
		}
	}
}

// ask sends one question from a pod and waits for the answer.
func (b *box) ask(p *lab.Pod, nameserver netip.Addr) {
	b.t.Helper()
	err := p.Do(func() error {
		_, err := dns.Exchange(new(dns.Msg).SetQuestion("one.test.", dns.TypeA), netip.AddrPortFrom(nameserver, 53).String())
		return err
	})
	if err != nil {
		b.t.Fatal(err)
	}
}

// With the kernel's packet counters a client that asked again is told from
// sockets that live long and from ports that are used again.
func TestSlowFlows(t *testing.T) {
	b := newBox(t, lab.Random,
		lab.Rule{Name: "lost.test.", Type: dns.TypeAAAA, Times: 1, Drop: true}, // by each server
		lab.Rule{Name: "*", Addrs: answer})
	if err := b.Node().Sysctl("net/netfilter/nf_conntrack_acct", "1"); err != nil {
		t.Fatal(err)
	}
	forwarder, p := b.pod("coredns"), b.pod("musl", service4)
	if _, err := forwarder.RunCoreDNS(fmt.Sprintf(". {\n bind {addr4} {addr6}\n forward . %s\n}\n", service4)); err != nil {
		t.Fatal(err)
	}
	b.sense(Config{})
	want := 0
	for want == 0 {
		if b.resolve(p, lab.MuslStatic, 1, "lost.test.")[0].Took > 2*time.Second {
			want++
		}
	}
	b.resolveFor(forwarder, settle+3*time.Second)
	messages := b.sensor.Counters().Messages
	slow := only[SlowFlow](b.wait("the slow flow", settle, func(f []Finding) bool { return len(only[SlowFlow](f)) >= want }))
	if len(slow) != want || slow[0].Witness != Unanswered || slow[0].Original.Source.Addr() != p.Addr4 || slow[0].Original.Destination.Addr() != service4 {
		t.Errorf("%d slow flows, want %d of %s: %+v", len(slow), want, p.Addr4, slow)
	}
	if messages <= uint64(want) {
		t.Errorf("%d messages: the forwarder's sockets did not live long enough to be told apart", messages)
	}
}

func TestOverrun(t *testing.T) {
	b := newBox(t, lab.Alternate, lab.Rule{Name: "*", Addrs: answer})
	p := b.pod("musl", service4)
	// The smallest buffer that the kernel gives holds two or three messages, and
	// new flows from port 53 pass the filter.
	b.sense(Config{ReceiveBuffer: 1})
	flood(t, b, 5000)
	b.wait("lost messages", 5*time.Second, func(f []Finding) bool { return len(only[Loss](f)) > 0 })
	if b.sensor.Counters().Lost == 0 {
		t.Error("no lost message counted")
	}
	// What comes after the flood is seen.
	before := len(only[Collision](b.wait("findings", 0, func([]Finding) bool { return true })))
	b.collide(p, b.hold(2))
	b.wait("the collision after the flood", 5*time.Second, func(f []Finding) bool { return len(only[Collision](f)) == before+1 })
	losses := only[Loss](b.wait("findings", 0, func([]Finding) bool { return true }))
	var n uint64
	for _, l := range losses {
		n += l.Messages
		if !l.From.Before(l.To) {
			t.Errorf("a loss without a window: %+v", l)
		}
	}
	if got := b.sensor.Counters().Lost; n != got {
		t.Errorf("the losses sum up to %d, %d were counted", n, got)
	}
	t.Logf("%d messages lost in %d windows", n, len(losses))
}

func TestBlindness(t *testing.T) {
	b := newBox(t, lab.Alternate, lab.Rule{Name: "*", Addrs: answer})
	b.sense(Config{})
	latest := func(r Reason, want bool) func([]Finding) bool {
		return func(f []Finding) bool {
			blind := false
			for _, x := range only[Blindness](f) {
				if x.Reason == r {
					blind = x.Blind
					if blind && (x.Evidence == "" || x.Remedy == "") {
						t.Errorf("no evidence or no remedy: %+v", x)
					}
				}
			}
			return blind == want
		}
	}
	set := func(name, value string) {
		t.Helper()
		if err := b.Node().Sysctl(name, value); err != nil {
			t.Fatal(err)
		}
	}
	set("net/netfilter/nf_conntrack_events", "0")
	b.wait("events off", 5*time.Second, latest(EventsOff, true))
	set("net/netfilter/nf_conntrack_events", "2")
	b.wait("events on again", 5*time.Second, latest(EventsOff, false))

	// And it sees again.
	p := b.pod("musl", service4)
	b.collide(p, b.hold(2))
	b.wait("a collision", 5*time.Second, func(f []Finding) bool { return len(only[Collision](f)) == 1 })
}

func TestWithoutPermission(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("dropping a capability needs root")
	}
	err := withoutNetAdmin(func() error {
		s, err := Open(Config{})
		if err == nil {
			return errors.Join(errors.New("opened without CAP_NET_ADMIN"), s.Close())
		}
		if !errors.Is(err, ErrPermission) || !strings.Contains(err.Error(), "CAP_NET_ADMIN") {
			return fmt.Errorf("not an ErrPermission that names the capability: %w", err)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}
