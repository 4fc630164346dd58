package agent

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/nodestead/nodestead/incident"
	"github.com/nodestead/nodestead/internal/lab"
)

// made is how often each cause is made, at least.
const made = 20

// asked is the name that is looked up in the scenes.
const asked = "git.example.de."

// scene makes lookups that are lost or fail for one cause.
type scene struct {
	cause incident.Cause
	// name sets scenes with the same cause apart.
	name     string
	resolver lab.Resolver
	label    string // of the resolver
	pod      *lab.CRIPod
	service  netip.Addr
	// qtypes are the types whose lookups must be reported: one incident for each
	// type and call.
	qtypes []string
	// lookups is the number of incidents; 0 for each times as many as calls that
	// waited.
	lookups, each int
	// question is the name that is reported.
	question string
	play     func(*scene) []told
}

// TestCauses makes every cause on the real kernel, with real resolvers in real
// pods, and holds what the agent says against what was made.
func TestCauses(t *testing.T) {
	a := newBoxAgent(t, lab.BoxConfig{})
	address := []netip.Addr{netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("2001:db8::7")}
	warm := lab.Rule{Name: "warm.test.", Addrs: address}
	normal := lab.Rule{Name: "*", Addrs: address}
	// An answer after four seconds comes well after musl has asked again, and before it gives up.
	slow := func(d time.Duration) lab.Rule { return lab.Rule{Name: asked, Addrs: address, Delay: d} }

	pod := func(name string, nameservers ...netip.Addr) *lab.CRIPod {
		return a.runPod(lab.CRIPodConfig{Namespace: "ci", Name: name, Containers: []string{"build"}, Nameservers: nameservers})
	}
	threads := func(s *scene) []told { return a.ask(s.pod, "build", s.resolver, 1, made, asked) }
	both := []string{"A", "AAAA"}

	alternate, _ := a.service("10.96.0.10", lab.Alternate, 2, warm, slow(lateAnswer), normal)
	slowly, _ := a.service("10.96.0.11", lab.Random, 1, warm, slow(4*time.Second), normal)
	silent, _ := a.service("10.96.0.12", lab.Random, 2, warm, lab.Rule{Name: asked, Drop: true}, normal)
	healthy, healthyServers := a.service("10.96.0.13", lab.Random, 1, normal)
	failing, _ := a.service("10.96.0.14", lab.Random, 1, warm,
		lab.Rule{Name: asked, Rcode: dns.RcodeServerFailure},
		// After a while, so that a call is not taken for a retry of the one before where both have one id by chance.
		lab.Rule{Name: "refused.test.", Rcode: dns.RcodeRefused, Delay: 10 * time.Millisecond})
	mixed, _ := a.service("10.96.0.15", lab.Random, 1, warm,
		lab.Rule{Name: asked, Type: dns.TypeAAAA, Rcode: dns.RcodeNameError},
		lab.Rule{Name: "fails.example.de.", Type: dns.TypeAAAA, Rcode: dns.RcodeServerFailure}, normal)
	searching, _ := a.service("10.96.0.16", lab.Random, 1, warm,
		lab.Rule{Name: "*.nodata.test."}, lab.Rule{Name: "*.nx.test.", Rcode: dns.RcodeNameError}, normal)
	cluster, _ := a.service("10.96.0.18", lab.Random, 1, lab.Rule{Name: "*.cluster.local.", Rcode: dns.RcodeNameError}, normal)
	cut, _ := a.service("10.96.0.17", lab.Random, 1, warm, lab.Rule{Name: asked, Truncated: true}, normal)
	twin, twins := a.service("10.96.0.20", lab.Alternate, 2, normal)
	double := netip.MustParseAddr("10.96.0.21")
	if err := a.AddService(double, lab.Alternate, twins[0].Addr4, twins[1].Addr4); err != nil {
		t.Fatal(err)
	}
	stale := netip.MustParseAddr("10.96.0.22")
	gone := netip.MustParseAddr("10.244.3.250") // routed, and nobody is there
	if err := a.AddService(stale, lab.Alternate, healthyServers[0].Addr4, gone); err != nil {
		t.Fatal(err)
	}

	search := a.runPod(lab.CRIPodConfig{
		Namespace: "ci", Name: "search", Containers: []string{"build"}, Nameservers: []netip.Addr{searching},
		Search: []string{"a.nx.test", "b.nodata.test"}, Options: []string{"ndots:5"},
	})
	wasteful := a.runPod(lab.CRIPodConfig{
		Namespace: "shop", Name: "wasteful", Containers: []string{"build"}, Nameservers: []netip.Addr{cluster},
		Search: []string{"shop.svc.cluster.local", "svc.cluster.local", "cluster.local"}, Options: []string{"ndots:5"},
	})
	a.start()

	together := []*scene{
		{
			cause: incident.SlowAnswer, resolver: lab.MuslStatic, label: "musl", pod: pod("slow", slowly), service: slowly,
			qtypes: both, lookups: 2 * made, play: threads,
		},
		{
			cause: incident.ServerSilent, resolver: lab.MuslDynamic, label: "musl", pod: pod("silent", silent), service: silent,
			qtypes: both, lookups: 2 * made, play: threads,
		},
		{
			cause: incident.DroppedOnNode, name: "question", resolver: lab.MuslStatic, label: "musl", pod: pod("dropped-out", healthy), service: healthy,
			qtypes: both, lookups: 2 * made, play: func(s *scene) []told {
				a.drop("-s", s.pod.Addr4.String(), "-p", "udp", "--dport", "53")
				return threads(s)
			},
		},
		{
			cause: incident.DroppedOnNode, name: "answer", resolver: lab.MuslStatic, label: "musl", pod: pod("dropped-in", healthy), service: healthy,
			qtypes: both, lookups: 2 * made, play: func(s *scene) []told {
				a.drop("-d", s.pod.Addr4.String(), "-p", "udp", "--sport", "53")
				return threads(s)
			},
		},
		{
			cause: incident.StaleBackend, resolver: lab.MuslStatic, label: "musl", pod: pod("stale", stale), service: stale,
			qtypes: both, each: 2, play: func(s *scene) []told {
				return a.ask(s.pod, "build", s.resolver, 1, 2*made, asked)
			},
		},
		{
			cause: incident.ServerFailure, name: "musl", resolver: lab.MuslStatic, label: "musl", pod: pod("servfail", failing), service: failing,
			qtypes: both, lookups: 2 * made, play: threads,
		},
		{
			cause: incident.FamilyMismatch, name: "nxdomain", resolver: lab.MuslDynamic, label: "musl", pod: pod("mixed", mixed), service: mixed,
			qtypes: []string{"AAAA"}, lookups: made, play: func(s *scene) []told { return a.ask(s.pod, "build", s.resolver, made, 1, asked) },
		},
		{
			cause: incident.FamilyMismatch, name: "servfail", resolver: lab.MuslStatic, label: "musl", pod: pod("half", mixed), service: mixed,
			qtypes: []string{"AAAA"}, lookups: made, question: "fails.example.de.", play: func(s *scene) []told {
				return a.ask(s.pod, "build", s.resolver, 1, made, "fails.example.de.")
			},
		},
		{
			cause: incident.SearchStopped, resolver: lab.MuslStatic, label: "musl", pod: search, service: searching,
			qtypes: []string{"A"}, lookups: made, question: "git.example.de.b.nodata.test.", play: func(s *scene) []told {
				return a.ask(s.pod, "build", s.resolver, made, 1, "git.example.de")
			},
		},
		{
			cause: incident.Truncated, resolver: lab.MuslStatic, label: "musl", pod: pod("truncated", cut), service: cut,
			qtypes: both, lookups: 2 * made, play: func(s *scene) []told { return a.ask(s.pod, "build", s.resolver, made, 1, asked) },
		},
	}
	refused := &scene{
		cause: incident.ServerFailure, name: "glibc", resolver: lab.Glibc, label: "glibc", pod: pod("refused", failing), service: failing,
		qtypes: both, lookups: 2 * made, question: "refused.test.", play: func(s *scene) []told {
			return a.ask(s.pod, "build", s.resolver, made, 1, "refused.test.")
		},
	}
	orphaned := &scene{
		cause: incident.OrphanedAnswer, resolver: lab.MuslStatic, label: "musl", pod: pod("orphaned", alternate), service: alternate,
		qtypes: both, each: 1, play: func(s *scene) []told {
			h, err := a.Hold(2, 250*time.Millisecond)
			if err != nil {
				t.Fatal(err)
			}
			defer h.Close()
			return a.ask(s.pod, "build", s.resolver, 2, made, asked)
		},
	}
	dropped := &scene{
		cause: incident.CollisionDropped, resolver: lab.MuslStatic, label: "musl", pod: pod("twins", twin, double), service: twin,
		qtypes: both, each: 1, play: func(s *scene) []told {
			h, err := a.Hold(4, 250*time.Millisecond)
			if err != nil {
				t.Fatal(err)
			}
			defer h.Close()
			// Whose turn it is at each service decides whether both copies of a
			// question are dropped, or one copy of each.
			var all []told
			for try := 0; try < 15 && waited(all) < made; try++ {
				all = append(all, a.ask(s.pod, "build", s.resolver, 1, made, asked)...)
			}
			return all
		},
	}
	full := &scene{
		cause: incident.TableFull, resolver: lab.MuslStatic, label: "musl", pod: pod("full", healthy), service: healthy,
		qtypes: both, each: 2, play: func(s *scene) []told {
			// Flows of the scenes before would end soon, and make room.
			if err := a.FlushConntrack(); err != nil {
				t.Fatal(err)
			}
			if err := a.FillConntrack(); err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := a.FlushConntrack(); err != nil {
					t.Error(err)
				}
			}()
			return threads(s)
		},
	}

	matrix := map[incident.Cause]map[string]int{}
	a.playAll(together, matrix)
	a.playAll([]*scene{refused}, matrix) // by itself, for the many calls before it
	a.playAll([]*scene{orphaned}, matrix)
	a.playAll([]*scene{dropped}, matrix)
	a.playAll([]*scene{full}, matrix)
	t.Log("\n" + confusion(matrix))

	// Advice is apart from incidents. Collisions whose answers come in time hurt
	// nobody.
	h, err := a.Hold(2, 250*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	a.ask(orphaned.pod, "build", lab.MuslStatic, 5, 1, "warm.test.")
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	a.logged("level=INFO", `msg="dns works, and could work better"`, "advice=random_backends", "nameserver=10.96.0.10:53", "remedy=")
	if n := len(a.ask(wasteful, "build", lab.MuslStatic, made, 1, "git.example.de")); n != made {
		t.Errorf("%d of %d calls", n, made)
	}
	a.metric(`nodestead_dns_search_wasted_total{namespace="shop"}`, strconv.Itoa(6*made))
	a.logged("level=INFO", "advice=search_amplification", "namespace=shop", "pod=wasteful", "name=git.example.de.", "cost 6 useless questions", "ndots: 1")
	if all := a.ofPod(wasteful, 0); len(all) != 0 {
		t.Errorf("advice is an incident as well: %+v", all)
	}
}

// drop has the node drop packets that it forwards.
func (a *boxAgent) drop(match ...string) {
	args := append(append([]string{"iptables", "-w", "-I", "FORWARD"}, match...), "-j", "DROP")
	if _, err := a.box.Run(a.t.Context(), args...); err != nil {
		a.t.Error(err)
	}
}

// playAll plays scenes at the same time and checks what the agent says of each.
func (a *boxAgent) playAll(scenes []*scene, matrix map[incident.Cause]map[string]int) {
	a.t.Helper()
	var wg sync.WaitGroup
	answers := make([][]told, len(scenes))
	for i, s := range scenes {
		if s.cause != incident.StaleBackend {
			// So that what healthy lookups show of pod and server is known. One in 128 of
			// glibc's pairs has ids as close together as musl's; that is no longer
			// taken for musl once some dozens of the pod's pairs were not.
			calls := 2
			if s.resolver == lab.Glibc {
				calls = 60
			}
			a.ask(s.pod, "build", s.resolver, calls, 1, "warm.test.")
		}
		wg.Go(func() { answers[i] = s.play(s) })
	}
	wg.Wait()
	for i, s := range scenes {
		a.check(s, answers[i], matrix)
	}
}

// waited counts the calls that had to ask again.
func waited(answers []told) (n int) {
	for _, v := range answers {
		if v.took > 2400*time.Millisecond {
			n++
		}
	}
	return n
}

func (a *boxAgent) check(s *scene, answers []told, matrix map[incident.Cause]map[string]int) {
	a.t.Helper()
	waited, want := waited(answers), s.lookups
	if want == 0 {
		want = waited * s.each
	}
	title := strings.TrimSpace(string(s.cause) + " " + s.name)
	got := a.ofPod(s.pod, want)
	if want < made || len(got) != want {
		a.t.Errorf("%s: %d incidents, want %d, and at least %d (%d of %d calls waited)", title, len(got), want, made, waited, len(answers))
	}
	question := s.question
	if question == "" {
		question = asked
	}
	if matrix[s.cause] == nil {
		matrix[s.cause] = map[string]int{}
	}
	wrong := 0
	for _, in := range got {
		matrix[s.cause][in.Cause]++
		good := in.Cause == string(s.cause) && in.Namespace == s.pod.Namespace && in.Pod == s.pod.Name && in.Container == "build" &&
			in.Resolver == s.label && in.Name == question && slices.Contains(s.qtypes, in.QType) &&
			in.Nameserver == netip.AddrPortFrom(s.service, 53).String() && in.Evidence != "" && in.Remedy != ""
		if !good {
			if wrong++; wrong < 4 {
				a.t.Errorf("%s: %+v", title, in)
			}
		}
	}
	if wrong > 0 {
		a.t.Errorf("%s: %d of %d incidents are wrong", title, wrong, len(got))
	}
	a.t.Logf("%s: %d calls, %d waited, %d incidents", title, len(answers), waited, len(got))
}

// confusion is a table of what was made against what was reported.
func confusion(matrix map[incident.Cause]map[string]int) string {
	var columns []string
	for _, c := range slices.Concat(incident.TimeoutCauses(), incident.FailureCauses()) {
		columns = append(columns, string(c))
	}
	var b strings.Builder
	fmt.Fprintf(&b, "| made | %s |\n|---|%s\n", strings.Join(columns, " | "), strings.Repeat("---|", len(columns)))
	for _, c := range slices.Sorted(maps.Keys(matrix)) {
		fmt.Fprintf(&b, "| `%s` |", c)
		for _, reported := range columns {
			if n := matrix[c][reported]; n > 0 {
				fmt.Fprintf(&b, " %d |", n)
			} else {
				b.WriteString(" |")
			}
		}
		b.WriteString("\n")
	}
	return b.String()
}
