package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// PodConfig says what a pod looks like. Only Name is needed.
type PodConfig struct {
	// Name is the pod's host name.
	Name string
	// Nameservers, Search and Options ("ndots:5") go to its resolv.conf.
	Nameservers []netip.Addr
	Search      []string
	Options     []string
	// Addresses is the number of its IPv4 addresses, 1 by default. It always
	// has one IPv6 address.
	Addresses int
}

// Pod is a namespace behind the node with a link of its own and its own files
// under /etc, of which it has only resolv.conf, hosts, nsswitch.conf and passwd.
type Pod struct {
	*Namespace
	// Name is that of its PodConfig.
	Name string
	// Addr4 is the first of its IPv4 addresses, the one it asks from; Addr6 its
	// only IPv6 address.
	Addr4, Addr6 netip.Addr
	// Addrs4 are all its IPv4 addresses.
	Addrs4 []netip.Addr
	// Link is the name of its link on the node's side.
	Link string
}

// AddPod makes a pod. It lives until the lab is closed.
func (l *Lab) AddPod(cfg PodConfig) (*Pod, error) {
	p, err := l.addPod(cfg)
	if err != nil {
		return nil, fmt.Errorf("add pod %s: %w", cfg.Name, err)
	}
	return p, nil
}

func (l *Lab) addPod(cfg PodConfig) (*Pod, error) {
	p := &Pod{Name: cfg.Name, Link: l.newLink(l.node)}
	for range max(cfg.Addresses, 1) {
		a, err := l.newHost(podNet4)
		if err != nil {
			return nil, err
		}
		p.Addrs4 = append(p.Addrs4, a)
	}
	p.Addr4 = p.Addrs4[0]
	var err error
	if p.Addr6, err = l.newHost(podNet6); err != nil {
		return nil, err
	}
	if p.Namespace, err = l.addNamespace(cfg.Name); err != nil {
		return nil, err
	}
	if err := l.attach(l.node, p.Link, p.Namespace, append(p.Addrs4[:len(p.Addrs4):len(p.Addrs4)], p.Addr6)); err != nil {
		return nil, err
	}
	if err := p.bindEtc(cfg); err != nil {
		return nil, fmt.Errorf("make its /etc: %w", err)
	}
	return p, nil
}

// bindEtc covers /etc, in the pod's mount namespace only, with a directory of
// the lab.
func (p *Pod) bindEtc(cfg PodConfig) error {
	dir := filepath.Join(p.lab.dir, p.Link, "etc")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	var resolv strings.Builder
	for _, a := range cfg.Nameservers {
		fmt.Fprintf(&resolv, "nameserver %v\n", a)
	}
	if len(cfg.Search) > 0 {
		fmt.Fprintf(&resolv, "search %s\n", strings.Join(cfg.Search, " "))
	}
	if len(cfg.Options) > 0 {
		fmt.Fprintf(&resolv, "options %s\n", strings.Join(cfg.Options, " "))
	}
	var errs []error
	for name, content := range map[string]string{
		"resolv.conf":   resolv.String(),
		"hosts":         fmt.Sprintf("127.0.0.1 localhost\n::1 localhost\n%v %s\n%v %s\n", p.Addr4, cfg.Name, p.Addr6, cfg.Name),
		"nsswitch.conf": "hosts: files dns\n",
		"passwd":        "root:x:0:0:root:/:/bin/sh\n",
	} {
		errs = append(errs, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return p.Do(func() error {
		if err := unix.Mount(dir, "/etc", "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind %s: %w", dir, err)
		}
		return nil
	})
}
