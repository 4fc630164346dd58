package doctor

import (
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nodestead/nodestead/certsync"
	"github.com/nodestead/nodestead/certsync/anchor"
	"github.com/nodestead/nodestead/certsync/daemon"
	"github.com/nodestead/nodestead/certsync/host"
	"github.com/nodestead/nodestead/certsync/place"
)

var (
	trustNow = time.Date(2026, 5, 1, 0, 0, 0, 0, time.UTC)
	private  = "registry.example.de:5000"
)

func anchorUntil(notAfter time.Time) anchor.Anchor {
	return anchor.Anchor{
		Fingerprint: strings.Repeat("0123456789abcdef", 4), Source: "/ca/ca.crt",
		Cert: &x509.Certificate{Subject: pkix.Name{CommonName: "Example Root"}, NotAfter: notAfter},
	}
}

// trusting is a node where all is in order.
func trusting() certsync.Examination {
	return certsync.Examination{Status: certsync.Status{
		Anchors: []anchor.Anchor{anchorUntil(trustNow.AddDate(2, 0, 0))},
		Targets: []certsync.TargetStatus{{Name: "store", InSync: true}, {Name: "docker/" + private, InSync: true}},
		Runtimes: []certsync.RuntimeStatus{
			{Name: daemon.CRIO},
			{
				Name: daemon.Docker, Present: true,
				Facts: daemon.Facts{
					Present: true, Healthy: true, Version: "28.2.2", LiveRestore: true, Containers: 3,
					Unit: host.Unit{Name: "docker.service", ActiveState: "active", Started: trustNow.Add(-time.Hour)},
				},
				Answers:  []daemon.Answer{{Registry: private, Verdict: daemon.Trusted, Text: "manifest unknown"}},
				Decision: daemon.Decision{Action: daemon.Leave, Reason: "trusted", Detail: "docker trusts what it was asked about"},
			},
		},
	}}
}

func TestTrustVerdicts(t *testing.T) {
	docker := func(e *certsync.Examination) *certsync.RuntimeStatus { return &e.Runtimes[1] }
	for _, tt := range []struct {
		name    string
		inject  func(*certsync.Examination)
		want    []string // what is not ok
		says    []string
		remedy  []string
		silence []string // what must not be said
	}{
		{name: "healthy", inject: func(*certsync.Examination) {}, says: []string{
			"CN=Example Root (SHA-256 0123456789abcdef…, until 2028-05-01)",
			"store is in sync",
			"docker/registry.example.de:5000 is in sync",
			"docker 28.2.2; docker.service runs since 2026-04-30T23:00:00Z; live-restore is on, 3 containers run; trusted: docker trusts what it was asked about",
			"registry.example.de:5000: docker trusts it: manifest unknown",
		}, silence: []string{"crio"}},
		{name: "an anchor that ends soon",
			inject: func(e *certsync.Examination) { e.Anchors[0] = anchorUntil(trustNow.AddDate(0, 0, 29)) },
			want:   []string{"ca_sources finding"}, says: []string{"ends in 29 days"}, remedy: []string{"put its successor beside it"}},
		{name: "an anchor that ends in more than a month",
			inject: func(e *certsync.Examination) { e.Anchors[0] = anchorUntil(trustNow.AddDate(0, 0, 31)) }},
		{name: "a refused entry", inject: func(e *certsync.Examination) {
			e.Refused = []anchor.Refusal{{Source: "/ca/tls.key", Reason: "private_key", Detail: "it holds a private key"}}
		}, want: []string{"ca_sources finding"}, says: []string{"refused: /ca/tls.key: private_key: it holds a private key"}, remedy: []string{"take it out of the source"}},
		{name: "a broken source", inject: func(e *certsync.Examination) {
			e.Broken = []anchor.Refusal{{Source: "/ca", Reason: "missing", Detail: "no such directory"}}
		}, want: []string{"ca_sources finding"}, says: []string{"broken: /ca: missing: no such directory"}, remedy: []string{"whether the Secret is mounted"}},
		{name: "a warning", inject: func(e *certsync.Examination) {
			e.Warnings = []anchor.Refusal{{Source: "/ca/ca.crt", Reason: "same_subject", Detail: "two"}}
		}, says: []string{"warning: /ca/ca.crt: same_subject: two"}, remedy: []string{"advice: "}},
		{name: "no anchor", inject: func(e *certsync.Examination) {
			e.Anchors = nil
			docker(e).Answers, docker(e).Decision = nil, daemon.Decision{}
		}, want: []string{"ca_sources finding", "registry_docker unknown"}, says: []string{
			"there is no CA to trust", "store: nothing is known that should be there",
			"docker was not asked: there is no CA to trust",
		}},
		{name: "an installation that waits", inject: func(e *certsync.Examination) {
			e.Targets[0] = certsync.TargetStatus{Name: "store", Err: "1 anchor is new"}
			e.Waiting = []string{"store"}
			docker(e).Answers, docker(e).Decision = nil, daemon.Decision{}
		}, want: []string{"ca_store finding", "registry_docker unknown"}, says: []string{
			"store waits: 1 anchor is new",
			"registry.example.de:5000: docker was not asked: anchors wait to be installed (store), and a question makes it load the roots that are there now",
		}, remedy: []string{"run nodestead trust --once first"}},
		{name: "a store that cannot be used", inject: func(e *certsync.Examination) {
			e.Targets[0] = certsync.TargetStatus{Name: "store", Err: "Talos: its root is read-only"}
		}, want: []string{"ca_store finding"}, says: []string{"store: Talos: its root is read-only"}, remedy: []string{"trust.store"}},
		{name: "a foreign file in certs.d", inject: func(e *certsync.Examination) {
			e.Targets[1].Problems = []place.Problem{{Path: "/etc/docker/certs.d/registry.example.de:5000/hosts.toml", Reason: "foreign_hosts_toml", Detail: "it is not ours"}}
		}, want: []string{"ca_certs_d finding"}, says: []string{"hosts.toml: foreign_hosts_toml: it is not ours"}, remedy: []string{"by hand"}},
		{name: "a foreign file that keeps the anchors out", inject: func(e *certsync.Examination) {
			p := place.Problem{Path: "/etc/docker/certs.d/r/hosts.toml", Reason: "foreign_hosts_toml", Detail: "it is not ours"}
			e.Targets[1] = certsync.TargetStatus{Name: "docker/" + private, Err: p.Path + ": " + p.Reason + ": " + p.Detail, Problems: []place.Problem{p}}
		}, want: []string{"ca_certs_d finding"}, says: []string{"docker/registry.example.de:5000: /etc/docker/certs.d/r/hosts.toml: foreign_hosts_toml: it is not ours\n"}},
		{name: "all switched off", inject: func(e *certsync.Examination) { e.Targets = nil }, says: []string{"the trust store is not used", "certs.d is not used"}},
		{name: "a daemon that does not trust, and is not restarted", inject: func(e *certsync.Examination) {
			docker(e).Facts.LiveRestore = false
			docker(e).Answers[0] = daemon.Answer{Registry: private, Verdict: daemon.Untrusted, Text: "x509: certificate signed by unknown authority"}
			docker(e).Decision = daemon.Decision{Action: daemon.Pending, Reason: "no_live_restore", Detail: "it would stop containers", Remedy: "switch live-restore on"}
		}, want: []string{"runtime_docker finding", "registry_docker finding"}, says: []string{
			"live-restore is off, 3 containers run; a restart is pending: no_live_restore: it would stop containers",
			"registry.example.de:5000: docker does not trust it: x509: certificate signed by unknown authority",
		}, remedy: []string{"switch live-restore on", "see runtime_docker"}},
		{name: "a daemon that would be restarted", inject: func(e *certsync.Examination) {
			docker(e).Decision = daemon.Decision{Action: daemon.Restart, Reason: "untrusted", Detail: "it began before"}
		}, want: []string{"runtime_docker finding"}, says: []string{"it has to be restarted: untrusted: it began before"}, remedy: []string{"nodestead trust --once, which restarts it"}},
		{name: "a restart that would not help", inject: func(e *certsync.Examination) {
			docker(e).Answers[0] = daemon.Answer{Registry: private, Verdict: daemon.Untrusted, Text: "x509: unknown"}
			docker(e).Decision = daemon.Decision{Action: daemon.Leave, Reason: "would_not_help", Detail: "another CA", Remedy: "put the right CA into the source"}
		}, want: []string{"registry_docker finding"}, remedy: []string{"put the right CA into the source"}},
		{name: "a registry that is down", inject: func(e *certsync.Examination) {
			docker(e).Answers[0] = daemon.Answer{Registry: private, Verdict: daemon.Unclear, Text: "connection refused"}
		}, want: []string{"registry_docker unknown"}, says: []string{"docker cannot tell: connection refused"}, remedy: []string{"can be reached"}},
		{name: "a daemon that is stopped", inject: func(e *certsync.Examination) {
			docker(e).Facts.Healthy, docker(e).Facts.Unit.ActiveState = false, "failed"
			docker(e).Answers = nil
			docker(e).Decision = daemon.Decision{Action: daemon.Leave, Reason: "not_running", Detail: "it loads the store when it is started"}
		}, want: []string{"registry_docker unknown"}, says: []string{"docker.service is failed", "does not answer on its socket"}, silence: []string{"live-restore"}},
		{name: "a daemon that somebody stopped", inject: func(e *certsync.Examination) {
			docker(e).Facts.Healthy, docker(e).Facts.Unit.ActiveState = false, "inactive"
			docker(e).Answers = nil
			docker(e).Decision = daemon.Decision{Action: daemon.Leave, Reason: "not_running", Detail: "it loads the store when it is started"}
		}, says: []string{"docker.service is inactive", "docker was not asked: it pulls nothing itself"}},
		{name: "docker's own containerd", inject: func(e *certsync.Examination) {
			docker(e).Name, docker(e).Facts.NoCRI = daemon.Containerd, true
			docker(e).Answers[0] = daemon.Answer{Registry: private, Verdict: daemon.Unclear, Text: "unknown service runtime.v1.ImageService"}
			docker(e).Decision = daemon.Decision{Action: daemon.Leave, Reason: "no_cri", Detail: "it pulls no images itself"}
		}, says: []string{"no_cri: it pulls no images itself", "containerd was not asked"}, silence: []string{"live-restore"}},
		{name: "a store of its own", inject: func(e *certsync.Examination) {
			docker(e).Facts.OtherStore, docker(e).Facts.CertDirsWhy = "SSL_CERT_FILE=/x", "no config_path"
		}, says: []string{"it reads SSL_CERT_FILE=/x", "it reads no certs.d: no config_path"}},
		{name: "no systemd", inject: func(e *certsync.Examination) {
			docker(e).Facts.Unit, docker(e).Facts.NoUnit = host.Unit{}, "no systemd"
		}, says: []string{"docker 28.2.2; no systemd; live-restore"}},
		{name: "no daemon", inject: func(e *certsync.Examination) { e.Runtimes = e.Runtimes[:1] },
			want: []string{"runtimes unknown"}, says: []string{"no dockerd, containerd or CRI-O"}},
		{name: "a daemon that could not be looked at", inject: func(e *certsync.Examination) {
			docker(e).Err = "ask systemd:\ntimeout"
		}, want: []string{"runtime_docker unknown"}, says: []string{"ask systemd:; timeout"}, silence: []string{"no dockerd"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := trusting()
			tt.inject(&e)
			verdicts := judgeTrust(e, []string{private}, trustNow)
			if diff := cmp.Diff(tt.want, notOK(verdicts)); diff != "" {
				t.Errorf("not ok (-want +got):\n%s\n%s", diff, text(verdicts))
			}
			var evidence, remedies strings.Builder
			for _, v := range verdicts {
				fmt.Fprintln(&evidence, v.Evidence)
				fmt.Fprintln(&remedies, v.Remedy)
				if v.Evidence == "" || v.State != OK && v.Remedy == "" || strings.Contains(v.Evidence+v.Remedy, "\n") {
					t.Errorf("no evidence, no remedy or more than a line: %+v", v)
				}
			}
			for _, s := range tt.says {
				if !strings.Contains(evidence.String(), s) {
					t.Errorf("the evidence lacks %q:\n%s", s, text(verdicts))
				}
			}
			for _, s := range tt.remedy {
				if !strings.Contains(remedies.String(), s) {
					t.Errorf("the remedies lack %q:\n%s", s, text(verdicts))
				}
			}
			for _, s := range tt.silence {
				if strings.Contains(text(verdicts), s) {
					t.Errorf("%q is said:\n%s", s, text(verdicts))
				}
			}
		})
	}
}

// TestTrustAppliesWhereItIsUsed: a node without it is not unhealthy.
func TestTrustAppliesWhereItIsUsed(t *testing.T) {
	there, gone := t.TempDir(), t.TempDir()+"/none"
	for _, tt := range []struct {
		name  string
		cfg   Config
		err   error
		want  []string
		asked []string
	}{
		{name: "not examined", cfg: Config{}},
		{name: "no source, no registry", cfg: Config{Trust: &certsync.Config{Sources: []string{gone}}}},
		{name: "a source", cfg: Config{Trust: &certsync.Config{Sources: []string{gone, there}}},
			want: []string{"ca_sources ok", "ca_store ok", "ca_certs_d ok", "runtime_docker ok"}},
		{name: "a registry", cfg: Config{Trust: &certsync.Config{Sources: []string{gone}}, Registries: []string{private}},
			want: []string{"ca_sources ok", "ca_store ok", "ca_certs_d ok", "runtime_docker ok", "registry_docker ok"}, asked: []string{private}},
		{name: "no root", cfg: Config{Trust: &certsync.Config{}, Registries: []string{private}}, err: fmt.Errorf("open /host: %w", fs.ErrPermission),
			want: []string{"ca_sources unknown"}, asked: []string{private}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := newDoctor(tt.cfg)
			var asked []string
			d.examine = func(_ context.Context, _ certsync.Config, registries []string) (certsync.Examination, error) {
				asked = registries
				return trustingAt(time.Now()), tt.err
			}
			verdicts := d.trust(t.Context())
			var got []string
			for _, v := range verdicts {
				got = append(got, fmt.Sprintf("%s %s", v.Check, v.State))
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("verdicts (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.asked, asked); diff != "" {
				t.Errorf("asked about (-want +got):\n%s", diff)
			}
			if tt.err != nil && !strings.Contains(verdicts[0].Remedy, "run as root") {
				t.Errorf("the remedy is %q", verdicts[0].Remedy)
			}
		})
	}
}

func trustingAt(now time.Time) certsync.Examination {
	e := trusting()
	e.Anchors[0] = anchorUntil(now.AddDate(2, 0, 0))
	return e
}

// TestTrustHasItsOwnTime: names give up after six seconds, daemons may take longer.
func TestTrustHasItsOwnTime(t *testing.T) {
	d := newDoctor(Config{Trust: &certsync.Config{}, Registries: []string{private}})
	d.within = func(func() error) error { return errors.New("not here") }
	asked := false
	d.examine = func(ctx context.Context, _ certsync.Config, _ []string) (certsync.Examination, error) {
		asked = true
		if deadline, ok := ctx.Deadline(); !ok || time.Until(deadline) < trustLimit/2 || time.Until(deadline) > trustLimit {
			t.Errorf("deadline in %v", time.Until(deadline))
		}
		return certsync.Examination{}, context.DeadlineExceeded
	}
	verdicts := d.run(t.Context())
	last := verdicts[len(verdicts)-1]
	if !asked || last.Check != "ca_sources" || last.State != Unknown || !strings.Contains(last.Remedy, "let it end") {
		t.Errorf("the last verdict is %+v", last)
	}
}
