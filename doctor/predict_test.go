package doctor

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/miekg/dns"
	"golang.org/x/sync/errgroup"

	"github.com/nodestead/nodestead/internal/lab"
)

// What is said of musl and glibc is what they really do.
func TestPredictsResolvers(t *testing.T) {
	t.Parallel()
	l := lab.ForTest(t)
	outcomes := map[string]lab.Rule{
		"nxdomain": {Rcode: dns.RcodeNameError}, "noerror": {Addrs: both}, "nodata": {}, "servfail": {Rcode: dns.RcodeServerFailure},
		"timeout": {Drop: true}, "refused": {Rcode: dns.RcodeRefused},
	}
	// A/AAAA of name.a.test., name.b.test. and name.
	lists := []string{
		"noerror/nodata", "nxdomain/nxdomain nxdomain/nxdomain noerror/noerror",
		"nodata/nodata noerror/noerror noerror/noerror", "servfail/servfail noerror/noerror noerror/noerror",
		"noerror/nxdomain nxdomain/nxdomain nxdomain/nxdomain", "noerror/servfail noerror/noerror nxdomain/nxdomain",
		"nxdomain/noerror noerror/noerror nxdomain/nxdomain", "nodata/nxdomain noerror/noerror nxdomain/nxdomain",
		"nxdomain/timeout noerror/noerror nxdomain/nxdomain", "timeout/timeout noerror/noerror nxdomain/nxdomain",
		"nxdomain/nxdomain nxdomain/nxdomain nxdomain/nxdomain", "nxdomain/nxdomain nxdomain/nxdomain servfail/servfail",
		"nxdomain/nxdomain nxdomain/nxdomain nodata/nodata", "noerror/timeout noerror/noerror nxdomain/nxdomain",
		"nodata/timeout noerror/noerror nxdomain/nxdomain", "timeout/nxdomain noerror/noerror nxdomain/nxdomain",
		"servfail/timeout noerror/noerror nxdomain/nxdomain", "refused/nxdomain noerror/noerror nxdomain/nxdomain",
		"timeout/timeout noerror/noerror noerror/nodata", "timeout/timeout nxdomain/nxdomain timeout/timeout",
		"nxdomain/nxdomain nxdomain/nxdomain nxdomain/timeout", "nxdomain/nxdomain nxdomain/nxdomain timeout/nxdomain", "nxdomain/nxdomain nxdomain/nxdomain nodata/servfail",
		"servfail/servfail nxdomain/nxdomain nxdomain/nxdomain", "servfail/nxdomain nxdomain/nxdomain nxdomain/nxdomain",
		"servfail/servfail nodata/nodata nxdomain/nxdomain", "nxdomain/servfail nxdomain/nxdomain nxdomain/nxdomain",
		"timeout/nodata noerror/noerror nxdomain/nxdomain", "timeout/servfail noerror/noerror nxdomain/nxdomain",
		"nxdomain/refused noerror/noerror nxdomain/nxdomain", "refused/servfail noerror/noerror nxdomain/nxdomain",
		"refused/timeout noerror/noerror nxdomain/nxdomain", "nodata/refused noerror/noerror nxdomain/nxdomain",
		"refused/refused noerror/noerror nxdomain/nxdomain", "servfail/noerror noerror/noerror nxdomain/nxdomain",
	}
	var rules []lab.Rule
	for i, list := range lists {
		for j, pair := range strings.Fields(list) {
			a, aaaa, _ := strings.Cut(pair, "/")
			for qtype, outcome := range map[uint16]string{dns.TypeA: a, dns.TypeAAAA: aaaa} {
				r := outcomes[outcome]
				r.Name, r.Type = fmt.Sprintf("n%d%s", i, []string{".a.test.", ".b.test.", "."}[j]), qtype
				rules = append(rules, r)
			}
		}
	}
	s, err := l.AddServer(rules...)
	if err != nil {
		t.Fatal(err)
	}
	search := []string{"a.test", "b.test"}
	newPod := func(timeout string) *lab.Pod {
		t.Helper()
		pod, err := l.AddPod(lab.PodConfig{Name: "pod", Nameservers: []netip.Addr{s.Addr4}, Search: search, Options: []string{"ndots:5", timeout, "attempts:1"}})
		if err != nil {
			t.Fatal(err)
		}
		return pod
	}
	pod, patient := newPod("timeout:1"), newPod("timeout:5")
	type said struct{ musl, glibc, story string }
	predicted, real := make([]said, len(lists)), make([]said, len(lists))
	predict := func(name string) said {
		d := newDoctor(Config{Name: name, Search: search, Ndots: 5, Nameservers: []netip.AddrPort{netip.AddrPortFrom(s.Addr4, 53)}})
		d.within = pod.Do
		verdicts := d.names(t.Context())
		story := verdicts[1].Evidence
		_, after, _ := strings.Cut(story[strings.LastIndex(story, "; musl: "):], "musl: ")
		m, g, _ := strings.Cut(after, "; glibc: ")
		return said{m, g, story}
	}
	var all errgroup.Group
	for i := range lists {
		name := fmt.Sprintf("n%d", i)
		all.Go(func() error {
			predicted[i] = predict(name)
			return nil
		})
		for resolver, to := range map[lab.Resolver]*string{lab.MuslStatic: &real[i].musl, lab.Glibc: &real[i].glibc} {
			all.Go(func() error {
				answers, err := pod.Resolve(t.Context(), resolver, 1, name)
				if err == nil {
					*to = answers[0].Err
				}
				return err
			})
		}
	}
	if err := all.Wait(); err != nil {
		t.Fatal(err)
	}
	// libc's words; glibc tells NODATA from not found only sometimes.
	same := func(predicted, real string) bool {
		switch end(predicted) {
		case success:
			return real == ""
		case tryAgain:
			return real == "EAI_AGAIN"
		case noData:
			return real == "EAI_NODATA" || real == "EAI_NONAME" // the latter: musl before 1.2.3
		case notFound:
			return real == "EAI_NONAME" || real == "EAI_NODATA"
		}
		return false
	}
	// On a busy machine a resolver's second may be over before an answer comes, or
	// the five of the prediction: where the two do not agree, both are asked once
	// more, alone, and the resolver with more time.
	again := func(name string, resolver lab.Resolver) string {
		t.Helper()
		answers, err := patient.Resolve(t.Context(), resolver, 1, name)
		if err != nil {
			t.Fatal(err)
		}
		return answers[0].Err
	}
	for i, list := range lists {
		p, r := predicted[i], real[i]
		if name := fmt.Sprintf("n%d", i); !same(p.musl, r.musl) || !same(p.glibc, r.glibc) {
			p = predict(name)
			r.musl, r.glibc = again(name, lab.MuslStatic), again(name, lab.Glibc)
		}
		if !same(p.musl, r.musl) {
			t.Errorf("%s: musl says %q, not %q\n%s", list, r.musl, p.musl, p.story)
		}
		if !same(p.glibc, r.glibc) {
			t.Errorf("%s: glibc says %q, not %q\n%s", list, r.glibc, p.glibc, p.story)
		}
	}
}
