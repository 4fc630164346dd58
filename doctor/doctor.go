package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nodestead/nodestead/certsync"
	"github.com/nodestead/nodestead/conntrack"
	"github.com/nodestead/nodestead/probe"
)

const (
	// limit bounds the examination of names.
	limit = 6 * time.Second
	// giveUp is how long a lookup takes that gets no answer.
	giveUp = 5 * time.Second
	// window is the time between two readings of the statistics.
	window = 500 * time.Millisecond
	// defaultDomain is the cluster's domain unless the kubelet says otherwise.
	defaultDomain = "cluster.local"
	// maxSearch is how many search domains a pod may have (Kubernetes 1.22 and
	// later); the kubelet leaves out the others.
	maxSearch = 32
	// defaultNdots is what the kubelet writes into a pod's resolv.conf.
	defaultNdots = 5
)

// Config is what Run needs. The zero value of a field means its default.
type Config struct {
	// HostRoot is where the host's file system is mounted; by default the
	// process's own root.
	HostRoot string
	// Ports are the UDP ports of DNS; default 53.
	Ports []uint16
	// Name is what a program in a pod would look up: the search list is applied
	// unless it ends with a dot. By default it is kubernetes.default, which
	// every cluster has.
	Name string
	// Search is a pod's search list. By default it is that of a pod in the
	// namespace default, with the node's own at its end.
	Search []string
	// Ndots is a pod's option ndots; default 5.
	Ndots int
	// Nameservers are those of the pods; by default what the kubelet tells them.
	Nameservers []netip.AddrPort
	// Trust is how the agent would make the node trust a private CA; nil: it is
	// not examined.
	Trust *certsync.Config
	// Registries (host:port) are what the node's daemons are asked about. Without
	// any, trust is examined only when one of its sources exists.
	Registries []string
}

// State is what a check came to.
type State string

// The states.
const (
	OK      State = "ok"
	Finding State = "finding" // it breaks lookups or pulls, or will
	Unknown State = "unknown" // it could not be told
)

// Verdict is what came of one check. It is a plain value.
type Verdict struct {
	Check string `json:"check"` // in snake case
	State State  `json:"state"`
	// Evidence says what was seen, Remedy what an operator can do; with OK it
	// may be a piece of advice.
	Evidence string `json:"evidence"`
	Remedy   string `json:"remedy,omitempty"`
}

// Exit is the exit code for verdicts: 0 healthy, 1 when there is a finding, 2
// when there is none but something could not be told.
func Exit(verdicts []Verdict) int {
	has := func(s State) bool {
		return slices.ContainsFunc(verdicts, func(v Verdict) bool { return v.State == s })
	}
	switch {
	case has(Finding):
		return 1
	case has(Unknown):
		return 2
	default:
		return 0
	}
}

// Run examines the node in whose network namespace the process is. The verdicts
// come in the same order every time. It takes six seconds at most, and with
// registries a minute.
func Run(ctx context.Context, cfg Config) []Verdict {
	return newDoctor(cfg).run(ctx)
}

// doctor is one examination.
type doctor struct {
	Config
	window time.Duration
	// within runs what opens sockets, in the node's network namespace.
	within func(func() error) error
	// examine is certsync.Examine.
	examine func(context.Context, certsync.Config, []string) (certsync.Examination, error)

	dns    probe.PodDNS
	dnsErr error
	given  bool // the nameservers are from Config
	// guessed: neither the name nor the cluster's domain is known for sure.
	guessed bool
}

func newDoctor(cfg Config) *doctor {
	return &doctor{Config: cfg, window: window, within: func(fn func() error) error { return fn() }, examine: certsync.Examine}
}

func (d *doctor) run(parent context.Context) []Verdict {
	ctx, cancel := context.WithTimeout(parent, limit)
	defer cancel()
	d.prepare()
	trust := func(context.Context) []Verdict { return d.trust(parent) } // it has a limit of its own
	groups := []func(context.Context) []Verdict{d.conntrack, d.nameservers, d.nodeLocal, d.names, trust}
	results := make([][]Verdict, len(groups))
	var all sync.WaitGroup
	for i, check := range groups {
		all.Go(func() { results[i] = check(ctx) })
	}
	all.Wait()
	return slices.Concat(results...)
}

// prepare finds out what Config left open.
func (d *doctor) prepare() {
	if len(d.Ports) == 0 {
		d.Ports = []uint16{53}
	}
	if d.Ndots == 0 {
		d.Ndots = defaultNdots
	}
	d.dnsErr = d.within(func() (err error) {
		d.dns, err = probe.FindPodDNS(d.HostRoot)
		return err
	})
	d.given = len(d.Nameservers) > 0
	if !d.given {
		d.Nameservers = d.dns.Nameservers
	}
	d.guessed = d.Name == "" && len(d.Search) == 0 && d.dns.Domain == ""
	if len(d.Search) == 0 {
		domain := d.domain()
		d.Search = append([]string{"default.svc." + domain, "svc." + domain, domain}, d.dns.Search...)
	}
	d.Search = d.Search[:min(len(d.Search), maxSearch)]
	if d.Name == "" {
		d.Name = "kubernetes.default"
	}
}

func (d *doctor) domain() string {
	if d.dns.Domain != "" {
		return d.dns.Domain
	}
	return defaultDomain
}

// errNotAsked: what was to be asked is no question.
var errNotAsked = errors.New("cannot be asked")

// ask looks a name up as musl does, at all of the nameservers at once.
func (d *doctor) ask(ctx context.Context, name string, nameservers ...netip.AddrPort) ([]probe.Result, error) {
	p, err := probe.New(probe.Config{
		Names: []string{name}, Nameservers: nameservers,
		Listen: func(network string) (conn *net.UDPConn, err error) {
			err = d.within(func() error {
				conn, err = net.ListenUDP(network, nil)
				return err
			})
			return conn, err
		},
	})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNotAsked, err)
	}
	results := p.Ask(ctx, name)
	// What is missing because it was stopped proves nothing; what is because the lookup was
	// over does, also when ctx has ended since.
	missing := func(r probe.Result) bool { return !taken(r.Outcome) && time.Since(r.Time) < giveUp }
	if err := ctx.Err(); err != nil && slices.ContainsFunc(results, missing) {
		return nil, fmt.Errorf("look up %s: %w", name, err)
	}
	return results, nil
}

// unknown is the verdict of a check that could not be made.
func unknown(check string, err error) Verdict {
	v := Verdict{Check: check, State: Unknown, Evidence: oneLine(err), Remedy: "please report it with the version of the kernel"}
	switch {
	case errors.Is(err, conntrack.ErrPermission):
		v.Remedy = "give it the capability NET_ADMIN in the host's network namespace, as the agent's own container has it"
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		v.Remedy = "let it end: it was stopped before it knew"
	case errors.Is(err, errNotAsked):
		v.Remedy = "correct the name or the nameserver"
	}
	return v
}

func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }
